"""preflight from outside: exit codes and what it says; and its parts that need no compiler."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.__main__ import main
from rlhf_jax.model import transformer
from rlhf_jax.runtime import abstract, advice, aot, chips, layout, meshes, preflight, search
from rlhf_jax.runtime import experiment as experiments

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE = '''
from rlhf_jax.configs import *
model = Model(layers=2, width=16, heads=4, vocabulary=60, context=16)
runs = {
  'gpt': Language(model=model, batch=8, length=16, steps=3),
  'sft': Language(init_from='gpt', batch=8, data=(Source('demonstrations'),), prompt_length=8,
                  response_length=8),
  'reward': Reward(init_from='gpt', data=(Source('rankings'),), batch=8, k_max=2, prompt_length=8,
                   response_length=8),
  'rankings': Collect(policy='gpt'),
  'ppo': PPO(policy='gpt', reward='reward', episodes=16, minibatch=8, ptx_ratio=1.0, updates=7,
             prompt_length=8, response_length=8, text_length=16),
}
'''
needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec('libtpu'),
                                  reason="libtpu is not installed: pip install -e '.[tpu]'")


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'tiny.py'
  path.write_text(FILE)
  return path


@pytest.fixture
def made(file):
  """(run, fields) -> the run by shapes."""
  def make(name='ppo', **changes):
    experiment = experiments.load(file)
    runs = experiment.runs | {name: dataclasses.replace(experiment.runs[name], **changes)}
    return abstract.make(dataclasses.replace(experiment, runs=runs), name)

  return make


@pytest.fixture
def uncompiled(monkeypatch):
  """The compiler answers what a test appends; the requests are kept."""
  answers, asked = [], []

  def answer(wish, mesh):
    asked.append((wish, mesh))
    return answers.pop(0)

  monkeypatch.setattr(preflight, 'compiled', answer)
  monkeypatch.setattr(search, 'compiled', answer)
  return answers, asked


def told(capsys, *words):
  """(exit code, standard output, last line of standard error)."""
  code = main(['preflight', *map(str, words)])
  out, error = capsys.readouterr()
  return code, out, (error.strip().splitlines() or [''])[-1]


# ---------------------------------------------------------------- from outside


def test_it_fits(file, tmp_path):
  """A process as a user starts it; the environment of a machine with another accelerator is no
  hindrance.
  """
  strange = {'JAX_PLATFORMS': 'tpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=3',
             'TPU_NAME': 'nowhere', 'LIBTPU_INIT_ARGS': '--no_such_flag'}
  out = tmp_path / 'told.json'
  done = subprocess.run(
    [sys.executable, '-m', 'rlhf_jax', 'preflight', str(file), 'ppo', '--topology', 'cpu:4',
     '--json', str(out), '--ppo.rollout_chunks', '2'], cwd=ROOT, env=os.environ | strange,
    capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert 'ppo on cpu:4: fits' in done.stdout
  found = json.loads(out.read_text())
  assert found['fits'] and found['devices'] == 4
  assert found['chosen'] == {'mesh.data': 1, 'mesh.fsdp': 4, 'mesh.tensor': 1, 'rollout_chunks': 2,
                             'microbatch': 0}
  answer = found['compiled']
  assert found['bytes']['arguments'] < answer['peak'] == found['needed_bytes']
  assert answer['arguments'] == pytest.approx(found['bytes']['arguments'], rel=0.01)
  assert found['flops_total'] == sum(found['flops'].values()) > 0
  assert answer['moved']['training']['all-gather'] > 0
  for word in ('parameters', 'optimizer', 'EMA', 'reference', 'reward model', 'KV cache',
               'temporaries', 'FLOPs, ptx', 'decoding reads', 'collectives, rollout',
               '7 updates', 'compiled in'):
    assert word in done.stdout, word


def test_arguments_alone_are_too_large(file, capsys, uncompiled):
  code, out, _ = told(capsys, file, 'ppo', '--topology', 'cpu:4', '--hbm', 1e-5)
  assert code == 3 and not uncompiled[1]
  assert 'does not fit' in out and 'arguments alone' in out and 'change first' in out


def test_the_compiler_says_it_is_too_large(file, capsys, uncompiled):
  uncompiled[0].append({'needed': 3 * 2**30, 'seconds': 1.0, 'largest': []})
  code, out, _ = told(capsys, file, 'ppo', '--topology', 'cpu:4', '--hbm', 2)
  assert code == 3
  assert '1.00 GiB too much' in out and 'change first: --ppo.mesh.fsdp 2' in out


def test_the_compiler_goes_by_the_chip_where_more_is_asked_for(file, capsys, uncompiled,
                                                               monkeypatch):
  """Seen on v5e: libtpu refuses what is above the chip's memory, whatever it is told."""
  monkeypatch.setattr(preflight.importlib.util, 'find_spec', lambda name: True)
  uncompiled[0].append({'needed': 17 * 2**30, 'seconds': 1.0, 'largest': []})
  code, out, _ = told(capsys, file, 'ppo', '--topology', 'v5e:2x2', '--hbm', 60)
  assert code == 3
  assert "17.00 GiB (--hbm above the chip's own counts for nothing) of 15.75 GiB" in out
  assert '1.25 GiB too much' in out


