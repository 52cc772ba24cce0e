"""launch/slurm.sh on a real Slurm of this one machine, set up by slurm_here.sh."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from running import QUICK

from rlhf_jax.runtime import checkpoint
from rlhf_jax.runtime.metrics import timeless

pytestmark = pytest.mark.long
HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
STEPS = 300
LINE = """
run experiments/quickstart.py gpt --gpt.data.0.size 600 --gpt.evaluate_every 100
--gpt.model.layers 1 --gpt.model.width 32 --gpt.model.heads 2 --checkpoint-seconds 0.5
""".split()  # noqa: SIM905


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
  """(words) -> what a command of Slurm says."""
  folder = tmp_path_factory.mktemp('slurm')
  script = ['bash', str(HERE / 'slurm_here.sh')]
  # Its daemons keep the streams they are given.
  with (folder / 'said').open('w') as said:
    made = subprocess.run([*script, 'start', str(folder)], stdout=said, stderr=said)
  told = (folder / 'said').read_text()
  if made.returncode == 77:
    pytest.skip(told.strip().splitlines()[-1])
  assert made.returncode == 0, told
  bin_ = str(pathlib.Path(sys.executable).parent)
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | QUICK | {
    'SLURM_CONF': str(folder / 'slurm.conf'), 'JAX_PLATFORMS': 'cpu',
    'PATH': f"{bin_}:{os.environ['PATH']}",
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('executables'))}

  def ask(*words):
    done = subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

  yield ask
  subprocess.run(['scancel', '--me'], env=environment)
  time.sleep(1)
  subprocess.run([*script, 'stop', str(folder)])


def line(folder, *words):
  return ' '.join([*LINE, *words, '--workdir', str(folder)]) + '\n'


def submit(slurm, tmp_path, lines, *options):
  """Number of the job whose array does the lines."""
  (tmp_path / 'list').write_text(''.join(lines))
  return slurm('sbatch', '--parsable', f'--array=0-{len(lines) - 1}', *options,
               f'--output={tmp_path}/%a.log', 'launch/slurm.sh', str(tmp_path / 'list'))


def states(slurm, job):
  """State of each element that Slurm still knows."""
  said = slurm('squeue', '--noheader', '--array', f'--jobs={job}', '--states=all',
               '--format=%K %T')
  return dict(row.split() for row in said.splitlines())


def until(true, tmp_path, seconds=600):
  end = time.monotonic() + seconds
  while not true():
    logs = {path.name: path.read_text()[-1500:] for path in tmp_path.glob('*.log')}
    assert time.monotonic() < end, logs
    time.sleep(0.2)


def rows(folder):
  return [timeless(json.loads(row)) for row in (
    folder / 'gpt' / 'metrics.jsonl').read_text().splitlines()]


def test_an_array_of_three_runs_one_requeued_ends_as_if_nothing_had_happened(slurm, tmp_path):
  steps = ('--gpt.steps', str(STEPS))
  lines = [line(tmp_path / f'run{seed}', '--seed', str(seed), *steps) for seed in range(3)]
  job = submit(slurm, tmp_path, lines)
  listing = tmp_path / 'run1' / 'gpt' / 'checkpoints.json'
  until(listing.exists, tmp_path)
  slurm('scontrol', 'requeue', f'{job}_1')
  until(lambda: set(states(slurm, job).values()) == {'COMPLETED'}, tmp_path)
  for seed in range(3):
    assert [row['step'] for row in rows(tmp_path / f'run{seed}')] == list(range(1, STEPS + 1))
  log = (tmp_path / '1.log').read_text()
  assert log.count(f'rlhf_jax {lines[1].split()[0]}') == 2  # begun twice
  assert 'stopped and saved after step' in log and 'going on after step' in log

  slurm(sys.executable, '-m', 'rlhf_jax', *line(tmp_path / 'whole', '--seed', '1', *steps).split())
  assert rows(tmp_path / 'run1') == rows(tmp_path / 'whole')
  one, two = (jax.tree.leaves(checkpoint.load_parent(tmp_path / name / 'gpt').params)
              for name in ('run1', 'whole'))
  assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_every_element_of_an_array_that_is_told_to_stop_queues_itself_again(slurm, tmp_path):
  """The last too, whose SLURM_JOB_ID is the number of the whole array."""
  steps = ('--gpt.steps', str(STEPS))
  lines = [line(tmp_path / f'run{seed}', '--seed', str(seed), *steps) for seed in range(3)]
  job = submit(slurm, tmp_path, lines)
  for element in range(3):
    until((tmp_path / f'run{element}' / 'gpt' / 'checkpoints.json').exists, tmp_path)
    slurm('scancel', '--signal=TERM', f'{job}_{element}')
  until(lambda: set(states(slurm, job).values()) == {'COMPLETED'}, tmp_path)
  for element in range(3):
    assert 'going on after step' in (tmp_path / f'{element}.log').read_text()
    assert rows(tmp_path / f'run{element}')[-1]['step'] == STEPS


def test_two_tasks_are_two_processes_and_out_of_time_queues_again(slurm, tmp_path):
  """jax finds the tasks of a job itself; a signal before the time limit is as good as a requeue."""
  mesh = ('--gpt.steps', str(STEPS), '--mesh', '2,1,1')
  job = submit(slurm, tmp_path, [line(tmp_path / 'two', *mesh)], '--ntasks=2')
  listing = tmp_path / 'two' / 'gpt' / 'checkpoints.json'
  until(listing.exists, tmp_path)
  slurm('scancel', '--signal=TERM', job)
  until(lambda: set(states(slurm, job).values()) == {'COMPLETED'}, tmp_path)
  log = (tmp_path / '0.log').read_text()
  assert '--multihost' in log and 'going on after step' in log
  assert [row['step'] for row in rows(tmp_path / 'two')] == list(range(1, STEPS + 1))
