"""The programs of experiments/bench at toy sizes: they run to their RESULT line, and what they
count is what a sum by hand gives. What they time is nobody's business here.
"""

import collections
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.model import transformer
from rlhf_jax.stages import language, ppo, reward
from rlhf_jax.stages.stage import Parent

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCH = ROOT / 'experiments' / 'bench'
STEP = {'impl', 'task', 'size', 'rows', 'length', 'parameters', 'tokens_per_second', 'sec_per_step',
        'sec_min', 'cpu_s_per_step', 'gflop_per_step', 'gflop_per_s', 'matmul_gflop_per_s'}

pytestmark = pytest.mark.usefixtures('quick_compilation')


def load(name):
  """A module of experiments/bench, which find each other as scripts do."""
  if str(BENCH) not in sys.path:
    sys.path.insert(0, str(BENCH))
  return importlib.import_module(name)


def result_of(output):
  return load('work').last_result(output)


def run(name, *words, check=True):
  """Runs a program as a user does; (its result, stderr)."""
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {
    'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  done = subprocess.run([sys.executable, str(BENCH / name), *map(str, words)], cwd=ROOT, text=True,
                        capture_output=True, env=environment, stdin=subprocess.DEVNULL)
  assert not check or done.returncode == 0, done.stderr[-3000:]
  return result_of(done.stdout) if check else done, done.stderr


# ----- by hand


def forward(model, rows, queries, keys):
  """Matrix products of one pass of the blocks: every weight twice, every pair of query and key; of
  rows of 128, each quarter's queries and the keys up to its end.
  """
  keys = keys * 5 / 8 if queries == 128 else keys
  return rows * queries * model.layers * (24 * model.width**2 + 4 * keys * model.width)


def logits(model, positions):
  return 2 * positions * model.width * model.vocabulary


# ----- steps


@pytest.mark.parametrize('name', ['sft', 'reward'])
def test_a_step_tells_what_it_counts(name, capsys):
  load('training_step').main(name, ['--size', 'toy', '--steps', '1'])
  told = result_of(capsys.readouterr().out)
  assert told.keys() >= STEP and (told['impl'], told['task']) == ('rlhf_jax', name)
  model = configs.Model(**load('work').SIZES['toy'], positions='learned')
  first = dataclasses.replace(model, layers=model.layers - 1)
  # Of the last layer keys and values of all positions, all else where it is asked for.
  keys = lambda positions: 4 * positions * model.width**2
  asked = lambda positions: positions * (20 * model.width**2 + 4 * 128 * model.width)
  if name == 'sft':
    last = 16 * (keys(128) + asked(64))
    flops = 3 * (forward(first, 16, 128, 128) + last + logits(model, 16 * 64))
  else:  # a prompt of 64 is read once before its two completions; what it leads to is not used
    last = 8 * keys(64) + 16 * (keys(64) + asked(1))
    before = forward(first, 8, 64, 64) + forward(first, 16, 64, 128)
    unused = 8 * (20 * model.width**2 + 4 * 64 * model.width)
    flops = 3 * (before + last + 2 * 16 * model.width) + unused
  assert told['gflop_per_step'] * 1e9 == pytest.approx(flops, rel=1e-4)
  assert told['tokens_per_second'] * told['sec_per_step'] == pytest.approx(16 * 128, rel=1e-3)
  assert told['loss_last'] < told['loss_first']
  width, blocks = model.width, model.layers * (12 * model.width**2 + 13 * model.width)
  tables = (model.vocabulary + model.context) * width
  assert told['parameters'] == blocks + tables + 2 * width + (name == 'reward') * (width + 1)


def test_a_peer_without_torch_is_told(tmp_path, capsys):
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\nexit 1\n')
  python.chmod(0o755)
  with pytest.raises(SystemExit) as ended:
    load('training_step').main('sft', ['--peer', '--peer-python', str(python)])
  assert ended.value.code == 2
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert str(python) in last and 'pip install torch' in last and '--peer-python' in last