@pytest.mark.parametrize(('words', 'message'), [
  (('ppo', '--topology', 'v5x:2x2'), 'no such chip'),
  (('ppo', '--topology', 'v5e:3x3'), 'v5e has the slices 1x1, 2x2'),
  (('ppo', '--topology', 'cpu:'), 'expected cpu:N'),
  (('ppo', '--topology', 'cpu:²'), 'expected cpu:N'),
  (('nothing', '--topology', 'cpu:4'), "has no run 'nothing'"),
  (('rankings', '--topology', 'cpu:4'), 'only runs that train'),
  (('ppo', '--topology', 'cpu:4', '--ppo.episode', '3'), "has no field 'episode'"),
  (('ppo', '--topology', 'cpu:4', '--ppo.mesh.fsdp', '2'), 'not the 4 devices'),
  (('ppo', '--topology', 'cpu:4', '--ppo.mesh.fsdp', '4', '--ppo.microbatch', '2'),
   'does not divide'),
  (('ppo', '--topology', 'cpu:64'), 'no mesh of 64 devices divides'),
  (('ppo', '--topology', 'cpu:4', '--ppo.text_length', '99'), "runs['ppo']: rows of 99 tokens"),
  (('sft', '--topology', 'cpu:4', '--search'), 'PPO run')])
def test_errors(file, capsys, words, message):
  code, _, error = told(capsys, file, *words)
  assert code == 2 and message in error


