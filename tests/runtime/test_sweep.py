"""A sweep over tiny random models: what it shares, resumes, survives and writes."""

import contextlib
import dataclasses
import json
import math
import shutil
import time
import types

import jax
import pyarrow.parquet
import pytest

from rlhf_jax import __main__, configs
from rlhf_jax import miniature as world
from rlhf_jax.configs import BadInput
from rlhf_jax.data.builders import Place
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime import checkpoint, experiment, grid, loop, overrides, sweep, workdir
from rlhf_jax.runtime.metrics import timeless

UPDATES = 6
FILE = """
from rlhf_jax import miniature as world
from rlhf_jax.configs import *
fine = Optimizer(learning_rate=3e-3, schedule='constant', epsilon=1e-5)
ends = Source('rankings', ('none.jsonl',))
runs = {
  'sft': Language(data=(world.text_source('train', 60),)),
  'reward': Reward(data=(ends,)),
  'second': Reward(data=(ends,), seed=1),
  'ppo': PPO(
    policy='sft', reward='reward', prompts=(world.prompts_source('ppo', 40),), episodes=8,
    pretraining=(world.text_source('train', 60),), minibatch=4, updates=6, ptx_coef=1.0,
    policy_optimizer=fine, value_optimizer=fine, prompt_length=40, response_length=10,
    text_length=16, prompt_cut='head', judge=world.GOLD, evaluation_size=12,
    evaluation_prompts=(world.prompts_source('validation', 12),)),
}
sweep = Sweep(
  base='ppo', text=(world.text_source('heldout', 20),), best_of=4, batch=12, spacing=0.1,
  grid=({'kl_coef': (0.0, 0.3), 'ptx_ratio': (0.0,), 'seed': (0, 1)},
        {'kl_coef': (0.3,), 'ptx_ratio': (1.0,), 'seed': (0,)}))
"""
POINTS = ['kl_coef_0-ptx_ratio_0-seed_0', 'kl_coef_0-ptx_ratio_0-seed_1',
          'kl_coef_0.3-ptx_ratio_0-seed_0', 'kl_coef_0.3-ptx_ratio_0-seed_1',
          'kl_coef_0.3-ptx_ratio_1-seed_0']
OPTIONS = loop.Options(checkpoint_seconds=0.0)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('files') / 'small.py'
  path.write_text(FILE)
  return path


@pytest.fixture(scope='module')
def models(file, tmp_path_factory, random_params):
  """A workdir with finished parents, which nobody trained."""
  folder = tmp_path_factory.mktemp('models')
  tokenizer = Tokenizer.train([record.text for record in world.text('train', 60, 0)], 400)
  model = configs.Model(layers=1, width=16, heads=2, context=64, init_std=0.4,
                        vocabulary=tokenizer.vocabulary)
  read = experiment.load(file)
  described = loop.descriptions(read, ['sft', 'reward', 'second'], Place(folder))
  for seed, (name, about) in enumerate(described.items()):
    scalar = name != 'sft'
    workdir.write_json(folder / name / 'config.json', about)
    checkpoint.export(folder / name, 'reward' if scalar else 'policy', model, tokenizer,
                      {'params': random_params(model, scalar, seed)})
    workdir.write_json(folder / name / 'finished.json', {'seconds': 1, 'steps': 1, 'summary': {}})
  return folder


@pytest.fixture
def begun(models, tmp_path):
  """A workdir of a test's own, with the parents in it."""
  shutil.copytree(models, tmp_path / 'w')
  return tmp_path / 'w'


@contextlib.contextmanager
def counted():
  """Names of what is compiled, and of models that are read."""
  compiled, read = [], []
  listen = lambda event, **_: compiled.append(event) if event.endswith('cache_misses') else None
  load = checkpoint.load_parent
  jax.monitoring.register_event_listener(listen)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint, 'load_parent', lambda path, *a, **k: read.append(path.name) or load(
      path, *a, **k))
    yield compiled, read
  jax.monitoring.unregister_event_listener(listen)


