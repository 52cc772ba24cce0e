"""Matrix-multiplication FLOPs of a traced program, loops multiplied through, by phase.

Enter: a jaxpr, and how often its while loops run. Leave: Counts by phase. XLA's own cost analysis
counts the body of a loop once, however often it runs, so it is of no use here.
A phase is a `jax.named_scope` around the code; recomputation is what jax names so.
Left out: everything but matrix products, which is a few per cent at a width of a thousand; loops
whose count nobody knows, and primitives without a rule, are refused if there is a product in them.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from jax.extend import core

PHASES = ('rollout', 'scoring', 'training', 'ptx')
_HIDE = ('conv_general_dilated', 'ragged_dot_general', 'pallas_call',
         'dot_product_attention_fwd_wrapper', 'dot_product_attention_bwd_wrapper')  # cuDNN's
_CALLS = ('jit', 'pjit', 'closed_call', 'core_call', 'remat2', 'checkpoint', 'custom_jvp_call',
          'custom_vjp_call', 'custom_vjp_call_jaxpr', 'custom_lin')


class Incomplete(Exception):
  """Something that cannot be counted; a number without it would be wrong."""


@dataclasses.dataclass
class Counts:
  """FLOPs of each phase; of those, in while loops (decoding) and computed for a second time."""
  phases: dict[str, float]
  decoding: float = 0.0
  recomputed: float = 0.0

  @property
  def total(self) -> float:
    """All phases together."""
    return sum(self.phases.values())


def count(jaxpr: core.Jaxpr, trips: float | None = None, otherwise: str = 'training') -> Counts:
  """FLOPs of one call of a program: 2 · output size · contracted size of every dot_general.

  Args:
    jaxpr: of jax.jit(f).trace(...).jaxpr.jaxpr.
    trips: times that each while loop with products in it runs (PPO: response length − 1, where
      `generate.loops` is one).
    otherwise: the phase of what stands in no scope.

  Raises:
    Incomplete: a while loop without `trips`, or a primitive that hides products.
  """
  counts = Counts(dict.fromkeys(PHASES, 0.0))
  _walk(jaxpr, 1.0, '', False, trips, otherwise, counts)
  return counts


def phase(path: str, otherwise: str) -> str:
  """The innermost phase of a name stack such as 'training/cond/transpose(jvp(ptx))/while'."""
  found = re.findall(rf'\b({"|".join(PHASES)})\b', path)
  return found[-1] if found else otherwise


def _walk(jaxpr: core.Jaxpr, times: float, path: str, decoding: bool, trips: float | None,
          otherwise: str, counts: Counts) -> None:
  for equation in jaxpr.eqns:
    here = f'{path}/{equation.source_info.name_stack}'
    name = equation.primitive.name
    if name == 'dot_general':
      flops = times * _product(equation)
      counts.phases[phase(here, otherwise)] += flops
      counts.decoding += flops if decoding else 0.0
      counts.recomputed += flops if 'rematted_computation' in here else 0.0
      continue
    inner = list(core.jaxprs_in_params(equation.params))
    if not any(map(_multiplies, inner)):
      if name in _HIDE:
        raise Incomplete(f'no rule for {name} in {here}')
      continue
    if name == 'cond':  # the dearest branch: a coefficient of 0 makes it cheaper, not dearer
      inner = [max(inner, key=lambda branch: _alone(branch, trips))]
    elif name == 'scan':
      times_inside = times * equation.params['length']
      _walk(inner[0], times_inside, here, decoding, trips, otherwise, counts)
      continue
    elif name == 'while':
      if trips is None:
        raise Incomplete(f'a while loop of unknown length in {here}')
      for body in inner:
        _walk(body, times * trips, here, True, trips, otherwise, counts)
      continue
    elif name not in _CALLS:
      raise Incomplete(f'no rule for {name} in {here}')
    for body in inner:
      _walk(body, times, here, decoding, trips, otherwise, counts)


def _alone(jaxpr: core.Jaxpr, trips: float | None) -> float:
  return count(jaxpr, trips).total


def _multiplies(jaxpr: core.Jaxpr) -> bool:
  """Whether there is anything in it that this module counts, or refuses to."""
  return any(equation.primitive.name in ('dot_general', *_HIDE) or any(
    map(_multiplies, core.jaxprs_in_params(equation.params))) for equation in jaxpr.eqns)


def _product(equation: Any) -> float:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * _sizes(left, contracted)


def _sizes(shape: tuple[int, ...], axes: Iterable[int]) -> int:
  return math.prod(shape[axis] for axis in axes)