def test_without_libtpu_it_says_what_to_install(file, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  code, _, error = told(capsys, file, 'ppo', '--topology', 'v5e:2x2')
  assert code == 2 and "pip install -e '.[tpu]'" in error


def test_a_compilation_that_dies_is_an_error(file, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'executable', '/bin/false')
  code, _, error = told(capsys, file, 'ppo', '--topology', 'cpu:4')
  assert code == 2 and 'ended with 1' in error


# ---------------------------------------------------------------- what is known without a compiler


def test_the_chips():
  assert chips.topology('v5p:4x4x8').devices == 128
  seventh = chips.topology('tpu7x:4x4x4')
  assert seventh.devices == 128 and seventh.flops == 2307e12 / 2
  assert chips.topology('v6e:2x4', hbm=5.0).memory == 5.0
  for chip in chips.CHIPS.values():
    sizes = [np.prod([int(n) for n in shape.split('x')]) for shape in chip.slices]
    assert sizes == sorted(sizes)


def test_the_parts_are_the_arguments(made):
  """Whole on one device: every leaf of state, frozen and batch is in one part."""
  stage = made()
  held = layout.held(stage, configs.Mesh(1, 1, 1))
  state, frozen = layout.shapes(stage)
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  assert held.arguments == size((state, frozen, stage.stage.batch_shapes)) == sum(
    held.parts.values())
  assert held.parts['optimizer'] == size((state.policy.opt_state, state.value.opt_state))
  assert held.parts['EMA'] == size(state.policy.params) == held.gradients
  assert held.parts['value model'] == size(state.value.params)


def test_the_cache_is_the_cache(made):
  stage = made(rollout_chunks=2)
  policy, config = stage.stage.model, stage.config
  tokens = jax.ShapeDtypeStruct((8, 16), np.int32)
  run = lambda params, tokens: transformer.run_blocks(
    policy, params, tokens, tokens, np.ones((8, 16, 16), bool), keep_cache=True)[1]
  cache = jax.eval_shape(run, layout.shapes(stage)[0].policy.params, tokens)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  assert config.episodes // config.rollout_chunks == 8
  assert layout.held(stage, configs.Mesh(1, 1, 1)).cache == size
  assert layout.held(stage, configs.Mesh(1, 4, 2)).cache == size / 8


def test_decoding_reads_the_weights_and_the_cache(made):
  stage, mesh = made(), configs.Mesh(1, 2, 4)
  held = layout.held(stage, mesh)
  params = layout.shapes(stage)[0].policy.params
  read = layout.decoding_bytes(stage, layout.abstract_mesh(mesh))
  table = params['embed']['tokens']
  assert read['looked up'] == 0 and read['read'] == held.decoding  # tied, no learned positions
  assert table.size * 4 / 4 < held.decoding < sum(x.size * 4 for x in jax.tree.leaves(params))
  where = chips.Topology('x', 'cpu', 8, 1e12, 1e9, 1e9)
  found = preflight.cost(stage, where, mesh, held)
  assert found['streamed_bytes'] == 7 * (held.decoding + held.cache)  # the eighth is sampled only
  assert found['floor_seconds']['decoding'] == found['streamed_bytes'] / 1e9
  assert found['petaflop_days'] == found['flops_total'] * 7 / 8.64e19


def test_updates_that_follow_from_the_data_are_not_invented(made):
  stage, mesh = made('sft'), configs.Mesh()
  found = preflight.cost(stage, chips.topology('cpu:1'), mesh, layout.held(stage, mesh))
  assert found['petaflop_days'] is None and 'floor_seconds' not in found


def test_the_mesh_is_the_smallest_tensor_that_fits(made):
  stage = made()
  sizes = {mesh.tensor: held.least for mesh, held in layout.meshes(stage, 8)}
  assert list(sizes) == [1, 2, 4]  # four heads: tensor = 8 does not divide them
  assert layout.mesh_of(stage, 8, 1e9)[0] == configs.Mesh(1, 8, 1)
  tight = min(sizes.values())
  assert sizes[layout.mesh_of(stage, 8, tight)[0].tensor] == tight
  assert layout.mesh_of(made(mesh=configs.Mesh(-1, 2, 2)), 8, 1e9)[0] == configs.Mesh(2, 2, 2)


def test_mesh_axes_that_are_no_product_of_physical_ones(monkeypatch):
  """16 on a slice of 8x8x8, as devices of the CPU cannot show: the call must allow splitting."""
  asked, make = [], meshes.mesh_utils.create_device_mesh
  monkeypatch.setattr(meshes.mesh_utils, 'create_device_mesh',
                      lambda *given, **named: asked.append(named) or make(*given, **named))
  mesh = meshes.make_mesh(configs.Mesh(1, 2, 4))
  assert dict(mesh.shape) == {'data': 1, 'fsdp': 2, 'tensor': 4}
  assert asked == [{'allow_split_physical_axes': True}]


def scoring(stage, kind, mesh=configs.Mesh()):
  """FLOPs of the scoring phase, for a kind of device."""
  where = chips.Topology('x', kind, 1, 1e12, 1e9, 1e9)
  return preflight.cost(stage, where, mesh, layout.held(stage, mesh))['flops']['scoring']


def test_float32_is_scored_once_more_where_a_tpu_is_compiled_for(made):
  """This process is on a CPU all the same; with bfloat16 the policy is read again everywhere."""
  stage = made()
  here, there = scoring(stage, 'cpu'), scoring(stage, 'v5e')
  assert stage.stage.model.compute == 'float32'
  # Policy, reference, reward model and value model in the place of the last three.
  assert 1.25 < there / here < 1.5


@pytest.mark.parametrize(('topology', 'differs'), [('cpu:2', False), ('v5e:2x2', True)])
def test_what_is_compiled_is_traced_for_the_platform(file, monkeypatch, topology, differs):
  """The program itself; its compilation is another matter."""
  asked = []

  def program(*_):
    asked.append(jax.default_backend())
    raise configs.BadInput('enough')

  monkeypatch.setattr(aot, 'program', program)
  monkeypatch.setattr(aot, '_devices', lambda where: jax.devices()[:2])
  with pytest.raises(configs.BadInput, match='enough'):
    aot.compiled(str(file), {}, [], 'ppo', topology, [1, 2, 1], 'update', 0.0, None)
  assert asked == ['tpu' if differs else 'cpu'] and jax.default_backend() != 'tpu'


def test_rows_of_a_reward_step_are_completions(made):
  """`run` takes a microbatch that the mesh does not divide if its completions are divided."""
  stage = made('reward', microbatch=2)
  assert layout.held(stage, configs.Mesh(1, 4, 1)) is not None
  assert layout.held(stage, configs.Mesh(1, 8, 1)) is None
  # Prompts are read again for every completion there, so the step is dearer.
  counts = [preflight.cost(stage, chips.topology(f'cpu:{n}'), mesh, layout.held(stage, mesh))[
    'flops_total'] for n, mesh in ((1, configs.Mesh()), (4, configs.Mesh(1, 4, 1)))]
  assert counts[1] > 1.2 * counts[0]


def test_the_vocabulary_of_a_tokenizer_to_be_trained(made):
  stage = made('gpt', model=configs.Model(layers=1, width=16, heads=4, context=16),
               tokenizer=configs.Tokenizer(vocabulary=300))
  assert stage.stage.model.vocabulary == 300


# ---------------------------------------------------------------- what to change, and a search


def advised(stage, mesh, memory, phase=''):
  where = chips.Topology('cpu:8', 'cpu', 8, 0.0, 0.0, memory)
  largest = [{'phase': phase}] if phase else []
  held = layout.held(stage, mesh)
  return advice.first_change(stage, 'ppo', where, mesh, held, largest)


def test_what_to_change_first(made):
  mesh, room = configs.Mesh(1, 2, 4), 1e9
  assert advised(made(), mesh, room, 'rollout').startswith('--ppo.rollout_chunks 2')
  assert advised(made(), mesh, room, 'ptx').startswith('--ppo.microbatch 4')
  assert advised(made(microbatch=2), mesh, room, 'ptx').startswith('remat')
  wide = configs.Mesh(1, 8, 1)
  assert advised(made(rollout_chunks=2), wide, room, 'rollout').startswith(
    '--ppo.mesh.fsdp 4 --ppo.mesh.tensor 2')
  assert 'more memory' in advised(made(), mesh, 1e3)


def test_a_larger_slice_is_named(made):
  stage = made()
  mesh = configs.Mesh(1, 1, 1)
  held = layout.held(stage, mesh)
  least = [held.least, min(one.least for _, one in layout.meshes(stage, 4))]
  for memory, words in ((sum(least) / 2, '--topology v5e:2x2'), (1e3, 'another chip')):  # as --hbm
    small = chips.Topology('v5e:1x1', 'v5e', 1, 1.0, 1.0, memory)
    found = advice.first_change(stage, 'ppo', small, mesh, held, [])
    assert found.startswith(words)


def test_the_search_takes_the_first_that_fits(file, uncompiled):
  answers, asked = uncompiled
  gib = 2**30
  too_large, fits = {'needed': 9 * gib}, {'peak': gib}
  answers += [too_large, fits, too_large, fits]
  wish = preflight.Wish(file, 'ppo', (), chips.topology('cpu:4', 2 * gib), hbm=2 * gib)
  found = search.search(wish).made()
  assert [wish.part for wish, _ in asked] == ['rollout'] * 2 + ['minibatch'] * 2
  assert [mesh.tensor for _, mesh in asked] == [1] * 4
  assert (found.config.rollout_chunks, found.config.microbatch) == (2, 4)


# ---------------------------------------------------------------- with libtpu


@pytest.mark.long
@needs_libtpu
@pytest.mark.parametrize('topology', ['v5e:1x1', 'v5e:2x4', 'v6e:2x4', 'tpu7x:2x2x1'])
def test_a_small_run_whole_for_several_chips(file, topology, tmp_path):
  out = tmp_path / 'told.json'
  assert main(['preflight', str(file), 'ppo', '--topology', topology, '--json', str(out)]) == 0
  found = json.loads(out.read_text())
  assert 'refused' not in found['compiled'] and found['floor_seconds']['update'] > 0


@pytest.mark.long
@needs_libtpu
def test_two_at_once(file, tmp_path):
  words = [sys.executable, '-m', 'rlhf_jax', 'preflight', str(file), 'gpt', '--topology', 'v5e:2x2']
  both = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
  assert [one.wait() for one in both] == [0, 0]


@pytest.mark.long
@needs_libtpu
@pytest.mark.parametrize('part', ['rollout', 'minibatch'])
def test_the_phases_of_the_175b_update_that_need_most(part):
  """One after the other: the whole update, of which README tells, takes too long for a test."""
  changes = {'mesh.data': 1, 'mesh.fsdp': 4, 'mesh.tensor': 16, 'rollout_chunks': 8,
             'microbatch': 8}
  wish = preflight.Wish(ROOT / 'experiments' / 'instructgpt.py', 'ppo_ptx_175b', (),
                        chips.topology('v5p:4x4x4'), part=part).changed(changes)
  answer = preflight.compiled(wish, configs.Mesh(1, 4, 16))
  held = layout.held(wish.made(), configs.Mesh(1, 4, 16))
  assert 'refused' not in answer and answer['arguments'] <= 1.001 * held.arguments
  assert held.arguments < answer['peak'] <= wish.topology.memory, answer
