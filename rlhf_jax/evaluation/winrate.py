"""Win rates and other rates with their intervals.

In: one verdict a prompt. Out: the mean and a 95 % interval. Left out: Elo and other ratings over
many models.
"""

import math
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.agreement import ratio_interval


def win(rank: float, other: float) -> float:
  """1 where `rank` is better (smaller) than `other`, ½ for a tie, else 0."""
  return 0.5 if rank == other else float(rank < other)


def rate(values: Sequence[float]) -> tuple[float | None, list[float] | None]:
  """Mean of numbers in [0, 1], one a prompt, and its 95 % interval: (mean, [low, high]).

  A percentile bootstrap over prompts; where all numbers are alike (0, 1 or ties) it would have no
  width, and the interval is Wilson's (1927): up from n / (n + z²), or down from z² / (n + z²); of n
  ties ½ ± z √(n + z²) / 2(n + z²).
  """
  mean, interval = ratio_interval(values)
  if mean in (0, 1):
    edge = 1.959964**2 / (len(values) + 1.959964**2)
    interval = [0.0, edge] if mean == 0 else [1 - edge, 1.0]
  elif mean is not None and min(values) == max(values):
    z, n, share = 1.959964, len(values), values[0]
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    interval = [middle - half, middle + half]
  return mean, interval


def win_rate(wins: Sequence[float]) -> dict[str, Any]:
  """{'mean', 'low', 'high', 'n'} of wins (1, ½ or 0 a prompt); see `rate` for the interval."""
  mean, interval = rate(wins)
  low, high = interval or (None, None)
  return {'mean': mean, 'low': low, 'high': high, 'n': len(wins)}