@pytest.mark.long
@pytest.mark.parametrize('name', ['sft', 'reward'])
def test_ours_and_the_peer_in_turns(name):
  pytest.importorskip('transformers')
  pytest.importorskip('torch')
  told, _ = run(f'{name}_step.py', '--size', 'toy', '--steps', 1, '--interleave', 1)
  assert told.keys() >= STEP and told['peer']['impl'] == 'transformers'
  assert told['ratio'] == pytest.approx(
    told['tokens_per_second'] / told['peer']['tokens_per_second'], rel=1e-2)


# ----- PPO updates


@functools.cache
def made(compute, scan=True):
  """(model, config, stage, state, frozen, batch) of a small PPO-ptx run."""
  update = load('ppo_update')
  model = configs.Model(layers=2, width=32, heads=2, vocabulary=128, context=32, compute=compute,
                        scan=scan)
  config = dataclasses.replace(update.CONFIG, episodes=8, minibatch=4, microbatch=2, ptx_ratio=1.0,
                               ptx_coef=1.0, prompt_length=10, response_length=6, text_length=16)
  return model, config, *update.shaped(model, config), update.batch_of(model, config)


@pytest.mark.parametrize('compute', ['float32', 'bfloat16'])
def test_the_phases_are_the_update(compute):
  counted = load('measure').counted
  _, config, stage, state, frozen, batch = made(compute)
  models, key = stage.update.args[1], jax.random.key(0)
  whole = counted(stage.update, state, frozen, batch, key, trips=5).phases
  bound = [functools.partial(f, config, models)
           for f in (ppo.roll_out, ppo.scored, ppo.epochs_of_minibatches)]
  rollout = jax.eval_shape(bound[0], state.policy.params, batch['prompts'], key)
  seen, _ = jax.eval_shape(bound[1], state, frozen, rollout)
  apart = [counted(bound[0], state.policy.params, batch['prompts'], key, trips=5),
           counted(bound[1], state, frozen, rollout),
           counted(bound[2], state, seen, batch['pretraining'], key)]
  assert [whole['rollout'], whole['scoring'], whole['training'] + whole['ptx']] == [
    counts.total for counts in apart]
  assert whole['ptx'] > 0


@pytest.mark.parametrize('scan', [True, False])
def test_the_arithmetic_of_an_update_by_hand(scan, monkeypatch):
  """What is counted looks at every key; the arithmetic at those that are not masked."""
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')  # others score once more
  model, config, stage, state, frozen, batch = made('float32', scan)
  found = load('measure').counted(stage.update, state, frozen, batch, jax.random.key(0), trips=5)
  rows, prompt, response, total = 8, 10, 6, 16
  each, full = 4 * model.width * rows, model.layers - (not scan)  # layers that ask everywhere
  looks = lambda first, last: sum(range(first, last + 1))  # of the positions first … last
  whole = full * (prompt**2 + 9 * total**2) + model.layers * (response - 1) * total
  masked = (full * (looks(1, prompt) + 9 * looks(1, total)) +
            model.layers * looks(prompt + 1, total - 1))
  if not scan:  # the prompt's last, 2 scored and 6 trained times the response, the last of a row
    whole += prompt + 8 * response * total + total
    masked += prompt + 8 * looks(prompt, total - 1) + total
  heads = 2 * model.width * rows * (1 + response + 3 * response)
  wanted = load('ppo_update').arithmetic(model, config) + each * (whole - masked) + heads
  assert sum(found.phases[name] for name in ('rollout', 'scoring', 'training')) == pytest.approx(
    wanted, rel=1e-6)


def test_layers_between_the_first_and_the_last_are_alike():
  update, measure, part = load('ppo_update'), load('measure'), load('gpu_part')
  model, config, *_, batch = made('float32', False)
  count = functools.partial(part.update_flops, config, batch, False)
  model = dataclasses.replace(model, layers=6, remat=True)
  whole, found = count(model), measure.by_layers(count, model)
  assert found.recomputed > 0 and update.CONFIG.episodes == 64
  for name in whole.phases:
    assert found.phases[name] == pytest.approx(whole.phases[name], rel=1e-9)
  assert (found.decoding, found.recomputed) == pytest.approx(
    (whole.decoding, whole.recomputed), rel=1e-9)


