"""Best-of-n: what choosing by the reward model among n samples of the start gains, without
training.

In: N samples a prompt with the reward model's score and the judge's. Out: a row for each n. The
KL of best-of-n to what it samples from is ln n − (n−1)/n where no two samples are alike, and less
where some are (Gao et al. 2022). Left out: sampling.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.data import agreement


def divergence(n: int) -> float:
  """ln n − (n−1)/n, in nats."""
  return math.log(n) - (n - 1) / n


def unbiased(values: np.ndarray, proxies: np.ndarray, n: int) -> np.ndarray:
  """Mean over all sets of n of the N samples of the value of the one with the highest proxy.

  Σ_i C(i−1, n−1) / C(N, n) · value_(i), samples in order of their proxies (Nakano et al. 2021);
  equal proxies share their places.

  Args:
    values, proxies: [P, N].

  Returns:
    float64 [P], an unbiased estimate of best-of-n for each prompt.
  """
  values, proxies = np.asarray(values, np.float64), np.asarray(proxies)
  count = values.shape[1]
  whole = math.comb(count, n)
  weights = np.array([math.comb(i - 1, n - 1) / whole for i in range(1, count + 1)])
  found = np.empty(len(values))
  for row, (value, proxy) in enumerate(zip(values, proxies, strict=True)):
    _, place, sizes = np.unique(proxy, return_inverse=True, return_counts=True)
    shared = (np.bincount(place, value) / sizes)[place]
    found[row] = shared[np.argsort(proxy, kind='stable')] @ weights
  return found


def plain(values: np.ndarray, proxies: np.ndarray, n: int) -> np.ndarray:
  """The value of the best by proxy of the first n samples: float64 [P]."""
  best = np.argmax(np.asarray(proxies)[:, :n], axis=1)
  return np.take_along_axis(np.asarray(values, np.float64), best[:, None], axis=1)[:, 0]


def sizes(largest: int) -> list[int]:
  """1, 2, 4 … up to `largest`, which is the last."""
  return [*(2**k for k in range(largest.bit_length()) if 2**k < largest), largest]


def table(measures: Mapping[str, np.ndarray], proxies: np.ndarray) -> list[dict[str, Any]]:
  """One row for each n: 'n', 'kl', and for every measure NAME by the unbiased estimator, with
  NAME_low and NAME_high (95 %, bootstrap over prompts; None of one) and NAME_plain from the first n
  samples; NAME_gain, NAME_gain_low and NAME_gain_high are above one sample, prompt by prompt.

  Args:
    measures: name -> [P, N].
    proxies: [P, N], what is chosen by.
  """
  rows = []
  for n in sizes(proxies.shape[1]):
    row: dict[str, Any] = {'n': n, 'kl': divergence(n)}
    for name, values in measures.items():
      chosen = unbiased(values, proxies, n)
      row[f'{name}_plain'] = float(plain(values, proxies, n).mean())
      gained = chosen - unbiased(values, proxies, 1)
      for key, told in ((name, chosen), (f'{name}_gain', gained)):
        row[key], ends = agreement.ratio_interval(told)
        row[f'{key}_low'], row[f'{key}_high'] = ends or (None, None)
    rows.append(row)
  return rows
