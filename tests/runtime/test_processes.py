"""Several processes of this machine, joined over the loopback as hosts over a network."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from running import QUICK, end, started

from rlhf_jax.runtime import checkpoint
from rlhf_jax.runtime.metrics import timeless

pytestmark = pytest.mark.long
ROOT = pathlib.Path(__file__).parents[2]
# The quickstart's PPO-ptx with one layer, from parents that are made in seconds.
SMALL = """
--gpt.model.layers 1 --gpt.data.0.size 2000 --gpt.steps 20
--sft.data.0.size 200 --sft.pretraining.0.size 2000 --sft.epochs 1
--rankings.prompts.0.size 60 --reward.epochs 1
--ppo_ptx.prompts.0.size 400 --ppo_ptx.pretraining.0.size 2000 --ppo_ptx.updates 3
--ppo_ptx.evaluation_prompts.0.size 16 --ppo_ptx.evaluation_size 16
""".split()  # noqa: SIM905
# A run that is always in the middle of something.
ENDLESS = """
gpt --gpt.data.0.size 600 --gpt.steps 1000000 --gpt.evaluate_every 0 --gpt.model.layers 1
--gpt.model.width 32 --gpt.model.heads 2 --checkpoint-seconds 1e9
""".split()  # noqa: SIM905


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """One compilation cache for the processes of this file, one device for each of them."""
  cache = str(tmp_path_factory.mktemp('executables'))
  return {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | QUICK | {
    'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PLATFORMS': 'cpu'}


def command(folder, words, mesh):
  return [sys.executable, '-m', 'rlhf_jax', 'run', 'experiments/quickstart.py', '--workdir',
          str(folder), *words, *(['--mesh', mesh, '--multihost'] if mesh else [])]


def start(environment, folder, words, mesh=None, count=1):
  """The command in `count` processes, in a group of their own."""
  launcher = [] if mesh is None else ['bash', 'launch/local_processes.sh', str(count), '--']
  started.append(subprocess.Popen(
    launcher + command(folder, words, mesh), cwd=ROOT, env=environment, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True))
  return started[-1]


def run(environment, folder, words, mesh=None, count=1):
  """All that it said, once it has ended as it should."""
  process = start(environment, folder, words, mesh, count)
  said, _ = process.communicate(timeout=900)
  assert process.returncode == 0, said
  return said


@pytest.fixture(scope='module')
def one(tmp_path_factory, environment):
  """A workdir whose PPO run has made its three updates in one process."""
  folder = tmp_path_factory.mktemp('one') / 'w'
  run(environment, folder, ['ppo_ptx', *SMALL])
  return folder


@pytest.fixture(scope='module')
def two(one, tmp_path_factory, environment):
  """The same run in two processes, and what they said."""
  folder = with_parents(one, tmp_path_factory.mktemp('two'))
  said = run(environment, folder, ['ppo_ptx', *SMALL, '--checkpoint-seconds', '0'], '2,1,1', 2)
  return folder, said


def with_parents(one, folder):
  """A workdir that holds all but the PPO run."""
  shutil.copytree(one, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns('ppo_ptx'))
  return folder


def rows(folder, name):
  return [timeless(json.loads(line)) for line in (folder / 'ppo_ptx' / name).read_text(
    'utf-8').splitlines()]


def models(folder):
  """Path -> array, of the parameters and their average."""
  return {f'{weights}{jax.tree_util.keystr(path)}': leaf for weights in ('params', 'ema')
          for path, leaf in jax.tree_util.tree_flatten_with_path(
            checkpoint.load_parent(folder / 'ppo_ptx', weights).params)[0]}


def assert_near(a, b):
  """‖a − b‖ / ‖b‖ of every tensor, and the very tokens that were sampled."""
  found, wanted = models(a), models(b)
  far = {name: np.linalg.norm(np.float64(found[name]) - leaf) / np.linalg.norm(np.float64(leaf))
         for name, leaf in wanted.items()}
  assert max(far.values()) <= 1e-5, sorted(far.items(), key=lambda item: -item[1])[:5]
  said = [[(row['step'], row['prompt'], row['response']) for row in rows(w, 'samples.jsonl')]
          for w in (a, b)]
  assert said[0] == said[1] and len(said[0]) >= 4


def assert_same(a, b):
  """To the bit."""
  found, wanted = models(a), models(b)
  assert found.keys() == wanted.keys()
  assert all(np.array_equal(found[name], leaf) for name, leaf in wanted.items())


def test_three_updates_of_two_processes_are_those_of_one(one, two):
  assert_near(two[0], one)


@pytest.mark.parametrize('mesh', ['1,2,1', '1,1,2'])
def test_parameters_that_lie_in_two_processes(one, environment, tmp_path, mesh):
  folder = with_parents(one, tmp_path)
  run(environment, folder, ['ppo_ptx', *SMALL], mesh, 2)
  assert_near(folder, one)


def test_process_0_alone_tells_and_writes(two):
  folder, said = two
  for line in ('ppo_ptx: compiled', 'ppo_ptx  3/3', 'report.html'):
    assert said.count(line) == 1, said
  assert [row['step'] for row in rows(folder, 'metrics.jsonl')] == [1, 2, 3]
  assert len(list((folder / 'ppo_ptx' / 'tensorboard').iterdir())) == 1
  assert not list(folder.rglob('.*.half')) and not list(folder.rglob('.*.json.*'))


def test_killed_and_started_again_to_the_bit(one, two, environment, tmp_path):
  """Both are killed as soon as a checkpoint of the first or second update is whole."""
  folder = with_parents(one, tmp_path)
  words = ['ppo_ptx', *SMALL, '--checkpoint-seconds', '0']
  process = start(environment, folder, words, '2,1,1', 2)
  listing = folder / 'ppo_ptx' / 'checkpoints.json'
  while process.poll() is None and not listing.exists():
    time.sleep(0.02)
  assert process.poll() is None, process.communicate()[0]
  end(process)
  assert max(map(int, json.loads(listing.read_text()))) < 3
  said = run(environment, folder, words, '2,1,1', 2)
  assert 'going on after step' in said
  assert_same(folder, two[0])
  for name in ('metrics.jsonl', 'samples.jsonl'):
    assert rows(folder, name) == rows(two[0], name)


@pytest.mark.parametrize(('source', 'mesh'), [('one', '1,2,1'), ('two', None)])
def test_a_checkpoint_is_read_by_another_number_of_processes(
    one, two, environment, tmp_path, source, mesh):
  """What is left to do is to read the last checkpoint and to export it: to the bit."""
  wanted = one if source == 'one' else two[0]
  shutil.copytree(wanted, tmp_path, dirs_exist_ok=True)
  (tmp_path / 'ppo_ptx' / 'finished.json').unlink()
  shutil.rmtree(tmp_path / 'ppo_ptx' / 'model')
  said = run(environment, tmp_path, ['ppo_ptx', *SMALL], mesh, 2)
  assert 'going on after step 3 of 3' in said
  assert_same(tmp_path, wanted)


def test_four_processes_make_an_update(one, environment, tmp_path):
  folder = with_parents(one, tmp_path)
  run(environment, folder, ['ppo_ptx', *SMALL, '--ppo_ptx.updates', '1'], '2,2,1', 4)
  found, wanted = (rows(w, 'samples.jsonl')[:4] for w in (folder, one))
  assert [row['response'] for row in found] == [row['response'] for row in wanted]
  first = rows(one, 'metrics.jsonl')[0]
  for name, value in rows(folder, 'metrics.jsonl')[0].items():
    if name in first and name != 'logprob_gap':
      assert value == pytest.approx(first[name], rel=1e-3, abs=1e-4), name


def at_work(process, folder):
  """Waits until a run is in its middle."""
  metrics = folder / 'gpt' / 'metrics.jsonl'
  while process.poll() is None and not (metrics.exists() and len(metrics.read_text()) > 2000):
    time.sleep(0.05)
  assert process.poll() is None, process.communicate()[0]


def child(process, number):
  """The process that was started as number so and so."""
  pids = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
  for pid in map(int, pids):
    if f'JAX_PROCESS_ID={number}\0'.encode() in pathlib.Path(f'/proc/{pid}/environ').read_bytes():
      return pid
  raise AssertionError(f'no process {number}')


@pytest.mark.skipif(not pathlib.Path('/proc').is_dir(), reason='finds the processes below /proc')
@pytest.mark.parametrize('number', [0, 1])
def test_a_process_that_dies_is_named_and_the_others_end(environment, tmp_path, number):
  process = start(environment, tmp_path, ENDLESS, '2,1,1', 2)
  at_work(process, tmp_path)
  killed = time.monotonic()
  os.kill(child(process, number), signal.SIGKILL)
  said, _ = process.communicate(timeout=60)
  assert time.monotonic() - killed < 20
  assert process.returncode == 137
  assert f'process {number} of 2 ended with code 137 (signal 9)' in said


@pytest.mark.parametrize('number', [0, 1])
def test_without_a_launcher_too_the_others_end_within_a_minute(environment, tmp_path, number):
  """As on hosts of a network, where only the processes themselves can tell."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  for index in range(2):
    started.append(subprocess.Popen(
      command(tmp_path, ENDLESS, '2,1,1'), cwd=ROOT, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, start_new_session=True, env=environment | {
        'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': str(index)}))
  dying, other = started[number], started[1 - number]
  at_work(dying, tmp_path)
  # A process that is stopped, not ended, keeps its connections: the others wait for it.
  dying.send_signal(signal.SIGSTOP)
  stopped = time.monotonic()
  said, _ = other.communicate(timeout=60)
  assert time.monotonic() - stopped < 60 and other.returncode != 0
  assert 'process' in said.lower() and ('died' in said or 'ended' in said), said[-3000:]