def test_a_kernel_counts_as_half_of_its_square():
  part, measure = load('gpu_part'), load('measure')
  model = configs.Model(layers=2, width=64, heads=2, vocabulary=64, context=160,
                        compute='bfloat16', scan=True)
  _, config, *_ = made('bfloat16')
  config = dataclasses.replace(config, prompt_length=100, response_length=60, text_length=100)
  batch = load('ppo_update').batch_of(model, config)
  plain, kernel = (part.update_flops(config, batch, with_kernel, model).phases
                   for with_kernel in (False, True))
  square = 2 * 8 * 160 * 160 * 2 * 2 * model.width  # layers, rows, products of scores and values
  assert plain['rollout'] == kernel['rollout']
  assert plain['scoring'] - kernel['scoring'] == 4 * square / 2  # policy, reference, value, reward
  assert plain['training'] - kernel['training'] == 2 * 3 * square / 2
  assert plain['ptx'] == kernel['ptx'] and measure.attention.KERNELS  # rows of 100 are too short


def test_off_the_cpu_the_sampled_tokens_are_scored_again(monkeypatch):
  """Chips round float32 products in another way while they decode; the ratio must begin at 1."""
  part = load('gpu_part')
  model, config, *_, batch = made('float32')
  here = part.update_flops(config, batch, False, model).phases
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  there = part.update_flops(config, batch, False, model).phases
  once = forward(model, 8, 16, 16) + logits(model, 8 * 6)
  assert there['scoring'] - here['scoring'] == once
  assert all(here[name] == there[name] for name in ('rollout', 'training', 'ptx'))


@pytest.mark.long
def test_an_update_tells_where_its_seconds_go():
  told, _ = run('ppo_update.py', '--size', 'toy', '--updates', 1)
  assert told.keys() >= {'impl', 'size', 'sec_per_update', 'sec_min', 'cpu_s_per_update'}
  assert told['phase_seconds'].keys() == {'rollout', 'scoring', 'training'}
  assert told['gen_tokens_per_s'] * told['sec_per_update'] == pytest.approx(64 * 48, rel=1e-2)


# ----- cost curves


def test_the_policy_counts_down():
  point, update = load('cost_point'), load('ppo_update')
  model, config = point.settings({'size': 'toy', 'episodes': 16, 'response': 8}, tied=False)
  params = jax.jit(functools.partial(point.counting, model))(jax.random.key(1))
  stage, *_ = update.shaped(model, config, point.Zero())
  batch = update.batch_of(model, config)
  lengths = np.arange(16) % 8 + 1
  batch['prompts']['tokens'][:, -1] = lengths
  rollout = jax.jit(functools.partial(ppo.roll_out, config, stage.update.args[1]))(
    params, batch['prompts'], jax.random.key(2))
  np.testing.assert_array_equal(rollout.mask.sum(axis=1), lengths)
  np.testing.assert_array_equal(rollout.tokens[7, -8:], np.arange(8)[::-1])


def test_lengths_are_what_they_are_called():
  drawn = load('cost_point').drawn
  assert set(drawn('full', 5, 9)) == {9}
  uniform, geometric = drawn('uniform', 4000, 64), drawn('geometric/8', 4000, 64)
  assert (uniform.min(), uniform.max()) == (1, 64) and abs(uniform.mean() - 32.5) < 1
  assert geometric.min() == 1 and geometric.max() <= 64 and abs(geometric.mean() - 8) < 0.5
  with pytest.raises(ValueError, match='geometric/N'):
    drawn('normal', 4, 4)


def test_the_plan_holds_every_point_once():
  curves = load('cost_curves')
  points = curves.plan(['tiny', 'small'], quick=False)
  shown = [json.dumps(point, sort_keys=True) for point in points]
  assert len(set(shown)) == len(points)
  plain = [point for point in points if 'lengths' not in point]
  for name, wanted in (('episodes', curves.EPISODES), ('response', curves.RESPONSES)):
    assert {point[name] for point in plain if point['size'] == 'small'} == set(wanted)
  assert {point['size'] for point in plain} == set(curves.MODELS)
  lines = curves.along([point | {'parameters': 1} for point in plain], 'episodes', curves.BASE)
  assert {size: len(rows) for size, rows in lines.items()} == {'tiny': 5, 'small': 5}