@pytest.fixture(scope='module')
def swept(file, models, tmp_path_factory, quick_compilation):
  """The whole sweep, and what it compiled for each point."""
  folder = tmp_path_factory.mktemp('swept') / 'w'
  shutil.copytree(models, folder)
  missed = {}
  make = sweep._Sweep.make
  with counted() as (compiled, read), pytest.MonkeyPatch.context() as patch:
    def one(self, point, board):
      before = len(compiled)
      reason = make(self, point, board)
      missed[point.name] = len(compiled) - before
      return reason
    patch.setattr(sweep._Sweep, 'make', one)
    assert sweep.run(experiment.load(file), Place(folder), OPTIONS) == {}
  return folder, missed, read


def rows(path):
  return [timeless(json.loads(line)) for line in path.read_text('utf-8').splitlines()]


def same_point(one, other):
  """All that a point's folder says, its clock aside."""
  assert rows(one / 'metrics.jsonl') == rows(other / 'metrics.jsonl')
  assert rows(one / 'samples.jsonl') == rows(other / 'samples.jsonl')
  names = sorted(path.name for path in (one / 'evaluations').iterdir())
  assert names == sorted(path.name for path in (other / 'evaluations').iterdir())
  for name in names:
    assert (one / 'evaluations' / name).read_text() == (other / 'evaluations' / name).read_text()
  leaves = [jax.tree.leaves(checkpoint.load_parent(w).params) for w in (one, other)]
  assert all((a == b).all() for a, b in zip(*leaves, strict=True))


def test_points_of_the_same_shapes_compile_nothing(swept):
  _, missed, _ = swept
  assert list(missed) == POINTS
  first, *same, other = missed.values()
  assert first > 0 and same == [0, 0, 0]
  assert other > 0  # with the pretraining gradient it is another program


def test_models_are_loaded_once(swept):
  assert sorted(swept[2]) == ['reward', 'sft']


def test_a_point_is_the_run_that_it_says(swept, begun, file):
  """`run` with the same fields trains the same policy, update by update."""
  name = 'kl_coef_0.3-ptx_ratio_1-seed_0'
  changed = overrides.apply(experiment.load(file), [('ppo.kl_coef', '0.3'), ('ppo.seed', '0'),
                                                    ('ppo.ptx_ratio', '1')])
  loop.run_file(changed, ['ppo'], Place(begun), OPTIONS)
  point, plain = rows(swept[0] / name / 'metrics.jsonl'), rows(begun / 'ppo' / 'metrics.jsonl')
  known = set(plain[0])
  assert {'kl', 'score', 'policy_loss', 'kl_coef'} < known
  assert [{k: row[k] for k in known} for row in point] == [
    {k: row[k] for k in known} for row in plain]
  assert plain[-1]['kl_coef'] == pytest.approx(0.3)


def test_a_second_start_makes_nothing(swept, file, monkeypatch):
  folder = swept[0]
  before = {p: p.read_bytes() for p in folder.rglob('*.json*') if 'checkpoints' not in str(p)}
  monkeypatch.setattr(loop, 'train', None)
  with counted() as (compiled, read):
    assert sweep.run(experiment.load(file), Place(folder), OPTIONS) == {}
  assert compiled == [] and read == []
  assert {p: p.read_bytes() for p in before} == before


def test_a_grid_with_0_is_the_one_with_0_point_0(swept, file, tmp_path, monkeypatch):
  shutil.copytree(swept[0], tmp_path / 'w')
  whole = file.with_name('whole.py')
  whole.write_text(FILE.replace('(0.0, 0.3)', '(0, 0.3)').replace('(0.0,)', '(0,)'))
  monkeypatch.setattr(loop, 'train', None)
  assert whole.read_text() != FILE
  read = experiment.load(whole)
  assert [*grid.points(read)] == [*grid.points(experiment.load(file))]
  assert sweep.run(read, Place(tmp_path / 'w'), OPTIONS) == {}


