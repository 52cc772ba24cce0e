"""One update on eight devices, in several shapes, equals the update on one."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.model import attention, sharding, transformer
from rlhf_jax.runtime import meshes

SHAPES = [(2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 1, 8), (4, 2, 1)]  # data, fsdp, tensor
CASES = [
  pytest.param(name, shape, id=f'{name}-{"x".join(map(str, shape))}',
               marks=[pytest.mark.long] if name == 'ppo' and shape != SHAPES[0] else [])
  for name in ('language', 'reward', 'ppo') for shape in SHAPES
]


@pytest.fixture(scope='module')
def model(tiny):
  """Every axis that a mesh splits divides by eight."""
  return dataclasses.replace(tiny.MODEL, heads=16, kv_heads=8, head_size=2)


@pytest.fixture(scope='module')
def stages(tiny):
  """Batches, minibatches and their pieces divide by eight."""
  data = (configs.Source(kind='demonstrations'),)
  return {
    'language': dataclasses.replace(tiny.LANGUAGE, data=data, prompt_length=tiny.PROMPT,
                                    response_length=tiny.RESPONSE, batch=16, microbatch=8),
    'reward': dataclasses.replace(tiny.REWARD, batch=16, microbatch=8),
    'ppo': dataclasses.replace(tiny.PPO, episodes=16, minibatch=8, epochs=1, ptx_ratio=1.0),
  }


def sharded_update(bench, shape):
  """(mesh, start, state and metrics after one update), placed and pinned as the loop does."""
  mesh = meshes.make_mesh(configs.Mesh(*shape))
  where = lambda tree: sharding.state_shardings(mesh, tree, bench.stage.axes)
  with jax.set_mesh(mesh):
    state = jax.device_put(bench.state, where(bench.state))
    frozen = jax.device_put(bench.frozen, where(bench.frozen))
    batch = jax.device_put(bench.batch, sharding.batch_shardings(mesh, bench.batch))
    update = jax.jit(bench.update.__wrapped__, out_shardings=(where(bench.state), None))
    after, metrics = update(state, frozen, batch, bench.key)
    again, _ = update(after, frozen, batch, bench.key)
    assert update._cache_size() == 1
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
      assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
  return mesh, state, after, metrics


def check_placed(mesh, tree):
  """Parameters really are split: the biggest matrices by what divides them, the rest whole."""
  shape = lambda x: x.addressable_shards[0].data.shape
  up = tree['blocks']['mlp']['up']['kernel']
  _, width, hidden = up.shape
  assert shape(up) == (2, width // mesh.shape['fsdp'], hidden // mesh.shape['tensor'])
  table = tree['embed']['tokens']
  assert shape(table) == (table.shape[0] // mesh.shape['tensor'], width // mesh.shape['fsdp'])
  if mesh.shape['fsdp'] * mesh.shape['tensor'] > 1:
    assert up.addressable_shards[0].data.size < up.size


@pytest.mark.parametrize(('name', 'shape'), CASES)
def test_eight_devices_give_the_numbers_of_one(bench, tiny, model, stages, name, shape):
  made = bench(stages[name], model)
  one, told = made.step()
  mesh, start, state, metrics = sharded_update(made, shape)
  for part in ('policy', 'value') if name == 'ppo' else ('model',):
    check_placed(mesh, getattr(start, part).params)
    found, wanted = getattr(state, part), getattr(one, part)
    assert np.linalg.norm(tiny.moved(found.params, getattr(made.state, part).params)) > 1e-2
    assert tiny.far(found.params, wanted.params) <= 1e-5
    if wanted.ema is not None:
      assert tiny.far(found.ema, wanted.ema) <= 1e-5
  if name == 'ppo':
    for key in ('tokens', 'valid'):
      np.testing.assert_array_equal(metrics['samples'][key], told['samples'][key])
  for key in set(told) - {'samples', 'logprob_gap'}:
    np.testing.assert_allclose(metrics[key], told[key], rtol=1e-3, atol=1e-4, err_msg=key)


def test_attention_in_pieces_rematerialised_on_eight_devices(bench, tiny, model, stages,
                                                             monkeypatch):
  one, _ = bench(stages['language'], model).step()
  monkeypatch.setattr(attention, 'LONG', 1)
  made = bench(stages['language'], dataclasses.replace(model, remat=True))
  _, _, state, _ = sharded_update(made, (2, 2, 2))
  assert tiny.far(state.model.params, one.model.params) <= 1e-5


@pytest.mark.parametrize('name', ['language', 'ppo'])
def test_attention_in_one_kernel_on_eight_devices(bench, tiny, model, stages, monkeypatch, name):
  """XLA's operations in the kernel's place; rows are turned to begin with a valid token."""
  one, told = bench(stages[name], model).step()
  monkeypatch.setattr(attention, 'KERNELS', {jax.default_backend(): 'xla'})
  monkeypatch.setattr(transformer, 'has_kernel', lambda config, time: True)
  other = dataclasses.replace(model, context=model.context + 1)  # a bench is made once a model
  made = bench(stages[name], other)
  _, _, state, metrics = sharded_update(made, (2, 2, 2))
  for part in ('policy', 'value') if name == 'ppo' else ('model',):
    assert tiny.far(getattr(state, part).params, getattr(one, part).params) <= 1e-5
  for key in set(told) - {'samples', 'logprob_gap'}:
    np.testing.assert_allclose(metrics[key], told[key], rtol=1e-3, atol=1e-4, err_msg=key)


def test_prompts_that_a_mesh_does_not_divide_are_read_for_every_completion(bench, tiny, model):
  """Pieces of four prompts with four completions: the 16 rows divide by eight, the prompts do not.
  """
  made = bench(dataclasses.replace(tiny.REWARD, batch=8, k_max=4, microbatch=4), model)
  one, told = made.step()
  mesh, _, state, metrics = sharded_update(made, (4, 2, 1))
  meshes.check_divides(mesh, made.stage.sizes)
  assert tiny.far(state.model.params, one.model.params) <= 1e-5
  np.testing.assert_allclose(metrics['loss'], told['loss'], rtol=1e-4)


def test_plain_arrays_stay_on_one_device(bench, tiny):
  """The eight fake devices of the tests are not used by what asks for no mesh."""
  state, _ = bench(tiny.LANGUAGE).step()
  assert {d for x in jax.tree.leaves(state) for d in x.devices()} == {jax.devices()[0]}


@pytest.mark.parametrize(('name', 'change', 'word'), [
  ('language', {'microbatch': 4}, 'microbatch'), ('ppo', {'minibatch': 4}, 'minibatch'),
  ('ppo', {'microbatch': 2}, 'microbatch'), ('ppo', {'rollout_chunks': 4}, 'rollout_chunks')])
def test_rows_that_a_mesh_does_not_divide_are_named(bench, stages, model, name, change, word):
  mesh = meshes.make_mesh(configs.Mesh(2, 4, 1))
  meshes.check_divides(mesh, bench(stages[name], model).stage.sizes)
  made = bench(dataclasses.replace(stages[name], **change), model).stage
  with pytest.raises(configs.BadInput, match=f'{word}.*not divided.*a multiple of 8'):
    meshes.check_divides(mesh, made.sizes)


def test_a_value_model_that_a_mesh_does_not_divide_is_named(bench, stages, tiny):
  made = bench(stages['ppo'], tiny.MODEL).stage  # two kv_heads
  with pytest.raises(configs.BadInput, match='value model'):
    meshes.check_divides(meshes.make_mesh(configs.Mesh(1, 1, 8)), made.sizes)