@pytest.mark.long
def test_cost_curves_quickly(tmp_path):
  told, said = run('cost_curves.py', '--quick', '--out', tmp_path)
  assert told['failed'] == [] and ' left' in said
  assert [row['episodes'] for row in told['curves']] == [16, 32]
  model = configs.Model(**load('work').SIZES['toy'])
  config = dataclasses.replace(load('ppo_update').CONFIG, episodes=32, response_length=8)
  assert told['curves'][1]['gflop_per_update'] == pytest.approx(
    load('ppo_update').arithmetic(model, config) / 1e9, rel=1e-3)
  assert all(row['peak_mb'] > 0 for row in told['curves'])
  assert [row['name'] for row in told['early_exit']] == ['full', 'geometric/4']
  assert told['early_exit'][0]['rollout_share'] == 1
  assert (tmp_path / 'cost_curves.csv').read_text().count('\n') == 3
  assert ElementTree.parse(tmp_path / 'cost_curves.svg').getroot().tag.endswith('svg')


# ----- startup


def test_startup_says_what_is_missing(tmp_path):
  done, said = run('startup.py', '--repeats', 1, '--workdir', tmp_path, check=False)
  assert done.returncode == 2 and 'reward is not finished' in said.splitlines()[-1]


@pytest.mark.long
def test_startup_times_the_first_step_twice(tmp_path):
  file = tmp_path / 'toy.py'
  file.write_text('''
import dataclasses, runpy
from rlhf_jax import miniature as world
from rlhf_jax.configs import Model
found = runpy.run_path('experiments/quickstart.py')['runs']
text = (world.text_source('train', 300),)
changes = {
  'gpt': {'data': text, 'steps': 2, 'model': Model(layers=1, width=32, heads=2, context=64)},
  'sft': {'data': (world.demonstrations_source('sft', 60),), 'pretraining': text, 'epochs': 1},
  'rankings': {'prompts': (world.prompts_source('reward', 24),)}, 'reward': {},
  'ppo_ptx': {'prompts': (world.prompts_source('ppo', 200),), 'pretraining': text, 'updates': 30}}
runs = {name: dataclasses.replace(found[name], **change) for name, change in changes.items()}
''')
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  subprocess.run([sys.executable, '-m', 'rlhf_jax', 'run', str(file), 'reward', '--workdir',
                  str(tmp_path / 'w')], cwd=ROOT, check=True, env=environment, capture_output=True)
  told, _ = run('startup.py', '--file', file, '--workdir', tmp_path / 'w', '--starts', 1,
                '--repeats', 1)
  assert told['list_seconds'] > 0
  # which is the quicker is for a quiet machine to say
  assert min(told['first_step_cold_seconds'], told['first_step_cached_seconds']) > 0
  assert min(told['cold_compile_seconds'] + told['cached_compile_seconds']) >= 0
  assert not (tmp_path / 'w' / 'ppo_ptx').exists()


# ----- a GPU's program, here on the CPU


@pytest.mark.parametrize(('name', 'wanted'), [('gpt2_124m', 124_475_904),
                                              ('gpt3_1b3', 1_313_722_368)])