@pytest.mark.parametrize('one, other', [('1.0', '1'), ('1', '1.0')])
def test_spacing_and_temperature_of_1_are_those_of_1_point_0(file, begun, monkeypatch, one, other):
  """Also in a workdir that was begun with 1, when 1 and 1.0 were told apart."""
  def read(number):
    path = file.with_name('spaced.py')
    path.write_text(FILE.replace('spacing=0.1', f'spacing={number}').replace(
      'updates=6', f'updates=1, temperature={number}'))
    return experiment.load(path)
  with monkeypatch.context() as patch:
    if one == '1':
      patch.setattr(grid, '_spellings', lambda number: [number])
    assert sweep.run(read(one), Place(begun), OPTIONS, only=POINTS[0]) == {}
  start, = (begun / 'start').iterdir()
  assert sweep.run(read(other), Place(begun), OPTIONS, only=POINTS[1]) == {}
  monkeypatch.setattr(loop, 'train', None)
  for name in POINTS[:2]:
    assert sweep.run(read(other), Place(begun), OPTIONS, only=name) == {}
  assert [*(begun / 'start').iterdir()] == [start]


def test_a_killed_point_ends_as_if_it_never_stopped(swept, begun, file, monkeypatch):
  """Stopped after the fourth update of the second point, whose checkpoint is the third's."""
  def stop(self, step, row, show=sweep.Board.progress):
    if step == 4 and self._name == POINTS[1]:
      raise KeyboardInterrupt
  with monkeypatch.context() as patch:
    patch.setattr('rlhf_jax.runtime.board._Line.show', stop)
    with pytest.raises(KeyboardInterrupt):
      sweep.run(experiment.load(file), Place(begun), OPTIONS)
  assert (begun / POINTS[0] / 'finished.json').exists()
  assert not (begun / POINTS[1] / 'finished.json').exists()
  assert len(rows(begun / POINTS[1] / 'metrics.jsonl')) >= 3
  assert sweep.run(experiment.load(file), Place(begun), OPTIONS) == {}
  for name in POINTS:
    same_point(swept[0] / name, begun / name)
  one, other = (json.loads((w / 'summary.json').read_text()) for w in (swept[0], begun))
  for told in (one, other):
    for point in told['points'].values():
      point['last'] = timeless(point['last'])
      point.pop('seconds')
  assert one == other


