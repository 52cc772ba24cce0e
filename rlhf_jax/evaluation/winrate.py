"""Win rates with their intervals.

In: one verdict a prompt. Out: the mean and a 95 % interval. Left out: Elo and other ratings over
many models.
"""

from collections.abc import Sequence
from typing import Any

from rlhf_jax.feedback.agreement import ratio_interval


def win(rank: float, other: float) -> float:
  """1 where `rank` is better (smaller) than `other`, ½ for a tie, else 0."""
  return 0.5 if rank == other else float(rank < other)


def win_rate(wins: Sequence[float]) -> dict[str, Any]:
  """{'mean', 'low', 'high', 'n'} of wins (1, ½ or 0 a prompt); the interval is a percentile
  bootstrap over prompts.

  The normal interval would do as well at n ≥ 500; near 0 and 1 and for a category of ten prompts it
  would leave [0, 1].
  """
  mean, interval = ratio_interval(wins)
  low, high = interval or (None, None)
  return {'mean': mean, 'low': low, 'high': high, 'n': len(wins)}
