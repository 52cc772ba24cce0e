"""The forms of over-optimisation: fits find the parameters that made the points."""

import numpy as np
import pytest

from rlhf_jax.evaluation import overoptimization

ALPHA, BETA = 0.9, 0.4  # the RL form turns at d = e^{1.25} = 3.49


def points(form, farthest, prompts=400, noise=0.0, seeds=3, count=9):
  """KL and score of `count` evaluations of each seed, each prompt about the curve."""
  dice = np.random.default_rng(1)
  d = np.tile(np.linspace(farthest / count, farthest, count), seeds)
  score = overoptimization.curve(form, d, ALPHA, BETA)
  kl = np.repeat(d[:, None]**2, prompts, axis=1)
  return (kl + noise * dice.normal(size=kl.shape),
          score[:, None] + noise * dice.normal(size=kl.shape), np.repeat(range(seeds), count))


def test_curves():
  d = np.array([0.0, 1.0, np.e])
  np.testing.assert_allclose(overoptimization.curve('rl', d, ALPHA, BETA),
                             [0, ALPHA, np.e * (ALPHA - BETA)])
  np.testing.assert_allclose(overoptimization.curve('bon', d, ALPHA, BETA),
                             [0, ALPHA - BETA, np.e * (ALPHA - BETA * np.e)])


@pytest.mark.parametrize('form', ['rl', 'bon'])
def test_the_peak_is_the_maximum(form):
  d = np.linspace(0, 8, 100001)
  curve = overoptimization.curve(form, d, ALPHA, BETA)
  place, height = overoptimization.peak(form, ALPHA, BETA)
  assert place == pytest.approx(d[np.argmax(curve)], abs=1e-3)
  assert height == pytest.approx(curve.max(), abs=1e-6)


@pytest.mark.parametrize('form, alpha, beta', [('rl', 1, 0), ('rl', 1, -0.1), ('bon', -1, 0.1),
                                               ('bon', 1, 0), ('rl', 1000, 0.1)])
def test_no_peak(form, alpha, beta):
  assert overoptimization.peak(form, alpha, beta) is None


@pytest.mark.parametrize('form, farthest', [('rl', 6.0), ('bon', 2.0)])
def test_exact_points_are_fitted_exactly(form, farthest):
  found = overoptimization.fit(form, *points(form, farthest))
  assert (found['alpha'], found['beta'], found['r2']) == pytest.approx((ALPHA, BETA, 1))
  assert found['alpha_ci'] == pytest.approx([ALPHA, ALPHA])
  place, height = overoptimization.peak(form, ALPHA, BETA)
  assert (found['peak']['d'], found['peak']['score']) == pytest.approx((place, height))
  assert found['peak']['reached'] and found['peak']['share'] == 1
  assert (found['points'], found['prompts'], found['seeds']) == (27, 400, 3)


def test_intervals_hold_the_truth_and_are_not_wide():
  found = overoptimization.fit('rl', *points('rl', 6.0, noise=1.0))
  for name, truth in (('alpha', ALPHA), ('beta', BETA)):
    low, high = found[f'{name}_ci']
    assert low < truth < high and high - low < 0.15
  low, high = found['peak']['d_ci']
  assert low < np.exp(ALPHA / BETA - 1) < high < 4.5


def test_a_peak_that_is_hardly_told_has_ends_that_can_be_printed():
  found = overoptimization.fit('rl', *points('rl', 0.8, noise=0.5, prompts=60))
  ends = [*found['peak']['d_ci'], *found['peak']['score_ci']]
  assert found['peak']['share'] < 0.5 and None in ends
  assert all(end is None or 0 < end < 100 * found['peak']['d'] for end in ends)


def test_heights_have_no_upper_end_where_many_resamples_never_turn():
  kl, score, seeds = points('rl', 3.0, noise=0.05, prompts=40)
  score[seeds == 2] = np.sqrt(np.maximum(kl[seeds == 2], 0))  # one seed that only climbs
  found = overoptimization.fit('rl', kl, score, seeds)
  assert found['peak']['d_ci'][1] is None and found['peak']['score_ci'][1] is None


def test_a_peak_that_was_not_reached():
  found = overoptimization.fit('rl', *points('rl', 2.0, noise=0.3))
  assert not found['peak']['reached'] and found['peak']['share'] < 0.5
  assert found['farthest'] == pytest.approx(2.0, abs=0.05)


def test_a_curve_that_never_turns_has_no_peak():
  kl, score, seeds = points('rl', 3.0)
  found = overoptimization.fit('rl', kl, kl * score.max(), seeds)
  assert found['beta'] < 0 and found['peak'] is None


def test_too_few_points():
  kl, score, seeds = points('rl', 3.0, seeds=1, count=3)
  assert overoptimization.fit('rl', kl, score, seeds) is None


def test_one_seed_and_one_prompt_have_no_intervals():
  found = overoptimization.fit('rl', *points('rl', 6.0, prompts=1, seeds=1))
  assert found['alpha'] == pytest.approx(ALPHA) and found['peak']['score'] > 0
  assert found['alpha_ci'] is found['beta_ci'] is None
  assert found['peak']['d_ci'] is found['peak']['score_ci'] is None


def test_a_seed_that_differs_widens_the_interval():
  """Seeds are redrawn as well as prompts."""
  kl, score, seeds = points('rl', 6.0, noise=0.1)
  narrow = overoptimization.fit('rl', kl, score, seeds)
  wide = overoptimization.fit('rl', kl, score * (1 + 0.5 * (seeds == 0))[:, None], seeds)
  width = lambda found: np.diff(found['alpha_ci'])[0]
  assert width(wide) > 5 * width(narrow)


def test_gold_units():
  """Where the judge's score is c times the reward model's, the factor is c."""
  proxies = np.random.default_rng(2).normal(size=(300, 8))
  assert overoptimization.gold_units(proxies, 0.7 * proxies + 3) == pytest.approx(0.7, rel=1e-3)
  noisy = proxies + np.random.default_rng(3).normal(size=proxies.shape)
  assert 0 < overoptimization.gold_units(noisy, 0.7 * proxies) < 0.5  # worth less than it says
  assert overoptimization.gold_units(np.zeros((3, 4)), proxies[:3, :4]) == 1
  assert overoptimization.gold_units(proxies[:, :1], proxies[:, :1]) is None  # nothing to order
  assert overoptimization.gold_units(proxies, -0.2 * proxies) is None  # no unit makes them agree
