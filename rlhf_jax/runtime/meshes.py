"""Devices as a mesh, and arrays of the host on it.

Enter: a configs.Mesh. Leave: a jax Mesh, whether it divides a run, batches that lie on it. Which
axis of an array lies on which of the mesh is model/sharding.py's.
Left out: several slices.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlhf_jax import configs
from rlhf_jax.model.sharding import RULES


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


def check_divides(mesh: jax.sharding.Mesh, sizes: Mapping[str, int], of: str = '') -> None:
  """BadInput, naming the axis, if mesh axes do not divide a size; keys 'NAME (logical axis)'.

  Args:
    of: what has these sizes, where that is not the run itself.
  """
  for name, size in sizes.items():
    axis = name[name.index('(') + 1:-1]
    rule = RULES[axis]
    parts = math.prod(mesh.shape[a] for a in ((rule,) if isinstance(rule, str) else rule))
    if size % parts:
      raise configs.BadInput(
        f'{of}{": " if of else ""}{name} = {size} is not divided by mesh axis {rule} of {parts} '
        f'devices: take a multiple of {parts}')


def whole(mesh: jax.sharding.Mesh) -> NamedSharding:
  """All of an array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, shardings: Any) -> Any:
  """Arrays that every process has in full, on the mesh: each process places its slices."""
  return jax.tree.map(
    lambda x, at: jax.make_array_from_callback(x.shape, at, lambda index: x[index]), tree,
    shardings)