def test_the_models_of_the_gpu_are_what_they_are_called(name, wanted):
  """GPT-2's 124,439,808 parameters and 47 rows that pad the table; settings that go together."""
  gpu = load('gpu')
  wish = lambda part: gpu.wish_of(f'{name}/{part}', gpu.MODELS, dry=False)
  model = configs.Model(**wish('sft')['model'])
  shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == wanted
  sft, pairs, update = (wish(part) for part in ('sft', 'reward', 'ppo'))
  language.make(configs.Language(
    data=(configs.Source(kind='demonstrations'),), model=model, batch=sft['rows'],
    microbatch=sft['microbatch'], prompt_length=sft['length'], response_length=0), {}, None)
  parent = Parent(model, None, shapes)
  reward.make(configs.Reward(batch=pairs['rows'] // 2, microbatch=pairs['microbatch']),
              {'init_from': parent}, None)
  fields = {k: v for k, v in update.items() if k in configs.PPO.__dataclass_fields__}
  ppo.make(configs.PPO(**fields), {'policy': parent, 'reward': parent}, None)


def test_bytes_of_a_decoding_step_by_hand(monkeypatch):
  part = load('gpu_part')
  model = configs.Model(layers=3, width=32, heads=4, kv_heads=2, vocabulary=128, context=24,
                        positions='learned', compute='bfloat16')
  shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
  kernels = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 8 * 32 * 32) + 128 * 32
  vectors = 3 * (32 + 2 * 16 + 32 + 4 * 32 + 32 + 4 * 32) + 2 * 32  # stay float32
  slot = 2 * 3 * 5 * 16
  assert part.decoding_bytes(model, shapes, 5, 12, 8) == 2 * kernels + 4 * vectors + 2 * 20 * slot
  monkeypatch.setattr(part.generate, 'LOOPS', {jax.default_backend(): 2})
  monkeypatch.setattr(part.generate, 'SHORTEST', 4)  # three steps with 16 slots, four with 20
  assert part.decoding_bytes(model, shapes, 5, 12, 8) == round(
    2 * kernels + 4 * vectors + 2 * (3 * 16 + 4 * 20) / 7 * slot)


def test_a_share_of_the_bandwidth_by_hand():
  streamed = load('gpu_part').streamed
  assert streamed(3_000_000_000, 2.0, 4, 24e9) == {
    'seconds_per_step': 0.5, 'gb_per_s': 6.0, 'share_of_copy': 0.25}
  assert set(streamed(1000, -1e-5, 4, 24e9).values()) == {None}  # noise is no bandwidth


def test_outcomes_of_a_suite_that_was_cut_off():
  told = load('gpu').outcomes('''
tests/a.py::one
[gw0] [  1%] PASSED tests/a.py::one[x y]
[gw1] [  2%] FAILED tests/a.py::two
[gw0] [  3%] SKIPPED tests/b.py::three
[gw0] [100%] ERROR tests/b.py::four
FAILED tests/a.py::two - AssertionError
''')
  assert told == {'passed': 1, 'skipped': 1, 'failed': ['tests/a.py::two', 'tests/b.py::four']}


def test_only_what_a_machine_lacks_is_installed(tmp_path, monkeypatch):
  """A version that requirements.txt allows stays; what is absent or too old comes."""
  wheels, found = load('wheels'), importlib.metadata.version
  monkeypatch.setattr(importlib.metadata, 'version',
                      lambda name: '0.1' if name == 'flax' else found(name))
  for name in ('flax', 'nobody_has_this', 'numpy'):
    (tmp_path / f'{name}-0.0.1-py3-none-any.whl').touch()
  assert [path.name.split('-')[0] for path in wheels.missing(tmp_path)] == [
    'flax', 'nobody_has_this']


def test_no_gpu_measures_nothing_and_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # one that is there is not seen
  done, error = run('gpu.py', '--out', tmp_path / 'gpu.json', check=False)
  last = error.strip().splitlines()[-1]
  assert done.returncode == 2 and not (tmp_path / 'gpu.json').exists()
  assert 'has no GPU here (' in last and '--dry' in last and '$PYTHON' in last


