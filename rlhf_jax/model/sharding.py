"""The device mesh and where every array lies on it.

Enter: a configs.Mesh and the logical axis names that transformer.py writes beside each shape.
Leave: a Mesh, NamedShardings for states and batches, constraints inside jitted code.
Left out: pipeline parallelism; several slices.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlhf_jax import configs

# The one rule table: logical axis -> mesh axis. Everything not named stays whole.
RULES: Mapping[str, str | tuple[str, ...]] = {
  'batch': ('data', 'fsdp'),
  'width': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'vocabulary': 'tensor'}


def make_mesh(config: configs.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
  """Mesh ('data', 'fsdp', 'tensor') over the first data·fsdp·tensor devices; data = -1 takes all
  that are left.

  Raises:
    BadInput: if there are too few devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  inner = config.fsdp * config.tensor
  data = len(devices) // inner if config.data == -1 else config.data
  shape = (data, config.fsdp, config.tensor)
  if min(shape) < 1 or math.prod(shape) > len(devices):
    raise configs.BadInput(
      f'mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} needs '
      f'{max(1, data) * inner} devices, there are {len(devices)}')
  # Splitting: an axis of 16 on a slice of 8x8x8 is no product of whole physical axes.
  grid = mesh_utils.create_device_mesh(shape, devices[:math.prod(shape)],
                                       allow_split_physical_axes=True)
  return jax.sharding.Mesh(grid, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)


def check_divides(mesh: jax.sharding.Mesh, sizes: Mapping[str, int]) -> None:
  """BadInput, naming the axis, if mesh axes do not divide a size; keys 'NAME (logical axis)'."""
  for name, size in sizes.items():
    axis = name[name.index('(') + 1:-1]
    rule = RULES[axis]
    parts = math.prod(mesh.shape[a] for a in ((rule,) if isinstance(rule, str) else rule))
    if size % parts:
      raise configs.BadInput(
        f'{name} = {size} is not divided by mesh axis {rule} of {parts} devices: '
        f'take a multiple of {parts}')


def spec(axes: tuple[str | None, ...], without: tuple[str, ...] = ()) -> PartitionSpec:
  """PartitionSpec of logical axes; mesh axes in `without` are left out."""
  def place(axis):
    rule = RULES.get(axis) if axis else None
    if isinstance(rule, tuple):
      return tuple(a for a in rule if a not in without) or None
    return None if rule in without else rule

  return PartitionSpec(*(place(a) for a in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pins an intermediate value to its logical axes; does nothing without a mesh."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes))


def in_compute_type(params: Any, dtype: Any) -> Any:
  """Kernels and tables in the compute type; norms and biases stay float32, as they are used."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x.astype(dtype) if x.ndim > 1 and path[-1].key in (
      'kernel', 'tokens', 'positions') else x, params)


@jax.named_scope('rollout')
def for_decoding(params: Any, axes: Any, dtype: Any) -> Any:
  """Parameters as decoding wants them: in the compute type, and gathered over `fsdp` once, so that
  they are not gathered for each token.
  """
  params = in_compute_type(params, dtype)
  if jax.sharding.get_abstract_mesh().empty:
    return params
  return jax.tree.map(
    lambda x, names: jax.lax.with_sharding_constraint(x, spec(names, without=('fsdp',))), params,
    axes)


def split_rows(x: jax.Array, pieces: int) -> jax.Array:
  """[B, …] -> [pieces, B / pieces, …]; interleaved, so that every device keeps its own rows."""
  return x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1)


def join_rows(x: jax.Array) -> jax.Array:
  """What split_rows split, in its order again."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def in_pieces(function: Callable, size: int, rows: Any) -> Any:
  """function(rows), `size` rows at a time where that divides them; 0: all at once."""
  count = jax.tree.leaves(rows)[0].shape[0]
  if not size or count % size or count == size:
    return function(rows)
  split = jax.tree.map(lambda x: split_rows(x, count // size), rows)
  return jax.tree.map(join_rows, jax.lax.map(function, split))


def _keys(path) -> tuple[str, ...]:
  return tuple(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', '')))) for k in path)


def state_shardings(mesh: jax.sharding.Mesh, shapes: Any, axes: Any) -> Any:
  """NamedShardings for any tree that holds parameters, their moments or averages, at any depth.

  Args:
    shapes: tree of arrays or ShapeDtypeStructs.
    axes: {role: logical axes of a model's parameters, a tree of tuples}. A leaf of `shapes` whose
      path ends in a parameter's path lies as that parameter does; every other leaf is replicated.
  """
  table = {
    _keys(p)[1:]: a for p, a in jax.tree_util.tree_flatten_with_path(
      axes, is_leaf=lambda a: isinstance(a, tuple))[0]}
  longest = max((len(k) for k in table), default=0)

  def one(path, leaf):
    keys = _keys(path)
    for n in range(min(longest, len(keys)), 0, -1):
      names = table.get(keys[-n:])
      if names is not None and len(names) == len(leaf.shape):
        return NamedSharding(mesh, spec(names))
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(one, shapes)


def batch_shardings(mesh: jax.sharding.Mesh, batch: Any) -> Any:
  """The first axis of every array over data x fsdp."""
  return jax.tree.map(
    lambda x: NamedSharding(mesh,
                            PartitionSpec(('data', 'fsdp'))
                            if len(x.shape) else PartitionSpec()), batch)


def whole(mesh: jax.sharding.Mesh) -> NamedSharding:
  """All of an array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, shardings: Any) -> Any:
  """Arrays that every process has in full, on the mesh: each process places its slices."""
  return jax.tree.map(
    lambda x, at: jax.make_array_from_callback(x.shape, at, lambda index: x[index]), tree,
    shardings)


def to_host(tree: Any) -> Any:
  """numpy arrays, whole on every process."""
  def one(x):
    if getattr(x, 'is_fully_addressable', True) or x.is_fully_replicated:
      return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(one, tree)


def divided(rows: int) -> int:
  """The fewest rows, at least so many, that the mesh in use divides."""
  mesh = jax.sharding.get_abstract_mesh()
  parts = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in RULES['batch'])
  return -(-rows // parts) * parts
