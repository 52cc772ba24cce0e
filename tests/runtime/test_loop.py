"""The training loop on a small regression: resumed = whole, to the bit, wherever it was stopped."""

import dataclasses
import json
import pathlib
import shutil
import signal
import types

import jax
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.data.builders import Place
from rlhf_jax.runtime import checkpoint, executables, loop
from rlhf_jax.runtime.experiment import Experiment
from rlhf_jax.runtime.metrics import timeless

EVERY_STEP = loop.Options(checkpoint_seconds=0.0)
NEVER = loop.Options(checkpoint_seconds=1e9)


def experiment(steps: int = 8, **fields) -> Experiment:
  base = configs.Language(steps=steps,
                          evaluate_every=3,
                          optimizer=configs.Optimizer(learning_rate=0.1))
  first = configs.Language(**{**vars(base), **fields})
  return Experiment(pathlib.Path('e.py'), {
    'first': first,
    'second': configs.Language(**{**vars(base), 'init_from': 'first', 'seed': 3})}, {})


def run(folder, names=('first',), options=EVERY_STEP, **fields):
  return loop.run_file(experiment(**fields), names, Place(folder, None, False), options)


@pytest.fixture(scope='module')
def whole(tmp_path_factory, module_faults):
  """The workdir of `second` and `first`, made without a stop and with one save."""
  folder = tmp_path_factory.mktemp('whole')
  run(folder, ['second'], NEVER)
  return folder


def rows(folder, name='metrics.jsonl'):
  return [timeless(json.loads(line)) for line in (folder / name).read_text().splitlines()]


def params(folder, weights='params'):
  return checkpoint.load_parent(folder, weights).params


def assert_same(a, b):
  """Two finished runs: parameters to the bit, every row but its clock, every evaluation."""
  for weights in ('params', 'ema'):
    one, other = params(a, weights), params(b, weights)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert all(
      np.array_equal(x, y)
      for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
  for name in ('metrics.jsonl', 'samples.jsonl'):
    assert rows(a, name) == rows(b, name)
  one, other = ({p.name: p.read_text() for p in (f / 'evaluations').iterdir()} for f in (a, b))
  assert one == other


def test_two_runs_and_their_files(faults, tmp_path):
  told = run(tmp_path, ['second'])
  for name in ('first', 'second'):
    folder = tmp_path / name
    assert [row['step'] for row in rows(folder)] == list(range(1, 9))
    assert all(row['undefined'] is None for row in rows(folder))
    assert [row['step'] for row in rows(folder) if 'validation_loss' in row] == [3, 6, 8]
    assert {p.name for p in (folder / 'evaluations').iterdir()} == {'3.jsonl', '6.jsonl', '8.jsonl'}
    assert len(rows(folder, 'samples.jsonl')) == 16
    assert list((folder / 'tensorboard').iterdir())
    finished = json.loads((folder / 'finished.json').read_text())
    assert finished['steps'] == 8 and finished['seconds'] > 0
    assert finished['summary']['final'] == min(
      row['validation_loss'] for row in rows(folder) if 'validation_loss' in row)
  assert told['runs']['first']['loss'] > 0 and told['seconds'].keys() == {'first', 'second'}
  described = json.loads((tmp_path / 'second' / 'config.json').read_text())
  assert described['config']['steps'] == 8 and described['versions']['jax'] == jax.__version__
  # The second run starts from the first and is pulled to it by `frozen`: both read the parent, and
  # the state, which is donated every step, must not share its memory.
  first, second = params(tmp_path / 'first')['w'], params(tmp_path / 'second')['w']
  assert not np.array_equal(first, second)
  assert [row['frozen'] for row in rows(tmp_path / 'second')] == [
    pytest.approx(np.abs(first).sum(), rel=1e-6)] * 8


def test_a_finished_run_is_not_made_again(faults, tmp_path):
  run(tmp_path)
  before = (tmp_path / 'first' / 'finished.json').stat().st_mtime_ns
  faults.batch[0] = AssertionError('trained again')
  run(tmp_path)
  assert (tmp_path / 'first' / 'finished.json').stat().st_mtime_ns == before


@pytest.mark.parametrize('stops', [(1,), (3, 4), (2, 5, 7)])
def test_resumed_is_whole(faults, whole, tmp_path, stops):
  for name in ('first', 'second'):
    for stop in stops:
      faults.batch = {stop: KeyboardInterrupt('killed')}
      with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'stopped', [name])
      assert 0 < rows(tmp_path / 'stopped' / name)[-1]['step'] <= stop
    faults.batch = {0: AssertionError('started from the beginning')}
    run(tmp_path / 'stopped', [name])
    faults.batch = {}
    assert_same(whole / name, tmp_path / 'stopped' / name)


def test_killed_before_the_first_save_starts_again(faults, whole, tmp_path):
  faults.batch = {5: KeyboardInterrupt('killed')}
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 'stopped', options=NEVER)
  faults.batch = {}
  run(tmp_path / 'stopped')
  assert_same(whole / 'first', tmp_path / 'stopped' / 'first')


