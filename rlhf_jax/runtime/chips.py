"""What a topology string names: chips, their peak rate, memory and bandwidth, and slices on offer.

Enter: 'v5p:4x4x8', 'cpu:8'. Leave: a Topology. Plain Python, no jax.
Numbers are a chip's, as Google's pages print them (docs.cloud.google.com/tpu/docs/v4, v5e, v5p,
tpu7x, which has v6e's too); slices are those pages' and GKE's (kubernetes-engine/docs/concepts/
plan-tpus). libtpu accepts shapes that nobody rents, so this list is its own.
Left out: several slices joined by a network; twisted tori.
"""

import dataclasses
import math
import os

from rlhf_jax.configs import BadInput

GIB = 2**30
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16',
          '8x16x16', '16x16x16')


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator."""
  flops: float  # peak a second, bfloat16, a chip
  bandwidth: float  # bytes a second of its memory, a chip
  memory: float  # bytes a program may use, a device: what libtpu 0.0.51 names when one is too large
  devices: int  # jax devices a chip
  slices: tuple[str, ...]


CHIPS = {
  'v4': Chip(275e12, 1200e9, 30.75 * GIB, 1, _CUBES),
  'v5e': Chip(197e12, 819e9, 15.75 * GIB, 1, _FLAT),
  'v5p': Chip(459e12, 2765e9, 95.73 * GIB, 1, (*_CUBES, '16x16x24')),
  'v6e': Chip(918e12, 1638e9, 31.24 * GIB, 1, _FLAT),
  'tpu7x': Chip(2307e12, 7380e9, 94.74 * GIB, 2, _CUBES),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice, or so many devices on this machine's CPU; rates are a device's, 0 where unknown."""
  name: str
  kind: str  # of CHIPS, or 'cpu'
  devices: int
  flops: float
  bandwidth: float
  memory: float


def topology(name: str, hbm: float = 0.0) -> Topology:
  """The topology a string names; `hbm` bytes take the place of the device's memory.

  Raises:
    BadInput: no such chip, or a slice that is not on offer.
  """
  kind, _, shape = name.partition(':')
  if kind == 'cpu':
    if not shape.isdecimal() or int(shape) < 1:
      raise BadInput(f'--topology {name}: expected cpu:N, such as cpu:8')
    # All devices of a CPU share its memory.
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / int(shape)
    return Topology(name, kind, int(shape), 0.0, 0.0, hbm or memory)
  if kind not in CHIPS:
    raise BadInput(f'--topology {name}: no such chip; expected CHIP:SLICE with a chip of '
                   f'{", ".join(CHIPS)}, or cpu:N')
  chip = CHIPS[kind]
  if shape not in chip.slices:
    raise BadInput(f'--topology {name}: {kind} has the slices {", ".join(chip.slices)}')
  return Topology(name, kind, math.prod(map(int, shape.split('x'))) * chip.devices,
                  chip.flops / chip.devices, chip.bandwidth / chip.devices, hbm or chip.memory)
