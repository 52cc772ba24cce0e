"""Does the reward model order completions as labelers do, and does it know how sure it may be?

In: rankings and one score a completion. Out: accuracy on the pairs that a labeler does not tie,
expected calibration error, reliability table. Left out: rescaling of badly calibrated scores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.data import agreement

BINS = 10


def pair_differences(scores: Sequence[float], ranks: Sequence[int]) -> np.ndarray:
  """Score of the better minus that of the worse completion, for each pair that `ranks` does not
  tie: float64[pairs]."""
  values, order = np.asarray(scores, np.float64), np.asarray(ranks)
  if values.shape != order.shape:
    raise ValueError(f'one score and one rank a completion, not {values.shape} and {order.shape}')
  better, worse = np.nonzero(order[:, None] < order[None, :])
  return values[better] - values[worse]


def accuracy(differences: Sequence[np.ndarray]) -> dict[str, Any]:
  """Share of pairs ordered as the labeler did, equal scores counting ½; interval by bootstrap over
  prompts.

  Args:
    differences: for each prompt the `pair_differences` of all its rankings together.
  Returns: {'accuracy', 'accuracy_ci', 'pairs', 'prompts'}; None where there is no pair, no interval
    of one prompt.
  """
  right = [float(np.sum(one > 0) + 0.5 * np.sum(one == 0)) for one in differences]
  pairs = [one.size for one in differences]
  share, interval = agreement.ratio_interval(right, pairs)
  return {
    'accuracy': share,
    'accuracy_ci': interval,
    'pairs': int(sum(pairs)),
    'prompts': int(np.count_nonzero(pairs)),
  }


def calibration(differences: Sequence[np.ndarray]) -> dict[str, Any]:
  """Expected calibration error and reliability table of p = σ(r_a − r_b), a and b in random order.

  ECE = Σ_b (n_b / N) · |acc_b − conf_b| over 10 equal bins of p. In the labeler's order every
  outcome would be 1 and nothing be calibrated; so half of the pairs are turned round, by a fixed
  seed.

  Returns: {'ece': float or None, 'reliability': [{'low', 'high', 'confidence', 'accuracy', 'n'}]},
  empty bins left out.
  """
  pairs = np.concatenate([np.asarray(one, np.float64) for one in differences] or [np.zeros(0)])
  if not pairs.size:
    return {'ece': None, 'reliability': []}
  first_is_better = np.random.Generator(np.random.PCG64(0)).random(pairs.size) < 0.5
  probability = 1 / (1 + np.exp(-np.where(first_is_better, pairs, -pairs)))
  bins = np.minimum((probability * BINS).astype(int), BINS - 1)
  table, error = [], 0.0
  for index in range(BINS):
    here = bins == index
    if here.any():
      confidence, share = float(probability[here].mean()), float(first_is_better[here].mean())
      table.append(
        {
          'low': index / BINS,
          'high': (index + 1) / BINS,
          'confidence': confidence,
          'accuracy': share,
          'n': int(here.sum()),
        }
      )
      error += here.mean() * abs(share - confidence)
  return {'ece': float(error), 'reliability': table}
