"""The mesh, the rule table, and sizes that do not divide."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rlhf_jax import configs
from rlhf_jax.model import sharding, transformer
from rlhf_jax.runtime import meshes


def test_meshes():
  mesh = meshes.make_mesh(configs.Mesh(data=2, fsdp=2, tensor=2))
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert dict(meshes.make_mesh(configs.Mesh()).shape) == {'data': 1, 'fsdp': 1, 'tensor': 1}
  rest = meshes.make_mesh(configs.Mesh(data=-1, tensor=2), jax.devices()[:6])
  assert dict(rest.shape) == {'data': 3, 'fsdp': 1, 'tensor': 2}


@pytest.mark.parametrize('mesh', [{'data': 9}, {'fsdp': 3, 'tensor': 3},
                                  {'data': -1, 'tensor': 16}])
def test_too_few_devices(mesh):
  with pytest.raises(configs.BadInput, match=r'needs \d+ devices, there are 8'):
    meshes.make_mesh(configs.Mesh(**mesh), jax.devices()[:8])


def test_sizes_that_do_not_divide():
  mesh = meshes.make_mesh(configs.Mesh(data=2, fsdp=2, tensor=2))
  meshes.check_divides(mesh, {'episodes (batch)': 8, 'model.heads (heads)': 6})
  for name, size in (('episodes (batch)', 6), ('model.width (width)', 7), ('model.mlp (mlp)', 9)):
    with pytest.raises(configs.BadInput) as error:
      meshes.check_divides(mesh, {name: size})
    assert name in str(error.value)
    assert str(size) in str(error.value)


def test_rules():
  assert sharding.spec(('width', 'heads', None)) == PartitionSpec('fsdp', 'tensor', None)
  assert sharding.spec(('vocabulary', None)) == PartitionSpec('tensor', None)  # not along the width
  assert sharding.spec(('batch', None)) == PartitionSpec(('data', 'fsdp'), None)
  assert sharding.spec(('width', 'mlp'), without=('fsdp',)) == PartitionSpec(None, 'tensor')


def test_parameters_and_moments_lie_alike(cases):
  """A parameter's moments, at whatever depth they stand, are split as it is; scalars are whole."""
  case = cases['llama']
  mesh = meshes.make_mesh(configs.Mesh(data=1, fsdp=4, tensor=2))
  tree = {'model': {'params': case.params, 'opt_state': ({'mu': case.params}, np.int32(0))},
          'step': np.int32(0)}
  found = sharding.state_shardings(mesh, tree, {'policy': transformer.axes(case.config)})
  query = found['model']['params']['blocks']['attention']['query']['kernel']
  assert query.spec == PartitionSpec(None, 'fsdp', 'tensor', None)
  assert found['model']['opt_state'][0]['mu']['blocks']['attention']['query']['kernel'] == query
  assert found['model']['params']['blocks']['attention']['key']['kernel'].spec == PartitionSpec(
    None, 'fsdp', 'tensor', None)
  assert found['step'].spec == PartitionSpec()
  split = [s for s in jax.tree.leaves(found['model']['params']) if any(s.spec)]
  assert len(split) == 9  # two tables and the seven matrices of the stacked blocks


def test_batches_are_split_over_data_and_fsdp():
  mesh = meshes.make_mesh(configs.Mesh(data=2, fsdp=4, tensor=1))
  rows = np.arange(48).reshape(16, 3)
  placed = jax.device_put(rows, sharding.batch_shardings(mesh, rows))
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)}
  assert len({int(s.data[0, 0]) for s in placed.addressable_shards}) == 8


def test_weights_leave_fsdp_once_for_decoding(cases):
  case = cases['llama']
  mesh = meshes.make_mesh(configs.Mesh(data=1, fsdp=4, tensor=2))
  names = transformer.axes(case.config)
  with jax.set_mesh(mesh):
    where = sharding.state_shardings(mesh, case.params, {'policy': names})
    placed = jax.device_put(case.params, where)
    found = jax.jit(lambda p: sharding.for_decoding(p, names, 'bfloat16'))(placed)
  up, before = found['blocks']['mlp']['up']['kernel'], placed['blocks']['mlp']['up']['kernel']
  assert before.addressable_shards[0].data.shape == (2, 24 // 4, 40 // 2)
  assert up.addressable_shards[0].data.shape == (2, 24, 40 // 2)
  assert up.dtype == 'bfloat16'
  assert found['norm']['scale'].dtype == 'float32'


def test_without_a_mesh_nothing_is_pinned():
  x = np.ones((2, 3))
  assert sharding.constrain(x, 'batch', None) is x
