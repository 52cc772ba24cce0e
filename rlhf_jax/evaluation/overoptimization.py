"""Over-optimisation: how the judge's score grows and falls with the distance from the start.

  d = √KL(π ‖ π_start);   best-of-n  R(d) = d·(α − β·d);   RL  R(d) = d·(α − β·ln d)
                                                       (Gao, Schulman, Hilton 2022, §3)
In: scores re-centred on the start, KL in nats. Out: α, β, R², the peak, with intervals from
redrawn seeds and prompts. Both forms are linear in (α, β): a fit is
least squares, without a starting point.
Left out: what the coefficients become with model size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize

from rlhf_jax.evaluation import intervals

RESAMPLES = 1000
LEAST = 4  # points that two coefficients are fitted to
CURVE = 40  # places at which curves over √KL are told
WIDE = 10.0  # an interval that goes beyond so many times the estimate is told by resamples instead


def curve(form: str, d: np.ndarray, alpha: float, beta: float) -> np.ndarray:
  """R(d), 0 at d = 0."""
  first, second = _columns(form, np.asarray(d, np.float64))
  return alpha * first + beta * second


def peak(form: str, alpha: float, beta: float) -> tuple[float, float] | None:
  """(d*, R(d*)) of the maximum; None where the form has none (β ≤ 0, or α ≤ 0 of best-of-n)."""
  if beta <= 0 or (form == 'bon' and alpha <= 0):
    return None
  if form == 'bon':
    return alpha / (2 * beta), alpha**2 / (4 * beta)
  if alpha / beta > 700:  # e to that is no float
    return None
  d = float(np.exp(alpha / beta - 1))
  return d, beta * d


def fit(form: str, kl: np.ndarray, score: np.ndarray, seeds: Sequence[int]
        ) -> dict[str, Any] | None:
  """Least squares over all points of a curve, with 95 % intervals.

  Prompts and seeds are redrawn, each with replacement: every number rests on both, and on few
  seeds (`intervals.redrawn`).

  Args:
    form: 'rl' or 'bon'.
    kl, score: [M, P], nats and score above the start's, of each point and prompt; a row that is
      one number throughout has no error of its own (best-of-n's KL).
    seeds: [M], which run a point is of.

  Returns:
    {'form', 'alpha', 'alpha_ci', 'beta', 'beta_ci', 'r2', 'points', 'prompts', 'seeds', 'peak',
    'farthest'}; None for fewer than LEAST points away from the start, or all at one distance.
    Intervals are None of one seed and one prompt. R² is centred, None where all scores are alike.
    'peak' is None or
    {'d', 'd_ci', 'score', 'score_ci', 'reached', 'share'}: an upper end is None where more than
    2.5 % of the resamples have no maximum, or one beyond all measure, 'reached' says whether d* was
    gone beyond, 'share' is that of the resamples, of seeds and prompts both, whose maximum was.
  """
  kl, score, seeds = np.asarray(kl, float), np.asarray(score, float), np.asarray(seeds)
  d, mean = _distance(kl.mean(axis=1)), score.mean(axis=1)
  if np.sum(d > 0) < LEAST:
    return None
  random = np.random.Generator(np.random.PCG64(0))
  known, count = np.unique(seeds), kl.shape[1]
  shares = random.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
  drawn = random.multinomial(len(known), np.full(len(known), 1 / len(known)), RESAMPLES)
  weights = drawn[:, np.searchsorted(known, seeds)].astype(float)  # [resamples, M]
  alone, whole = np.ones((RESAMPLES, len(d))), np.full((RESAMPLES, count), 1 / count)
  solved = lambda shares, weights: _solve(form, _distance(shares @ kl.T), shares @ score.T, weights)
  found = {'seeds': solved(whole, weights), 'prompts': solved(shares, alone),
           'both': solved(shares, weights)}
  (alpha,), (beta,) = _solve(form, d[None], mean[None], np.ones((1, len(d))))
  if not np.isfinite(alpha + beta):
    return None
  told = lambda estimate, of: intervals.redrawn(estimate, of(*found['seeds']), len(known),
                                                of(*found['prompts']), count)
  missed = np.sum((mean - curve(form, d, alpha, beta))**2)
  varied = np.sum((mean - mean.mean())**2)
  return {
    'form': form, 'alpha': float(alpha), 'alpha_ci': told(alpha, lambda alphas, betas: alphas),
    'beta': float(beta), 'beta_ci': told(beta, lambda alphas, betas: betas),
    'r2': float(1 - missed / varied) if varied else None, 'points': len(d), 'prompts': count,
    'seeds': len(known), 'farthest': float(d.max()),
    'peak': _peak(form, alpha, beta, found, told, float(d.max()))}


def gold_units(proxies: np.ndarray, gold: np.ndarray) -> float | None:
  """How many of the judge's units one of the reward model's is worth; None where its order is the
  judge's reversed, if anything, or where a prompt has one sample: then no common unit is known.

  The factor c for which σ(c·(r_a − r_b)) predicts σ(g_a − g_b) best in cross-entropy, on pairs of
  samples of the start (Gao et al. 2022 rescale their proxies so).

  Args:
    proxies, gold: [P, N]; samples 2i and 2i+1 of a prompt are a pair.
  """
  even = proxies.shape[1] // 2 * 2
  pairs = [np.ravel(values[:, 0:even:2] - values[:, 1:even:2]) for values in (proxies, gold)]
  reward, wanted = pairs[0], 1 / (1 + np.exp(-pairs[1]))
  if not reward.size:
    return None
  if not np.any(reward):
    return 1.0
  loss = lambda c: np.mean(np.logaddexp(0, c * reward) - wanted * c * reward)
  found = float(scipy.optimize.minimize_scalar(loss).x)
  return found if found > 0 else None


def fitted(fit: Mapping[str, Any]) -> dict[str, list[float]]:
  """The fitted curve, as far as was gone."""
  d = np.linspace(0.0, fit['farthest'], CURVE)
  score = curve(fit['form'], d, fit['alpha'], fit['beta'])
  return {'d': d.tolist(), 'score': score.tolist()}


def bands(paths: Sequence[Mapping[str, Sequence[float]]], names: Sequence[str]) -> dict[str, Any]:
  """{'d', NAME: {'mean', 'low', 'high'}}: linear between the evaluations of each seed, as far as
  all of them went; low and high are the lowest and highest seed.
  """
  d = np.linspace(0.0, min(max(path['d']) for path in paths), CURVE)
  told: dict[str, Any] = {'d': d.tolist()}
  for name in names:
    lines = []
    for path in paths:
      order = np.argsort(path['d'])
      lines.append(np.interp(d, np.array(path['d'])[order], np.array(path[name])[order]))
    told[name] = {key: function(lines, axis=0).tolist() for key, function in (
      ('mean', np.mean), ('low', np.min), ('high', np.max))}
  return told


def _columns(form: str, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """What α and β multiply."""
  if form == 'bon':
    return d, -d * d
  return d, -d * np.log(np.where(d > 0, d, 1.0))


def _distance(kl: np.ndarray) -> np.ndarray:
  # k1 is signed: near the start its mean may be below 0.
  return np.sqrt(np.maximum(kl, 0.0))


def _solve(form: str, d: np.ndarray, score: np.ndarray, weights: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray]:
  """Weighted least squares of each row: α and β [B] from [B, M]; NaN where they are not told
  apart.
  """
  first, second = _columns(form, d)
  total = lambda x: np.sum(weights * x, axis=1)
  aa, ab, bb = total(first * first), total(first * second), total(second * second)
  ya, yb, determinant = total(first * score), total(second * score), aa * bb - ab * ab
  determinant = np.where(determinant > 1e-12 * aa * bb, determinant, np.nan)
  return (bb * ya - ab * yb) / determinant, (aa * yb - ab * ya) / determinant


def _places(form: str, alphas: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(d*, R(d*)) of each pair; inf and NaN where there is no maximum."""
  told = [peak(form, a, b) if np.isfinite(a + b) else None
          for a, b in zip(alphas, betas, strict=True)]
  return (np.array([np.inf if one is None else one[0] for one in told]),
          np.array([np.nan if one is None else one[1] for one in told]))


def _peak(form: str, alpha: float, beta: float, found: Mapping[str, Any], told: Any,
          farthest: float) -> dict[str, Any] | None:
  """Where the fitted curve turns, see `fit`."""
  here = peak(form, alpha, beta)
  if here is None:
    return None
  places, heights = _places(form, *found['both'])
  ends = []
  for index, both in enumerate((places, heights)):
    # By logarithms: both are positive, and exponentials of α/β.
    log = lambda alphas, betas, index=index: np.log(_places(form, alphas, betas)[index])
    logs = told(np.log(here[index]), log)
    turn = np.isfinite(places).mean() > 0.975
    if turn and logs is None:  # nothing that could be redrawn
      ends.append(None)
    elif turn and logs[1] - logs[0] < 2 * np.log(WIDE):
      ends.append([float(np.exp(end)) for end in logs])
    else:  # where some never turn, or nearly so, no variance tells anything
      some = both[~np.isnan(both)]
      low, high = np.quantile(some, [0.025, 0.975], method='nearest')
      ends.append([float(low), float(high) if turn and high < WIDE**2 * here[index] else None])
  return {'d': here[0], 'd_ci': ends[0], 'score': here[1], 'score_ci': ends[1],
          'reached': bool(here[0] < farthest), 'share': float(np.mean(places < farthest))}
