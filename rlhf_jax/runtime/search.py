"""A small grid of (mesh, rollout chunks, microbatch): the first that fits.

Enter: a preflight.Wish for a PPO run. Leave: the Wish with those fields set.
Left out: the fastest: the least floor among what fits is near the first, and traffic is not in it.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from rlhf_jax import configs
from rlhf_jax.runtime import layout
from rlhf_jax.runtime.abstract import Abstract
from rlhf_jax.runtime.chips import GIB
from rlhf_jax.runtime.preflight import Wish, compiled


def search(wish: Wish) -> Wish:
  """The first of a small grid of (mesh, rollout chunks, microbatch) that fits, or the last tried.

  The smallest `tensor` first, then few rollout chunks and large microbatches: the rollout and one
  minibatch are compiled alone, which is quick where they do not fit, and the caller compiles the
  whole.
  """
  made = wish.made()
  if not isinstance(made.config, configs.PPO):
    raise configs.BadInput(f'--search: {wish.run} is of the kind {type(made.config).__name__}; the '
                           'search is over the mesh, rollout chunks and microbatch of a PPO run')
  best = wish
  for mesh in _candidates(wish, made):
    at = {f'mesh.{axis}': size for axis, size in dataclasses.asdict(mesh).items()}
    rows = mesh.data * mesh.fsdp
    chunks = [n for n in _halves(made.config.episodes) if made.config.episodes // n % rows == 0]
    sizes = [n for n in reversed(_halves(made.config.minibatch)) if n % rows == 0]
    # Both matter to both: the parts are compiled with the other at its cheapest.
    few = _first(wish, mesh, 'rollout', [at | {'rollout_chunks': n, 'microbatch': sizes[-1]}
                                         for n in chunks])
    many = few and _first(wish, mesh, 'minibatch', [few | {'microbatch': n} for n in sizes])
    if many:
      return wish.changed(many)
    best = wish.changed(at | {'rollout_chunks': chunks[-1], 'microbatch': sizes[-1]})
  return best


def _candidates(wish: Wish, made: Abstract) -> list[configs.Mesh]:
  """Meshes that could hold the run at its cheapest: one row a device at a time."""
  found = []
  for tensor in _halves(wish.topology.devices):
    mesh = configs.Mesh(1, wish.topology.devices // tensor, tensor)
    if made.config.minibatch % mesh.fsdp:
      continue
    cheapest = dataclasses.replace(made.config, rollout_chunks=made.config.episodes // mesh.fsdp,
                                   microbatch=mesh.fsdp)
    held = layout.held(dataclasses.replace(made, config=cheapest), mesh)
    if held is not None and held.least <= wish.topology.memory:
      found.append(mesh)
  return found


def _first(wish: Wish, mesh: configs.Mesh, part: str,
           tried: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
  """The first changes with which a part of the update fits."""
  for changes in tried:
    one = dataclasses.replace(wish.changed(changes), part=part)
    held = layout.held(one.made(), mesh)
    if held is None or (part == 'rollout' and
                        held.arguments + held.decoding + held.cache > wish.topology.memory):
      continue
    answer = compiled(one, mesh)
    needed = answer.get('needed', answer.get('peak', 0))
    fits = 'needed' not in answer and needed <= wish.topology.memory
    print(f'  {part} on mesh {dataclasses.astuple(mesh)}, rollout_chunks '
          f'{changes["rollout_chunks"]}, microbatch {changes["microbatch"]}: '
          f'{needed / GIB:.1f} GiB, {"fits" if fits else "does not fit"}', file=sys.stderr,
          flush=True)
    if fits:
      return changes
  return None


def _halves(number: int) -> list[int]:
  """1, 2, 4 … and `number` itself: its divisors by powers of two."""
  return sorted({2**k for k in range(number.bit_length()) if number % 2**k == 0} | {number})
