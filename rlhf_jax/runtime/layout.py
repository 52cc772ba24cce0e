"""Where a run's arrays would lie on a slice, and how many bytes of a device they take.

Enter: an Abstract stage, a number of devices. Leave: meshes that divide it, bytes by part, the mesh
that a topology implies. Shapes only: nothing is compiled or placed.
The rule: data = 1; `tensor` is the smallest divisor of the devices with which everything divides
and what is held at once fits, `fsdp` the rest. A larger `tensor` costs traffic inside every layer.
Left out: several slices (data > 1 is for those who ask for it in the run's mesh).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from rlhf_jax import configs
from rlhf_jax.model import positions, sharding, transformer
from rlhf_jax.runtime.abstract import Abstract

PARTS = ('parameters', 'value model', 'optimizer', 'EMA', 'best checkpoint', 'reference',
         'reward model', 'batch')


@dataclasses.dataclass(frozen=True)
class Held:
  """Bytes a device holds."""
  parts: dict[str, int]  # what the update is given, by PARTS
  decoding: int = 0  # the policy's weights while it decodes: compute type, gathered over fsdp
  cache: int = 0  # keys and values of one rollout chunk
  gradients: int = 0  # of the policy, float32, lying as its parameters do

  @property
  def arguments(self) -> int:
    """Everything the update is given."""
    return sum(self.parts.values())

  @property
  def least(self) -> int:
    """What no schedule avoids: the arguments, and in the rollout weights and cache, in training two
    gradients (a sum, and what is added to it).
    """
    return self.arguments + max(self.decoding + self.cache, 2 * self.gradients)


def abstract_mesh(mesh: configs.Mesh) -> AbstractMesh:
  """The mesh by its sizes alone."""
  return AbstractMesh((mesh.data, mesh.fsdp, mesh.tensor), ('data', 'fsdp', 'tensor'),
                      (AxisType.Auto,) * 3)


def rows(config: configs.Run) -> dict[str, int]:
  """Every number of rows that is handled at once, by the field that sets it; data · fsdp must
  divide each.
  """
  if isinstance(config, configs.PPO):
    text = round(config.ptx_ratio * config.minibatch)
    found = {'episodes / rollout_chunks': config.episodes // config.rollout_chunks,
             'minibatch': config.minibatch, 'microbatch': config.microbatch or config.minibatch}
    return found | ({'ptx_ratio x minibatch': text} if text else {})
  microbatch = config.microbatch or config.batch
  if isinstance(config, configs.Reward):  # a completion is a row of its own
    return {'batch': config.batch, 'microbatch x k_max': microbatch * config.k_max}
  return {'batch': config.batch, 'microbatch': microbatch}


def held(made: Abstract, mesh: configs.Mesh) -> Held | None:
  """Bytes a device, or None where the mesh does not divide a shape or a number of rows."""
  if any(count % (mesh.data * mesh.fsdp) for count in rows(made.config).values()):
    return None
  try:
    return _held(made, abstract_mesh(mesh))
  except ValueError:  # of shard_shape
    return None


def _held(made: Abstract, mesh: AbstractMesh) -> Held:
  stage = made.stage
  state, frozen = shapes(made)
  parts = dict.fromkeys(PARTS, 0)
  for tree, axes in ((state, stage.axes), (frozen, stage.axes)):
    where = sharding.state_shardings(mesh, tree, axes)
    for (path, leaf), at in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(where),
                                strict=True):
      parts[_part([_key(k) for k in path])] += _bytes(leaf, at)
  batch = sharding.batch_shardings(mesh, stage.batch_shapes)
  parts['batch'] = sum(map(_bytes, jax.tree.leaves(stage.batch_shapes), jax.tree.leaves(batch)))
  config = made.config
  if not isinstance(config, configs.PPO):
    params = state.model.params
  else:
    params = state.policy.params
  where = sharding.state_shardings(mesh, params, stage.axes)
  gradients = sum(map(_bytes, jax.tree.leaves(params), jax.tree.leaves(where)))
  if not isinstance(config, configs.PPO):
    return Held(parts, gradients=gradients)
  return Held(parts, sum(decoding_bytes(made, mesh).values()), cache_bytes(made, mesh), gradients)


def decoding_bytes(made: Abstract, mesh: AbstractMesh) -> dict[str, int]:
  """Bytes a device of the policy's weights as they are decoded with: 'read' by every token, and
  'looked up', a row at a time.
  """
  policy = made.stage.model
  params = jax.eval_shape(functools.partial(sharding.in_compute_type, dtype=policy.compute),
                          shapes(made)[0].policy.params)
  found = {'read': 0, 'looked up': 0}
  axes = transformer.axes(policy)
  for (path, leaf), names in zip(
      jax.tree_util.tree_leaves_with_path(params),
      jax.tree.leaves(axes, is_leaf=lambda a: isinstance(a, tuple)), strict=True):
    keys = [_key(k) for k in path]
    looked_up = keys[0] == 'embed' and (keys[1] == 'positions' or not policy.tied)
    at = NamedSharding(mesh, sharding.spec(names, without=('fsdp',)))
    found['looked up' if looked_up else 'read'] += _bytes(leaf, at)
  return found


def cache_bytes(made: Abstract, mesh: AbstractMesh) -> int:
  """Bytes a device of the keys and values of one rollout chunk."""
  config, policy = made.config, made.stage.model
  here = config.episodes // config.rollout_chunks // (mesh.shape['data'] * mesh.shape['fsdp'])
  slots = config.prompt_length + config.response_length
  heads = transformer.kv_heads(policy) // mesh.shape['tensor']
  return (2 * policy.layers * here * slots * heads * positions.head_size(policy) *
          np.dtype(policy.compute).itemsize)


def shapes(made: Abstract) -> tuple[Any, Any]:
  """(state, frozen) of a stage as ShapeDtypeStructs."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  return (jax.eval_shape(made.stage.init, key, made.given),
          jax.eval_shape(made.stage.freeze, made.given))


