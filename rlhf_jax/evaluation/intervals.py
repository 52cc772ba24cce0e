"""95 % intervals over few seeds and many prompts, by Student's t.

In: numbers by seed and prompt, or what an estimate becomes when either is redrawn. Out: the ends.
Redrawing three seeds with replacement gives little more than their lowest and highest, which holds
the truth in three quarters of cases; t counts how few they are. Left out: seeds inside groups.
"""

import numpy as np
import scipy.stats

from rlhf_jax.evaluation import winrate


def two_way(values: np.ndarray, share: bool = False
            ) -> tuple[float | None, list[float] | None]:
  """Mean and 95 % interval, for other seeds and other prompts.

  Both are random effects, crossed: the mean's variance is (MS_seeds + MS_prompts − MS_rest) / n, of
  the mean squares of an analysis of variance, and its degrees of freedom are Satterthwaite's. Of
  one seed, or one prompt, the other alone; of a single number that is no share, no interval.

  Args:
    values: [seeds, prompts], NaN where a prompt has none.
    share: of a rate, whose ends stay within 0 and 1; where all values are alike it has Wilson's
      interval over prompts.
  """
  there = np.isfinite(values)
  if not there.any():
    return None, None
  found = values[there]
  mean, count = float(found.mean()), found.size
  if share and found.min() == found.max():
    return winrate.rate([float(found[0])] * int(there.any(axis=0).sum()))
  if count == 1:
    return mean, None
  effects, squares = np.where(there, mean, 0.0), []
  for axis in (1, 0):  # of seeds, of prompts
    sizes = there.sum(axis=axis, keepdims=True)
    means = np.where(there, values, 0.0).sum(axis=axis, keepdims=True) / np.maximum(sizes, 1)
    effects += np.where(there, means - mean, 0.0)
    degrees = int(np.sum(sizes > 0)) - 1
    squares.append((np.sum(sizes * (means - mean)**2) / max(degrees, 1), degrees))
  degrees = count - 1 - sum(one[1] for one in squares)
  rest = np.sum((np.where(there, values, 0.0) - effects)**2) / max(degrees, 1)
  (over_seeds, few), (over_prompts, many) = squares
  if few < 1 or many < 1 or degrees < 1:
    parts = [(over_seeds, few), (over_prompts, many)]
    low, high = _ends(mean, [(float(square) / count, free) for square, free in parts if free > 0])
  else:
    # Neither part can be negative: seeds that seem to differ by less than the rest count as it.
    seeds = max(over_seeds, rest)
    parts = [(float(seeds) / count, few), (max(float(over_prompts - rest), 0.0) / count, many)]
    low, high = _ends(mean, parts)
  if share:
    low, high = max(low, 0.0), min(high, 1.0)
  return mean, [low, high]


def of_shares(values: np.ndarray) -> tuple[float | None, list[float] | None]:
  """`two_way` of differences between shares: the ends stay within −1 and 1."""
  mean, ends = two_way(values)
  return mean, ends and [max(ends[0], -1.0), min(ends[1], 1.0)]


def redrawn(estimate: float, over_seeds: np.ndarray, seeds: int, over_prompts: np.ndarray,
            prompts: int) -> list[float] | None:
  """95 % interval of an estimate that is no mean, from its spread under redraws.

  Args:
    over_seeds, over_prompts: the estimate in resamples of seeds alone and of prompts alone; what is
      not finite is left out. A resample of n varies (n − 1) / n as much as n new ones would.

  Returns: None of one seed and one prompt, or where the estimate is not finite.
  """
  parts = []
  for found, count in ((over_seeds, seeds), (over_prompts, prompts)):
    found = found[np.isfinite(found)]
    if count > 1 and found.size > 1:
      parts.append((float(found.var()) * count / (count - 1), count - 1))
  return list(_ends(estimate, parts)) if parts and np.isfinite(estimate) else None


def _ends(mean: float, parts: list[tuple[float, int]]) -> tuple[float, float]:
  """mean ± t · √Σ variance, of (variance, degrees of freedom) each; Satterthwaite (1946)."""
  total = sum(variance for variance, _ in parts)
  if total <= 0:
    return mean, mean
  degrees = 1 / sum((variance / total)**2 / free for variance, free in parts)
  half = float(scipy.stats.t.ppf(0.975, degrees)) * float(total)**0.5
  return mean - half, mean + half