@pytest.mark.skipif(not pathlib.Path('/proc').is_dir(), reason='finds the processes below /proc')
def test_one_that_is_told_to_stop_tells_the_others(environment, tmp_path):
  process = start(environment, tmp_path, ENDLESS, '2,1,1', 2)
  at_work(process, tmp_path)
  os.kill(child(process, 1), signal.SIGTERM)
  said, _ = process.communicate(timeout=60)
  assert process.returncode == 143, said
  saved, = (tmp_path / 'gpt' / 'checkpoints').iterdir()
  last = (tmp_path / 'gpt' / 'metrics.jsonl').read_text().splitlines()[-1]
  assert int(saved.name) == json.loads(last)['step']
  assert 'stopped and saved after step' in said
  words = [str(int(saved.name) + 5) if word == '1000000' else word for word in ENDLESS]
  shutil.rmtree(tmp_path / 'gpt')  # another number of steps is another configuration
  assert 'gpt' in run(environment, tmp_path, words, '2,1,1', 2)


@pytest.mark.parametrize(('mesh', 'message'), [
  ('1,1,1', 'leaves 1 of 2 processes without a device: take all 2 devices'),
  ('3,1,1', 'needs 3 devices, there are 2'), ('2,1', "--mesh: '2,1' is not D,F,T")])
def test_a_mesh_that_cannot_be_is_bad_input(environment, tmp_path, mesh, message):
  process = start(environment, tmp_path, ENDLESS, mesh, 2)
  said, _ = process.communicate(timeout=120)
  assert process.returncode == 2 and message in said, said
