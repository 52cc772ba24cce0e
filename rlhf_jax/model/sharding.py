"""Where every array lies on a device mesh.

Enter: a mesh (runtime/meshes.py) and the logical axis names that transformer.py writes beside each
shape. Leave: NamedShardings for states and batches, constraints inside jitted code.
Left out: pipeline parallelism; several slices.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

# The one rule table: logical axis -> mesh axis. Everything not named stays whole.
RULES: Mapping[str, str | tuple[str, ...]] = {
  'batch': ('data', 'fsdp'),
  'width': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'vocabulary': 'tensor'}


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def looked_up(table: jax.Array, ids: jax.Array, dtype: Any, rows: str | None) -> jax.Array:
  """table[ids] in a type; its gradient adds up in float32, since bfloat16 stops after 256 parts."""
  return constrain(table.astype(dtype), rows, None)[ids]


looked_up.defvjp(
  lambda table, ids, dtype, rows: (looked_up(table, ids, dtype, rows), (table, ids)),
  lambda dtype, rows, given, gradient: (constrain(jnp.zeros_like(given[0]).at[given[1]].add(
    gradient.astype(given[0].dtype)), rows, None), None))


def in_compute_type(params: Any, dtype: Any) -> Any:
  """Kernels and tables in the compute type; norms and biases stay float32, as they are used."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x.astype(dtype) if x.ndim > 1 and path[-1].key in (
      'kernel', 'tokens', 'positions') else x, params)


def cast_blocks(params: Any, dtype: Any) -> Any:
  """`params` with the blocks in the compute type: before loops over layers or rows, each turn of
  which would cast them. Tables stay, so that gradients of both their uses add up in float32.
  """
  return params if dtype == 'float32' else params | {
    'blocks': in_compute_type(params['blocks'], dtype)}


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
    lambda x: NamedSharding(mesh, PartitionSpec(*[RULES['batch']] * bool(x.shape))), batch)


def to_host(tree: Any) -> Any:
  """numpy arrays, whole on every process."""
  here = lambda x: getattr(x, 'is_fully_addressable', True) or x.is_fully_replicated
  return jax.tree.map(lambda x: np.asarray(x) if here(x) else multihost_utils.process_allgather(
    x, tiled=True), tree)


def divided(rows: int) -> int:
  """The fewest rows, at least so many, that the mesh in use divides."""
  mesh = jax.sharding.get_abstract_mesh()
  parts = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in RULES['batch'])
  return -(-rows // parts) * parts