def test_a_point_that_another_process_is_making_comes_last(swept, file, tmp_path, monkeypatch,
                                                           caplog):
  """Whether the other finishes it or dies; and what it waits for is told once."""
  folder = tmp_path / 'w'
  shutil.copytree(swept[0], folder)
  (folder / POINTS[0] / 'finished.json').rename(tmp_path / 'finished.json')
  order, sleeps, make = [], [], sweep._Sweep.make
  monkeypatch.setattr(sweep._Sweep, 'make', lambda self, point, board: order.append(
    point.name) or make(self, point, board))
  monkeypatch.setattr(loop, 'train', None)  # would be the point's failure
  with contextlib.ExitStack() as other, caplog.at_level('INFO', 'rlhf_jax'):
    other.enter_context(workdir.lock(folder / POINTS[0]))

    def sleep(seconds):
      sleeps.append(seconds)
      if len(sleeps) == 3:
        shutil.copy(tmp_path / 'finished.json', folder / POINTS[0])
        other.close()
    # Not time.sleep itself: threads of others sleep too.
    monkeypatch.setattr(workdir, 'time',
                        types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    assert sweep.run(experiment.load(file), Place(folder), OPTIONS) == {}
  assert order == [*POINTS, *[POINTS[0]] * 3] and len(sleeps) == 3
  assert caplog.text.count(f'waiting for the process at work in {folder / POINTS[0]}') == 1
  assert caplog.text.count(f'{POINTS[0]}: another process is making it; the others first') == 1


def test_a_point_begun_with_other_data_stops_the_sweep(begun, file, monkeypatch):
  def stop(self, step, row, show=sweep.Board.progress):
    if step == 3:
      raise KeyboardInterrupt
  with monkeypatch.context() as patch:
    patch.setattr('rlhf_jax.runtime.board._Line.show', stop)
    with pytest.raises(KeyboardInterrupt):
      sweep.run(experiment.load(file), Place(begun), OPTIONS)
  there = begun / POINTS[0] / 'inputs.json'
  told = json.loads(there.read_text())
  assert {'prompts.0', 'pretraining.0', 'evaluation_prompts.0'} < told['sha256'].keys()
  told['sha256']['prompts.0'] = 'another'
  there.write_text(json.dumps(told))
  looked_at = []
  monkeypatch.setattr(sweep.inputs, 'warn', lambda name, *_: looked_at.append(name))
  with pytest.raises(BadInput, match=r'was begun with other data: the content of prompts\.0'):
    sweep.run(experiment.load(file), Place(begun), OPTIONS)
  assert sorted(looked_at) == ['reward', 'sft']  # what the points are made from
  assert not (begun / POINTS[0] / 'failed.json').exists()


def test_points_that_would_be_measured_with_other_prompts_stop_the_sweep(
    swept, file, tmp_path):
  there = shutil.copytree(swept[0], tmp_path / 'w')
  shutil.rmtree(there / POINTS[1])
  told = next((there / 'start').glob('*/samples/inputs.json'))
  known = json.loads(told.read_text())
  assert {'evaluation_prompts.0', 'judge'} <= known['sha256'].keys()
  for name in ('evaluation_prompts.0', 'judge'):
    told.write_text(json.dumps(known | {'sha256': known['sha256'] | {name: 'another'}}))
    with pytest.raises(BadInput, match=rf'was begun with other data: the content of {name}'):
      sweep.run(experiment.load(file), Place(there), OPTIONS)
  assert not (there / POINTS[1] / 'failed.json').exists()


def test_points_as_jobs_of_their_own_write_the_same(swept, begun, file):
  """In any order; the last of them writes the tables."""
  for name in POINTS[::-1]:
    assert not (begun / 'sweep.parquet').exists()
    assert sweep.run(experiment.load(file), Place(begun), OPTIONS, only=name) == {}
  for name in POINTS:
    same_point(swept[0] / name, begun / name)
  tables = [pyarrow.parquet.read_table(w / 'sweep.parquet') for w in (swept[0], begun)]
  kept = [name for name in tables[0].column_names if timeless({name: 0})]
  assert tables[0].select(kept).equals(tables[1].select(kept))


def test_a_line_in_the_making_keeps_no_other_job_from_its_end(swept, tmp_path):
  metrics = (swept[0] / POINTS[0] / 'metrics.jsonl').read_bytes()
  (tmp_path / POINTS[0]).mkdir()
  (tmp_path / POINTS[0] / 'metrics.jsonl').write_bytes(metrics + b'{"step": 7, "k')
  point = grid.Point(POINTS[0], {}, configs.PPO())
  assert [row['step'] for row in sweep.tables.read(tmp_path, point, '').metrics] == [*range(1, 7)]


def test_a_new_value_runs_what_is_new(swept, file, tmp_path, monkeypatch):
  shutil.copytree(swept[0], tmp_path / 'w')
  larger = file.with_name('larger.py')
  larger.write_text(FILE.replace('(0.0, 0.3)', '(0.0, 0.1, 0.3)'))
  trained, train = [], loop.train
  monkeypatch.setattr(loop, 'train', lambda name, *a, **k: trained.append(name) or train(
    name, *a, **k))
  with counted() as (compiled, _):
    assert sweep.run(experiment.load(larger), Place(tmp_path / 'w'), OPTIONS) == {}
  assert trained == ['kl_coef_0.1-ptx_ratio_0-seed_0', 'kl_coef_0.1-ptx_ratio_0-seed_1']
  assert compiled == []
  summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
  assert len(summary['points']) == 7 and len(summary['variants']) == 4


def test_a_point_that_diverges_is_told_and_the_rest_goes_on(begun, file, monkeypatch, capsys):
  """Exit code 1, with the point and the reason in the last line."""
  monkeypatch.setattr(loop, 'stopping', loop.Stopping())
  wild = file.with_name('wild.py')
  wild.write_text(FILE.replace(
    "{'kl_coef': (0.0, 0.3), 'ptx_ratio': (0.0,), 'seed': (0, 1)}",
    "{'policy_optimizer.learning_rate': (1e30,)}, {'response_length': (99,)}"))
  code = __main__.main(['sweep', str(wild), '--workdir', str(begun)])
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert code == 1 and last.startswith('2 of 3 points failed: policy_optimizer.learning_rate_1e+30')
  assert 'at step' in last and 'tokens do not fit' in last
  summary = json.loads((begun / 'summary.json').read_text())
  assert [point['status'] for point in summary['points'].values()] == [
    'failed', 'failed', 'finished']
  reason = json.loads((begun / 'policy_optimizer.learning_rate_1e+30' / 'failed.json').read_text())
  assert 'not finite' in reason['reason'] or 'is nan' in reason['reason'] or 'inf' in reason[
    'reason']
  assert 'Failed:' in (begun / 'report.html').read_text()


def test_a_fault_of_a_point_keeps_its_traceback(begun, file, monkeypatch):
  def fault(name, *_, train=loop.train, **__):
    raise ZeroDivisionError('a bug')
  monkeypatch.setattr(loop, 'train', fault)
  failed = sweep.run(experiment.load(file), Place(begun), OPTIONS, only=POINTS[0])
  assert failed == {POINTS[0]: 'ZeroDivisionError: a bug'}
  told = json.loads((begun / POINTS[0] / 'failed.json').read_text())
  assert 'test_sweep.py' in told['traceback']


def test_another_way_to_measure_is_refused_before_any_work(swept, file, tmp_path, monkeypatch):
  shutil.copytree(swept[0], tmp_path / 'w')
  monkeypatch.setattr(loop, 'train', None)
  changed = overrides.apply(experiment.load(file), [('sweep.spacing', '0.5')])
  with pytest.raises(BadInput, match='the way it is measured had another configuration'):
    sweep.run(changed, Place(tmp_path / 'w'), OPTIONS)


def test_the_table_has_a_row_a_point_and_step(swept):
  table = pyarrow.parquet.read_table(swept[0] / 'sweep.parquet')
  assert table.column_names[:5] == ['point', 'kl_coef', 'ptx_ratio', 'seed', 'step']
  # A float32 of the update's is another number than the grid's.
  assert {*table['kl_coef'].to_pylist()} == {0.0, 0.3}
  assert table['update_kl_coef'].to_pylist()[-1] == pytest.approx(0.3)
  types = {name: str(table.schema.field(name).type) for name in table.column_names}
  assert (types.pop('point'), types.pop('seed'), types.pop('step')) == ('string', 'int64', 'int64')
  assert set(types.values()) == {'double'}
  told = table.to_pylist()
  assert [(row['point'], row['step']) for row in told] == [
    (point, step) for point in POINTS for step in range(UPDATES + 1)]
  for name in ('gold', 'proxy', 'win_rate', 'evaluation_kl', 'evaluation_kl_k3', 'repetition',
               'evaluation_response_length', 'pretraining_loss', 'evaluation_eos_rate'):
    assert {name, f'{name}_low', f'{name}_high'} <= set(types), name
    for row in told:
      if row[name] is not None:
        assert row[f'{name}_low'] <= row[name] <= row[f'{name}_high']
  assert {'score', 'kl', 'distinct_2', 'reward_accuracy', 'reward_ece', 'refusal_rate',
          'hallucination_rate', 'truthful_rate', 'rude_rate', 'constraint_rate'} <= set(types)
  starts = [row for row in told if row['step'] == 0]
  assert all(row['evaluation_kl'] == pytest.approx(0, abs=1e-4) for row in starts)
  assert all(row['gold'] is not None for row in told if row['step'] in (0, 1, UPDATES))


def test_what_is_measured_of_the_start(swept):
  summary = json.loads((swept[0] / 'summary.json').read_text())
  (key, start), = summary['starts'].items()
  assert key.startswith('sft-') and key.endswith('/reward')
  assert [row['n'] for row in start['best_of_n']] == [1, 2, 4]
  assert start['best_of_n'][2]['kl'] == pytest.approx(math.log(4) - 3 / 4)
  proxies = [row['proxy'] for row in start['best_of_n']]
  assert proxies == sorted(proxies)
  assert 'gold_units' in start
  assert {point['start'] for point in summary['points'].values()} == {key}


def test_more_samples_of_the_start_keep_those_there_are(swept, file, tmp_path):
  folder = tmp_path / 'w'
  shutil.copytree(swept[0], folder)
  pieces = lambda: {path: path.read_bytes() for path in folder.glob('start/*/samples/**/*.json')}
  before = pieces()
  # With every point finished too: nothing is trained, the start is measured with what is new.
  seven = overrides.apply(experiment.load(file), [('sweep.best_of', '7')])
  assert sweep.run(seven, Place(folder), OPTIONS) == {}
  start, = json.loads((folder / 'summary.json').read_text())['starts'].values()
  assert start['best_of_n'][-1]['kl'] == pytest.approx(math.log(7) - 6 / 7)
  assert before.items() < pieces().items()
  same_point(swept[0] / POINTS[0], folder / POINTS[0])
  for path in (folder / POINTS[0]).iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  more = overrides.apply(experiment.load(file), [('sweep.best_of', '6')])
  assert sweep.run(more, Place(folder), OPTIONS) == {}
  assert before.items() < pieces().items()
  same_point(swept[0] / POINTS[0], folder / POINTS[0])


def test_a_start_that_cannot_be_measured_fails_its_points_and_not_the_sweep(
    swept, file, tmp_path, monkeypatch):
  folder = tmp_path / 'w'
  shutil.copytree(swept[0], folder)
  seven = overrides.apply(experiment.load(file), [('sweep.best_of', '7')])

  asked = []

  def broken(*_):
    asked.append(1)
    raise ValueError('no judge today')
  monkeypatch.setattr(sweep.start, 'baseline', broken)
  reason = 'its start: ValueError: no judge today'
  assert sweep.run(seven, Place(folder), OPTIONS, only=POINTS[0]) == {POINTS[0]: reason}
  assert sweep.run(seven, Place(folder), OPTIONS) == dict.fromkeys(POINTS, reason)
  assert len(asked) == 2  # once a sweep, not once a point
  failure, = folder.glob('start/*/*.failed.json')
  assert 'in broken' in json.loads(failure.read_text())['traceback']
  told = json.loads((folder / 'summary.json').read_text())['points']
  assert {name: (point['status'], point['reason']) for name, point in told.items()} == {
    name: ('failed', reason) for name in POINTS}
  monkeypatch.undo()
  assert sweep.run(seven, Place(folder), OPTIONS, only=POINTS[0]) == {}
  told = json.loads((folder / 'summary.json').read_text())['points']
  assert {point['status'] for point in told.values()} == {'finished'}  # one start for all
  assert not failure.exists()
  same_point(swept[0] / POINTS[0], folder / POINTS[0])


def test_a_second_reward_model_stands_in_for_a_judge(begun, file):
  without = file.with_name('without.py')
  without.write_text(FILE.replace('judge=world.GOLD,', '').replace(
    "base='ppo',", "base='ppo', stand_in='second',"))
  assert sweep.run(experiment.load(without), Place(begun), OPTIONS, only=POINTS[0]) == {}
  row = rows(begun / POINTS[0] / 'metrics.jsonl')[-1]
  assert row['win_rate'] is not None and row['gold'] != row['proxy']
  assert 'hallucination_rate' not in row
  told = json.loads((begun / 'sweep.json').read_text())
  assert told['judge'] == 'second reward model'


def test_a_sweep_on_model_folders_makes_no_run_and_knows_their_models(begun, file, monkeypatch):
  """A folder's path says nothing of what is in it; no run named would be all runs of the file."""
  monkeypatch.setattr(loop, 'run_file', None)
  folders = file.with_name('folders.py')
  folders.write_text(FILE.replace("policy='sft', reward='reward'",
                                  f"policy='{begun}/sft', reward='{begun}/reward'"))
  read = experiment.load(folders)
  points = grid.points(read)

  def start():
    work = sweep._Sweep(read, points, Place(begun), OPTIONS)
    work.prepare([])
    return work.start_of(points[POINTS[0]]), work._of(points[POINTS[0]])

  found = [start()]
  for name in ('sft', 'reward'):
    config = begun / name / 'config.json'
    config.write_text(json.dumps(json.loads(config.read_text()) | {'hash': 'another'}))
    found.append(start())
  (one, one_of), (two, two_of), (three, three_of) = found
  assert one != two == three
  assert one_of != two_of != three_of
  assert sweep.run(read, Place(begun), OPTIONS, only=POINTS[0]) == {}
  assert not (begun / 'ppo').exists()


@pytest.mark.parametrize(('options', 'replaced', 'advice'), [
  ([('ppo.gae_lambda', '0.5')], ('', ''), r'--ppo\.gae_lambda 0\.95$'),
  ([], ('(0.0, 0.3)', '(0.0, 0.3000001)'), r'put back kl_coef 0\.3 in sweep\.grid$')])
def test_another_configuration_is_told_with_options_that_a_sweep_takes(
    swept, file, options, replaced, advice):
  other = file.with_name('other.py')
  other.write_text(FILE.replace(*replaced) if options == [] else FILE)
  changed = overrides.apply(experiment.load(other), options)
  with pytest.raises(BadInput, match=advice):
    sweep.run(changed, Place(swept[0]), OPTIONS)


def test_no_evaluation_prompts(begun, file):
  none = file.with_name('none.py')
  none.write_text(FILE.replace("evaluation_prompts=(world.prompts_source('validation', 12),)",
                               ''))
  with pytest.raises(BadInput, match='measures every point on evaluation_prompts'):
    sweep.run(experiment.load(none), Place(begun), OPTIONS)


# --------------------------------------------------------------------------------- where to look


def due(path, kls, spacing, last):
  """The steps that are evaluated, asked as the loop asks: row t is there when step t + 1 is."""
  path.write_text('')
  spaced, found = sweep.Spaced(path, spacing, last), []
  for step in range(1, last + 1):
    if spaced.due(step):
      found.append(step)
    with path.open('a') as file:
      file.write(json.dumps({'step': step, 'kl': kls[step - 1]}) + '\n')
  return found


def test_steps_are_spaced_in_the_root_of_kl(tmp_path):
  kls = [(0.1 * step) ** 2 for step in range(20)]  # √KL grows by a tenth a step
  assert due(tmp_path / 'm', kls, 0.4999, 20) == [1, 7, 12, 17, 20]
  falling = [1.0, 4.0, 1.0, 4.1, 0.0, None, 9.1, 0.0, 0.0]
  assert due(tmp_path / 'm', falling, 1.0, 9) == [1, 2, 3, 8, 9]
  assert due(tmp_path / 'm', [-1e-3] * 5, 0.25, 5) == [1, 5]


def test_a_restart_looks_where_the_first_start_would_have(tmp_path):
  """Whatever is written after the row before the step does not count."""
  kls = [0.07 * step ** 1.7 for step in range(30)]
  whole = due(tmp_path / 'm', kls, 0.3, 30)
  assert len(whole) > 5
  for step in range(1, 31):
    (tmp_path / 'm').write_text(''.join(
      json.dumps({'step': s, 'kl': kls[s - 1]}) + '\n' for s in range(1, step)))
    assert sweep.Spaced(tmp_path / 'm', 0.3, 30).due(step) == (step in whole)


def test_points_have_fields_of_their_own(file):
  point = grid.points(experiment.load(file))[POINTS[4]]
  neutral, numbers = sweep._neutral(point.config)
  assert (neutral.kl_coef, neutral.ptx_coef, neutral.policy_optimizer.learning_rate) == (0, 0, 0)
  assert dataclasses.replace(neutral, seed=1) == dataclasses.replace(
    sweep._neutral(dataclasses.replace(point.config, kl_coef=0.7))[0], seed=1)
  assert {name: float(value) for name, value in numbers.items()} == pytest.approx(
    {'kl_coef': 0.3, 'ptx_coef': 1.0, 'policy_learning_rate': 3e-3, 'value_learning_rate': 3e-3})