def test_rows_above_the_checkpoint_are_cut(faults, whole, tmp_path):
  """As after a kill between two saves: rows, samples, evaluations and half a line that nobody will
  repeat.
  """
  faults.batch = {5: KeyboardInterrupt('killed')}
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 'stopped')
  folder = tmp_path / 'stopped' / 'first'
  for name in ('metrics.jsonl', 'samples.jsonl'):
    with (folder / name).open('a') as file:
      file.write('{"step": 6, "loss": 1}\n{"step": 7, "lo')
  (folder / 'evaluations' / '6.jsonl').write_text('{}\n')
  faults.batch = {}
  run(tmp_path / 'stopped')
  assert_same(whole / 'first', folder)


def _tear(folder: pathlib.Path, how: str) -> None:
  largest = max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  data = largest.read_bytes()
  if how == 'missing':
    largest.unlink()
  else:
    largest.write_bytes(data[:len(data) // 2] if how == 'cut' else
                        data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])


def _stopped_at(faults, folder, step):
  faults.batch = {step: KeyboardInterrupt('killed')}
  with pytest.raises(KeyboardInterrupt):
    run(folder)
  faults.batch = {}
  found = sorted(int(p.name) for p in (folder / 'first' / 'checkpoints').iterdir())
  assert len(found) == 2
  return [folder / 'first' / 'checkpoints' / str(s) for s in found]


def test_a_checkpoint_that_a_kill_left_unlisted_is_removed(faults, tmp_path):
  _, newest = _stopped_at(faults, tmp_path, 5)
  shutil.copytree(newest, newest.with_name('2'))
  run(tmp_path)
  assert sorted(path.name for path in newest.parent.iterdir()) == ['7', '8']


@pytest.mark.parametrize('how', ['cut', 'missing', 'flipped'])
def test_a_torn_checkpoint_is_not_loaded(faults, whole, tmp_path, caplog, how):
  before, newest = _stopped_at(faults, tmp_path / 'stopped', 5)
  _tear(newest, how)
  run(tmp_path / 'stopped')
  assert f'{newest} is damaged' in caplog.text
  assert f'trying the one before it, {before.name}' in caplog.text
  assert_same(whole / 'first', tmp_path / 'stopped' / 'first')


def test_only_torn_checkpoints_stop_the_run_and_lose_nothing(faults, tmp_path):
  folder = tmp_path / 'first'
  both = _stopped_at(faults, tmp_path, 5)
  for path in both:
    _tear(path, 'cut')
  there = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != 'seconds.json'}
  with pytest.raises(configs.BadInput, match=r'no checkpoint is whole .*delete .*first'):
    run(tmp_path)
  assert {
    p: p.read_bytes()
    for p in folder.rglob('*') if p.is_file() and p.name != 'seconds.json'
  } == there


def test_a_damaged_model_of_a_finished_run_stops_what_needs_it(faults, tmp_path):
  run(tmp_path)
  _tear(tmp_path / 'first' / 'model' / 'params', 'cut')
  with pytest.raises(configs.BadInput, match='is damaged'):
    run(tmp_path, ['second'])


def test_a_loss_that_is_not_finite_stops_the_run(faults, tmp_path):
  faults.nan_at = 5
  with pytest.raises(configs.OutOfReach,
                     match=r'loss is nan at step 6 \(batch 5 .*step 5, .*checkpoints/5'):
    run(tmp_path)
  told = rows(tmp_path / 'first')
  assert told[-1]['step'] == 6 and told[-1]['loss'] is None
  assert not (tmp_path / 'first' / 'finished.json').exists()
  assert max(int(p.name) for p in (tmp_path / 'first' / 'checkpoints').iterdir()) == 5
  faults.nan_at = -1  # repaired data: goes on
  run(tmp_path)
  assert [row['step'] for row in rows(tmp_path / 'first')] == list(range(1, 9))


def test_the_first_loss_that_is_not_finite_names_no_checkpoint(faults, tmp_path):
  faults.nan_at = 0
  with pytest.raises(configs.OutOfReach, match='no checkpoint was due'):
    run(tmp_path)


def test_another_configuration_is_refused_and_named(faults, tmp_path):
  run(tmp_path, ['second'])
  with pytest.raises(configs.BadInput, match=r'batch is 32 there and 64 now.*--first.batch 32'):
    run(tmp_path, batch=64)
  with pytest.raises(configs.BadInput, match=r'optimizer.learning_rate is 0.1 there and 0.2 now'):
    run(tmp_path, optimizer=configs.Optimizer(learning_rate=0.2))
  run(tmp_path, mesh=configs.Mesh(data=-1))  # the mesh is no part of the result


def test_a_folder_without_work_takes_another_configuration(faults, tmp_path):
  faults.batch = {1: KeyboardInterrupt('killed')}
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, options=NEVER, batch=64)
  faults.batch = {}
  run(tmp_path)
  described = json.loads((tmp_path / 'first' / 'config.json').read_text())
  assert described['config']['batch'] == 32
  assert [row['step'] for row in rows(tmp_path / 'first')] == list(range(1, 9))


