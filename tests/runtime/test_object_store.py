"""A workdir in an object store, which refuses to append: the same runs as on a disk, to the bit."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import object_store
import pytest
from running import QUICK, end, started

from rlhf_jax import __main__, configs
from rlhf_jax.data import store
from rlhf_jax.data.builders import Place
from rlhf_jax.runtime import checkpoint, loop
from rlhf_jax.runtime.experiment import Experiment
from rlhf_jax.runtime.metrics import timeless

# gcsfs writes over what it was to append to, and warns
pytestmark = [object_store.NEEDED, pytest.mark.filterwarnings('error:Append mode')]
ROOT = pathlib.Path(__file__).parents[2]
DIR = f'gs://{object_store.BUCKET}/w'
STEPS = 8
# Two kinds of training run and one that collects, each a matter of seconds.
SMALL = """
--gpt.data.0.size 600 --gpt.steps 120 --gpt.evaluate_every 40
--gpt.model.layers 1 --gpt.model.width 32 --gpt.model.heads 2
--sft.data.0.size 100 --sft.pretraining.0.size 600 --sft.batch 4
--sft.pretraining_share 0.25 --sft.epochs 1
--rankings.prompts.0.size 30 --rankings.batch 16
--reward.batch 4 --reward.epochs 1 --checkpoint-seconds 0.5
""".split()  # noqa: SIM905
RUNS = ('gpt', 'sft', 'rankings', 'reward')


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  with object_store.ObjectStore() as there:
    there.use(monkeypatch)
    yield there


def run(folder, seconds: float, steps: int = STEPS):
  runs = {'first': configs.Language(steps=steps, evaluate_every=3,
                                    optimizer=configs.Optimizer(learning_rate=0.1))}
  return loop.run_file(Experiment(pathlib.Path('e.py'), runs, {}), ['first'],
                       Place(folder, None, False), loop.Options(checkpoint_seconds=seconds))


def rows(path):
  return [timeless(json.loads(line)) for line in path.read_text('utf-8').split('\n') if line]


def assert_same(one, other, names):
  """Parameters to the bit, every row but its clock, every evaluation."""
  for name in names:
    if (one / name / 'model').exists():
      trees = [checkpoint.load_parent(folder / name).params for folder in (one, other)]
      assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
      assert all(map(np.array_equal, *map(jax.tree.leaves, trees))), name
    found = [sorted(path.name for path in (folder / name).glob('*.jsonl'))
             for folder in (one, other)]
    assert found[0] == found[1] != []
    for file in found[0]:
      assert rows(one / name / file) == rows(other / name / file), (name, file)
    told = [{path.name: path.read_text('utf-8') for path in (folder / name).glob('evaluations/*')}
            for folder in (one, other)]
    assert told[0] == told[1]


def test_a_run_is_that_of_a_disk_and_its_rows_are_put_up_once_a_checkpoint(
    faults, bucket, tmp_path):
  run(tmp_path / 'w', 0.0)
  told = run(store.path(DIR), 1e9)
  assert told['runs'].keys() == {'first'}
  assert_same(tmp_path / 'w', store.path(DIR), ['first'])
  listed = bucket.names('w/first/')
  events = [name for name in listed if '/tensorboard/' in name]
  assert len(events) == 1 and bucket.puts['w/first/checkpoints.json'] == 1
  for name in ('w/first/metrics.jsonl', 'w/first/samples.jsonl', *events):
    assert bucket.puts[name] == 1, name  # not one a step
  assert not any('/.' in name for name in listed) and bucket.appends == 0
  run(store.path(DIR), 0.0)  # it is finished
  assert bucket.puts['w/first/metrics.jsonl'] == 1


@pytest.mark.parametrize('stops', [(1,), (3, 4)])
def test_resumed_is_whole(faults, bucket, tmp_path, stops):
  run(tmp_path / 'w', 1e9)
  folder = store.path(DIR)
  for stop in stops:
    faults.batch = {stop: KeyboardInterrupt('killed')}
    with pytest.raises(KeyboardInterrupt):
      run(folder, 0.0)
    there = rows(folder / 'first' / 'metrics.jsonl')
    assert 0 < there[-1]['step'] <= stop
    # As after a kill between putting the rows up and the checkpoint.
    bucket.put('w/first/metrics.jsonl', bucket.read('w/first/metrics.jsonl')
               + b'{"step": 7, "loss": 1}\n')
    bucket.put('w/first/evaluations/6.jsonl', b'{}\n')
  faults.batch = {0: AssertionError('started from the beginning')}
  run(folder, 0.0)
  assert_same(tmp_path / 'w', folder, ['first'])
  assert bucket.appends == 0
  assert sorted({name.split('/')[3] for name in bucket.names('w/first/checkpoints/')}) == [
    str(STEPS - 1), str(STEPS)]  # of older ones nothing is left


def test_a_checkpoint_that_is_cut_is_known_by_its_sizes(faults, bucket, tmp_path, caplog):
  run(tmp_path / 'w', 1e9)
  faults.batch = {5: KeyboardInterrupt('killed')}
  with pytest.raises(KeyboardInterrupt):
    run(store.path(DIR), 0.0)
  newest = max(map(int, json.loads(bucket.read('w/first/checkpoints.json'))))
  largest = max(bucket.names(f'w/first/checkpoints/{newest}/'), key=lambda n: len(bucket.read(n)))
  bucket.put(largest, bucket.read(largest)[:-1])
  faults.batch = {}
  run(store.path(DIR), 0.0)
  assert f'checkpoints/{newest} is damaged' in caplog.text
  assert f'trying the one before it, {newest - 1}' in caplog.text
  assert_same(tmp_path / 'w', store.path(DIR), ['first'])


def test_a_lost_file_of_a_model_is_told(faults, bucket):
  run(store.path(DIR), 1e9)
  del bucket.objects['w/first/model/params/manifest.ocdbt']
  with pytest.raises(configs.BadInput, match=r'damaged \(params/manifest.ocdbt is missing\)'):
    checkpoint.load_parent(store.path(DIR) / 'first')


# ---------------------------------------------------------------- real processes, really killed


def start(bucket, *words, launcher=()):
  quiet = {key: value for key, value in os.environ.items()
           if key not in ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR')}
  started.append(subprocess.Popen(
    [*launcher, sys.executable, '-m', 'rlhf_jax', *words], cwd=ROOT, text=True,
    env=quiet | QUICK | bucket.environment | {'JAX_PLATFORMS': 'cpu'}, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT, start_new_session=True))
  return started[-1]


def ended(process) -> str:
  said, _ = process.communicate(timeout=900)
  assert process.returncode == 0, said
  return said


def kill_in_the_middle(bucket, process, run):
  """As soon as a checkpoint of a run is listed."""
  while process.poll() is None and not bucket.names(f'w/{run}/checkpoints.json'):
    time.sleep(0.02)
  assert process.poll() is None, process.communicate()[0]
  end(process)
  assert not bucket.names(f'w/{run}/finished.json')


@pytest.mark.long
def test_processes_that_are_killed_end_with_the_bits_of_a_disk(bucket, tmp_path, capsys):
  words = ['run', 'experiments/quickstart.py', 'reward', *SMALL]
  ended(start(bucket, *words, '--workdir', str(tmp_path / 'w')))
  for name in ('gpt', 'reward'):
    kill_in_the_middle(bucket, start(bucket, *words, '--workdir', DIR), name)
  said = ended(start(bucket, *words, '--workdir', DIR))
  assert 'reward: going on after step' in said and said.rstrip().endswith(f'{DIR}/report.html')
  assert_same(tmp_path / 'w', store.path(DIR), RUNS)
  assert bucket.appends == 0 and bucket.names('w/.jax_cache/')
  for name in ('gpt', 'sft', 'reward'):
    # Once a checkpoint, and where a kill came between the two or left rows to be cut back.
    puts, steps = bucket.puts[f'w/{name}/metrics.jsonl'], len(rows(
      tmp_path / 'w' / name / 'metrics.jsonl'))
    assert puts <= bucket.puts[f'w/{name}/checkpoints.json'] + 4, name
    assert puts < steps, name

  # ---- what other commands make of it
  def told(*words):
    assert __main__.main(words) == 0
    return capsys.readouterr().out.splitlines()

  local, exports, puts = str(tmp_path / 'w'), [], bucket.puts['w/report.html']
  asked = ['--prompt', 'tell me', '-n', '2']
  sampled = [told('sample', *named, *asked) for named in (
    ('--workdir', local, '--run', 'sft'), ('--workdir', DIR, '--run', 'sft'),
    ('--model', f'{DIR}/sft'))]
  assert sampled[0] == sampled[1] == sampled[2] and len(sampled[0]) >= 2
  (tmp_path / 't.txt').write_text('tell me a story')
  text = ('--run', 'gpt', '--text', str(tmp_path / 't.txt'))
  losses = [told('perplexity', '--workdir', where, *text) for where in (local, DIR)]
  assert losses[0] == losses[1]
  for where in (local, DIR):
    exports.append(tmp_path / f'export {len(exports)}')
    told('export', '--workdir', where, '--run', 'reward', '--out', str(exports[-1]))
  files = [{name: (out / name).read_bytes() for name in store.files(out)} for out in exports]
  assert files[0] == files[1] and 'model.safetensors' in files[0]
  assert told('report', DIR) == [f'{DIR}/report.html']
  assert bucket.puts['w/report.html'] == puts + 1 and b'reward' in bucket.read('w/report.html')


@pytest.mark.long
def test_two_processes_that_are_killed(bucket, tmp_path):
  """Each is told where the other is by the store alone: they share no folder."""
  words = ['run', 'experiments/quickstart.py', 'gpt', *SMALL, '--mesh', '2,1,1', '--multihost']
  launcher = ['bash', 'launch/local_processes.sh', '2', '--']
  here = str(tmp_path / 'w')
  ended(start(bucket, *words, '--workdir', here, launcher=launcher))
  kill_in_the_middle(bucket, start(bucket, *words, '--workdir', DIR, launcher=launcher), 'gpt')
  said = ended(start(bucket, *words, '--workdir', DIR, launcher=launcher))
  assert 'going on after step' in said
  assert_same(tmp_path / 'w', store.path(DIR), ['gpt'])
  assert bucket.appends == 0
