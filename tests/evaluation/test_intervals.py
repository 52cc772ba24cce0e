"""Intervals over few seeds: how often they hold the truth, and the closed forms they come to."""

import numpy as np
import pytest
import scipy.stats

from rlhf_jax.evaluation import intervals


@pytest.mark.parametrize('seeds, of_seeds, of_prompts, of_both', [
  (3, 1.0, 0.1, 0.1), (3, 0.3, 1.0, 1.0), (3, 0.0, 1.0, 1.0), (5, 0.3, 1.0, 1.0)])
def test_the_truth_is_inside_in_about_95_of_100(seeds, of_seeds, of_prompts, of_both):
  """With three seeds that differ much, redraws hold it in 77 of 100."""
  dice, inside, prompts = np.random.default_rng(0), 0, 256
  for _ in range(1000):
    values = (of_seeds * dice.normal(size=(seeds, 1)) + of_prompts * dice.normal(size=(1, prompts))
              + of_both * dice.normal(size=(seeds, prompts)))
    _, (low, high) = intervals.two_way(values)
    inside += low < 0 < high
  assert 0.9 < inside / 1000 < 0.99


def test_seeds_alone_are_students_t():
  """Prompts that do not differ: the interval of three numbers."""
  seeds = np.array([1.0, 2.0, 4.5])
  mean, found = intervals.two_way(np.repeat(seeds[:, None], 50, axis=1))
  wanted = scipy.stats.t.interval(0.95, 2, seeds.mean(), scipy.stats.sem(seeds))
  assert mean == pytest.approx(2.5) and found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize('turned', [False, True])
def test_one_seed_is_over_its_prompts_alone(turned):
  prompts = np.random.default_rng(1).normal(size=(1, 40))
  _, found = intervals.two_way(prompts.T if turned else prompts)
  wanted = scipy.stats.t.interval(0.95, 39, prompts.mean(), scipy.stats.sem(prompts[0]))
  assert found == pytest.approx(wanted)


def test_what_is_missing_is_left_out():
  """Half of the prompts have no number in any seed, one has none in a single seed."""
  values = np.random.default_rng(2).normal(size=(3, 40))
  without = np.concatenate([values, np.full((3, 40), np.nan)], axis=1)
  assert intervals.two_way(without) == intervals.two_way(values)
  values[1, 7] = np.nan
  mean, (low, high) = intervals.two_way(values)
  assert mean == pytest.approx(np.nanmean(values)) and low < mean < high


def test_a_single_number_has_no_interval():
  assert intervals.two_way(np.array([[0.3, np.nan]])) == (0.3, None)
  assert intervals.redrawn(2.0, np.full(10, 2.0), 1, np.full(10, 2.0), 1) is None
  _, (low, high) = intervals.two_way(np.array([[0.5]]), share=True)  # Wilson's
  assert low < 0.1 and high > 0.9


def test_ties_alone_have_a_width():
  assert intervals.two_way(np.full((2, 10), 0.5), share=True)[1] == pytest.approx(
    [.2366, .7634], abs=1e-4)


def test_shares_stay_within_0_and_1():
  wins = np.zeros((3, 30))
  wins[0, :5] = 1.0
  _, (low, high) = intervals.two_way(wins, share=True)
  assert low == 0 and 0 < high <= 1
  assert intervals.two_way(wins)[1][0] < 0  # a difference
  assert intervals.two_way(np.zeros((3, 30))) == (0.0, [0.0, 0.0])


def test_differences_of_shares_stay_within_1():
  values = np.array([[1.0, 0.5], [0.0, -0.5]])
  assert intervals.two_way(values)[1][1] > 1
  assert intervals.of_shares(values) == (0.25, [-1.0, 1.0])
  assert intervals.of_shares(np.full((1, 1), 0.5)) == (0.5, None)
  assert intervals.of_shares(np.full((2, 2), np.nan)) == (None, None)


def test_an_estimate_from_redraws_of_three_seeds_is_the_t_of_three():
  """The mean of seeds as an estimate: redraws vary two thirds as much as new seeds."""
  dice = np.random.default_rng(3)
  seeds = np.array([0.2, 1.0, 1.3])
  drawn = seeds[dice.integers(0, 3, (200_000, 3))].mean(axis=1)
  found = intervals.redrawn(seeds.mean(), drawn, 3, np.full(10, seeds.mean()), 100)
  wanted = scipy.stats.t.interval(0.95, 2, seeds.mean(), scipy.stats.sem(seeds))
  assert found == pytest.approx(wanted, rel=1e-2)


def test_redraws_that_give_nothing():
  same = np.full(10, 2.0)
  assert intervals.redrawn(2.0, same, 3, same, 100) == [2.0, 2.0]
  assert intervals.redrawn(np.nan, same, 3, same, 100) is None
  holes = np.where(np.arange(1000) % 2, np.nan, np.random.default_rng(4).normal(size=1000))
  low, high = intervals.redrawn(0.0, np.full(10, np.nan), 3, holes, 100)
  assert -2.2 < low < -1.8 and 1.8 < high < 2.2