def test_a_parent_of_another_configuration_is_refused(faults, tmp_path):
  run(tmp_path, ['second'])
  for path in sorted((tmp_path / 'first').rglob('*'), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  with pytest.raises(configs.BadInput,
                     match=r'second was made .*: first had another configuration'):
    run(tmp_path, ['second'], batch=64)


def test_sigterm_saves_and_exits_143(faults, whole, tmp_path):
  faults.after[3] = lambda: signal.raise_signal(signal.SIGTERM)
  previous = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  loop.stopping.install()
  try:
    with pytest.raises(SystemExit) as stopped:
      run(tmp_path / 'stopped', options=NEVER)
  finally:
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), previous, strict=True):
      signal.signal(number, handler)
  assert stopped.value.code == 143
  assert [p.name for p in (tmp_path / 'stopped' / 'first' / 'checkpoints').iterdir()] == ['3']
  loop.stopping.signal = 0
  faults.after = {}
  run(tmp_path / 'stopped')
  assert_same(whole / 'first', tmp_path / 'stopped' / 'first')


def test_the_second_step_compiles_nothing(faults, tmp_path, monkeypatch):
  compiled: list[str] = []
  counts: list[int] = []

  def heard(event: str, seconds: float, **_) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(event)

  def write(self, step, metrics, write=loop.Metrics.write):
    counts.append(len(compiled))
    return write(self, step, metrics)

  monkeypatch.setattr(loop.Metrics, 'write', write)
  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    run(tmp_path, options=NEVER, evaluate_every=0)
  finally:
    jax.monitoring.unregister_event_duration_listener(heard)
  # The last row waits for the evaluation at the end, which compiles what it needs.
  assert len(counts) == 8 and counts[0] > 0
  assert set(counts[:-1]) == {counts[0]}


def test_torn_executables_are_made_again(faults, tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  cache = tmp_path / '.jax_cache'
  try:
    run(tmp_path)
    whole = {path: path.read_bytes() for path in cache.glob('*-cache')}
    assert len(whole) >= 2
    first, *others = sorted(whole)
    first.write_bytes(whole[first][:-5])
    executables.keep(tmp_path)
    assert {path: path.read_bytes() for path in cache.glob('*-cache')} == {
      path: whole[path] for path in others}
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
    executables.compilation_cache.reset_cache()


def test_an_executable_that_another_job_removes_is_no_error(tmp_path, monkeypatch):
  for number in range(2):
    (tmp_path / f'{number}-cache').write_bytes(executables.zlib.compress(bytes(99))[:-5])
  listed = sorted(tmp_path.glob('*-cache'))
  read = pathlib.Path.read_bytes

  def raced(path):
    data = read(path)
    listed[0].unlink(missing_ok=True)  # the first between look and removal, before the second's
    return data

  monkeypatch.setattr(pathlib.Path, 'read_bytes', raced)
  executables.drop_torn(tmp_path)
  assert not any(file.exists() for file in listed)
  monkeypatch.setattr(pathlib.Path, 'glob', lambda *_: listed)  # before both were removed
  executables.drop_torn(tmp_path)
  assert not any(file.exists() for file in listed)


def test_other_devices_give_the_same_numbers_and_may_go_on(faults, whole, tmp_path):
  """Stopped on one device, gone on upon a mesh of six; the next run starts from it there too."""
  faults.batch = {4: KeyboardInterrupt('killed')}
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path)
  faults.batch = {}
  both = experiment()
  mesh = configs.Mesh(data=3, fsdp=2)
  both = dataclasses.replace(both, runs={
    name: dataclasses.replace(config, mesh=mesh) for name, config in both.runs.items()})
  loop.run_file(both, ['second'], Place(tmp_path, None, False), EVERY_STEP)
  for name in ('first', 'second'):
    one, other = params(whole / name)['w'], params(tmp_path / name)['w']
    assert isinstance(other, np.ndarray)
    assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)
    assert [row['step'] for row in rows(tmp_path / name)] == list(range(1, 9))


def test_a_workdir_is_one_processs(faults, tmp_path):
  with loop.workdir.lock(tmp_path), pytest.raises(configs.BadInput, match='is at work in'):
    run(tmp_path)
  run(tmp_path)


def test_no_space_is_told_before_the_first_step(faults, tmp_path, monkeypatch):
  monkeypatch.setattr(loop.workdir.shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=100))
  with pytest.raises(configs.BadInput,
                     match=r'no space left on the disk of .*first .100 B free.; free'):
    run(tmp_path)


def test_seconds_add_up_over_restarts(faults, tmp_path):
  faults.batch = {5: KeyboardInterrupt('killed')}
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path)
  before = json.loads((tmp_path / 'first' / 'seconds.json').read_text())['seconds']
  faults.batch = {}
  told = run(tmp_path)
  assert told['seconds']['first'] > before > 0