PROGRAM = """HloModule jit_run, is_scheduled=true

%update (p0: f32[8,100], p1: f32[1,100], p2: s32[]) -> f32[8,100] {
  %p0 = f32[8,100]{1,0} parameter(0)
  %p1 = f32[1,100]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %put = f32[8,100]{1,0} dynamic-update-slice(%p0, %p1, %p2, %zero)
}

%layer (q0: f32[8,100], q1: s32[]) -> bf16[1,100] {
  %q0 = f32[8,100]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %nought = s32[] constant(0)
  %one = f32[1,100]{1,0} dynamic-slice(%q0, %q1, %nought), dynamic_slice_sizes={1,100}
  ROOT %cast = bf16[1,100]{1,0} convert(%one)
}

%body (state: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %state = (s32[], f32[8,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %all = f32[8,100]{1,0} get-tuple-element(%state), index=1
  %row = bf16[1,100]{1,0} fusion(%all, %i), calls=%layer, metadata={op_name="jit(run)/take"}
  %wide = f32[1,100]{1,0} convert(%row)
  %new = f32[8,100]{1,0} fusion(%all, %wide, %i), kind=kLoop, calls=%update
  ROOT %next = (s32[], f32[8,100]{1,0}) tuple(%i, %new)
}

%more (was: (s32[], f32[8,100])) -> pred[] {
  %was = (s32[], f32[8,100]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[8,100]) -> f32[8,100] {
  %x = f32[8,100]{1,0} parameter(0)
  %start = s32[] constant(0)
  %copy.1 = f32[8,100]{1,0} copy(%x)
  %given = (s32[], f32[8,100]{1,0}) tuple(%start, %copy.1)
  %loop = (s32[], f32[8,100]{1,0}) while(%given), condition=%more, body=%body
  ROOT %out = f32[8,100]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_what_kernels_move_of_a_slice_and_of_an_update_in_place(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['gpu_compiled.py'])
  found = {kernel.name: kernel for kernel in load('gpu_compiled').kernels(PROGRAM, trips=5)}
  assert found.keys() == {'copy.1', 'row', 'wide', 'new'}
  assert found['copy.1'].moved == 2 * 3200 and found['copy.1'].times == 1
  assert found['row'].moved == 5 * (400 + 4 + 200)  # a row of eight, the index, the result
  assert found['wide'].moved == 5 * (200 + 400)
  assert found['new'].moved == 5 * (400 + 4 + 400)  # the rest stays where it is
  assert found['row'].path.endswith('take') and found['new'].times == 5


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec('jax_cuda12_plugin'), reason='no CUDA plugin')
def test_a_program_for_a_gpu_that_is_not_here():
  told, _ = run('gpu_compiled.py', '--parts', 'gpt2_124m/sft,gpt2_124m/sft_plain')
  fused, plain = (told['parts'][f'gpt2_124m/{name}'] for name in ('sft', 'sft_plain'))
  assert 0.97 * plain['gflop'] < fused['gflop'] < plain['gflop']
  assert fused['moved_gb'] < 0.7 * plain['moved_gb']
  assert fused['temporary_gib'] < 0.7 * plain['temporary_gib']


@pytest.mark.long
def test_the_gpu_program_on_a_cpu(tmp_path):
  wanted = ['rates', 'toy/sft', 'toy/sft_plain', 'toy/reward', 'toy/rollout', 'toy/ppo', 'tests']
  told, _ = run('gpu.py', '--dry', '--workers', 1, '--out', tmp_path / 'gpu.json', '--parts',
                ','.join(wanted))
  written = json.loads((tmp_path / 'gpu.json').read_text())
  assert written == told and told['machine']['versions']['jax'] and told['machine']['date']
  parts = told['parts']
  assert list(parts) == wanted
  assert parts['tests']['passed'] > 10 and parts['tests']['failed'] == []
  model = configs.Model(**load('gpu').TOY['toy']['model'])
  once = forward(model, 8, 16, 16) + logits(model, 8 * 8)  # scanned: the last layer like others
  assert parts['toy/sft']['gflop_per_step'] * 1e9 == pytest.approx(3 * once, rel=1e-2)
  assert [row['batch'] for row in parts['toy/rollout']['batches']] == [2, 4]
  assert {name: len(found['compile_seconds']) for name, found in told['compiled'].items()} == {
    'toy/sft': 1, 'toy/sft_plain': 1, 'toy/reward': 1, 'toy/rollout': 2, 'toy/ppo': 3}
  assert all(parts[name]['cache_hits'] for name in told['compiled'])
  # Found again where they are measured, or there would be two of a kind.
  made = collections.Counter(path.name.split('-')[0] for path in
                             (tmp_path / 'gpu_cache').glob('*-cache'))
  assert [made[f'jit_{name}'] for name in ('one', 'sample', 'roll_out', 'scored')] == [3, 2, 1, 1]
  assert parts['toy/ppo']['phase_seconds'].keys() == {'rollout', 'scoring', 'training', 'ptx'}
  assert sum(parts['toy/ppo']['gflop_phases'].values()) == pytest.approx(
    parts['toy/ppo']['gflop_per_update'] + parts['toy/ppo']['recomputed_gflop'], rel=1e-2)