def meshes(made: Abstract, devices: int) -> list[tuple[configs.Mesh, Held]]:
  """Meshes of data = 1 over all devices that divide everything, the smallest `tensor` first."""
  found = []
  for tensor in range(1, devices + 1):
    if devices % tensor == 0:
      mesh = configs.Mesh(1, devices // tensor, tensor)
      there = held(made, mesh)
      if there is not None:
        found.append((mesh, there))
  return found


def mesh_of(made: Abstract, devices: int, memory: float) -> tuple[configs.Mesh, Held]:
  """The run's own mesh where it names one, else what the rule above gives.

  Raises:
    BadInput: a mesh of another number of devices, or one that does not divide the run.
  """
  named = made.config.mesh
  if named != configs.Mesh():
    if named.data == -1:
      named = dataclasses.replace(named, data=max(1, devices // (named.fsdp * named.tensor)))
    if math.prod(dataclasses.astuple(named)) != devices:
      raise configs.BadInput(f'mesh {dataclasses.astuple(named)} is not the {devices} devices of '
                             'the topology; leave the mesh out and it is derived')
    there = held(made, named)
    if there is None:
      raise configs.BadInput(f'mesh {dataclasses.astuple(named)} does not divide the run: rows '
                             f'{rows(made.config)}, {transformer.sizes(made.stage.model)}')
    return named, there
  found = meshes(made, devices)
  if not found:
    raise configs.BadInput(f'no mesh of {devices} devices divides the run: fsdp must divide the '
                           f'rows {rows(made.config)}, tensor heads, mlp and vocabulary of '
                           f'{transformer.sizes(made.stage.model)}')
  fitting = [pair for pair in found if pair[1].least <= memory]
  return fitting[0] if fitting else min(found, key=lambda pair: pair[1].least)


def _part(keys: list[str]) -> str:
  """The part of PARTS that a leaf of state or frozen belongs to."""
  if keys[0] in ('reference', 'reward'):
    return 'reference' if keys[0] == 'reference' else 'reward model'
  if keys[0] == 'best':
    return 'best checkpoint'
  if 'opt_state' in keys:
    return 'optimizer'
  if 'ema' in keys:
    return 'EMA'
  return 'value model' if keys[0] == 'value' else 'parameters'


def _key(key: Any) -> str:
  return str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', ''))))


def _bytes(leaf: Any, at: NamedSharding) -> int:
  return math.prod(at.shard_shape(leaf.shape)) * leaf.dtype.itemsize
