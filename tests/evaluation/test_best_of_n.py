"""Best-of-n against every set of n samples, one by one."""

import itertools
import math

import numpy as np
import pytest

from rlhf_jax.evaluation import best_of_n

DICE = np.random.default_rng(0)


def by_hand(values, proxies, n):
  """The mean over all sets of n samples, of the mean of the values whose proxy is the highest."""
  found = []
  for some in itertools.combinations(range(len(values)), n):
    top = max(proxies[i] for i in some)
    found.append(np.mean([values[i] for i in some if proxies[i] == top]))
  return np.mean(found)


@pytest.mark.parametrize('n', [1, 2, 3, 6, 7])
def test_the_unbiased_estimator_is_the_mean_over_all_sets(n):
  values, proxies = DICE.normal(size=(3, 7)), DICE.normal(size=(3, 7))
  expected = [by_hand(v, p, n) for v, p in zip(values, proxies, strict=True)]
  np.testing.assert_allclose(best_of_n.unbiased(values, proxies, n), expected, rtol=1e-12)


def test_one_is_the_mean_and_all_is_the_best():
  values, proxies = DICE.normal(size=(4, 9)), DICE.normal(size=(4, 9))
  np.testing.assert_allclose(best_of_n.unbiased(values, proxies, 1), values.mean(axis=1))
  np.testing.assert_allclose(best_of_n.unbiased(values, proxies, 9),
                             values[np.arange(4), proxies.argmax(axis=1)])
  np.testing.assert_allclose(best_of_n.unbiased(values, proxies, 9),
                             best_of_n.plain(values, proxies, 9))


def test_equal_proxies_share_their_places():
  """Two samples with the highest proxy: of two drawn, {a, b}, {a, c}, {b, c}."""
  found = best_of_n.unbiased(np.array([[6.0, 0.0, 9.0]]), np.array([[1.0, 1.0, 0.0]]), 2)
  # C(i, n) / C(N, n): the two places above hold all three sets, half of them each.
  assert found == pytest.approx(3.0)
  assert best_of_n.unbiased(np.array([[6.0, 0.0, 9.0]]), np.zeros((1, 3)), 2) == pytest.approx(5.0)


def test_it_has_no_bias_where_the_first_n_have_none_either():
  """Over many prompts both estimate the same; the unbiased one varies less."""
  values = DICE.normal(size=(4000, 8))
  unbiased, plain = (function(values, values, 4) for function in (best_of_n.unbiased,
                                                                   best_of_n.plain))
  assert unbiased.mean() == pytest.approx(plain.mean(), abs=0.05)
  assert unbiased.std() < plain.std()


def test_divergence():
  assert best_of_n.divergence(1) == 0
  assert best_of_n.divergence(1000) == pytest.approx(5.91, abs=0.005)  # Gao et al. 2022
  assert best_of_n.divergence(2) == pytest.approx(math.log(2) - 0.5)


@pytest.mark.parametrize('largest, sizes', [(1, [1]), (2, [1, 2]), (64, [1, 2, 4, 8, 16, 32, 64]),
                                            (6, [1, 2, 4, 6])])
def test_sizes(largest, sizes):
  assert best_of_n.sizes(largest) == sizes


def test_table():
  proxies = DICE.normal(size=(50, 8))
  rows = best_of_n.table({'gold': proxies + 1, 'proxy': proxies}, proxies)
  assert [row['n'] for row in rows] == [1, 2, 4, 8]
  assert all(row['gold_low'] < row['gold'] < row['gold_high'] for row in rows)
  assert rows[-1]['proxy'] == pytest.approx(proxies.max(axis=1).mean())
  assert rows[0]['gold_plain'] == pytest.approx(1 + proxies[:, 0].mean())


def test_one_prompt_has_no_intervals():
  last = best_of_n.table({'gold': DICE.normal(size=(1, 4))}, DICE.normal(size=(1, 4)))[-1]
  assert last['gold_gain'] is not None
  assert {last[f'{name}_{end}'] for name in ('gold', 'gold_gain') for end in ('low', 'high')} == {
    None}


def test_gains_are_paired():
  """Prompts that are hard for all n widen the score's interval, not the gain's."""
  proxies = DICE.normal(size=(100, 8))
  first, *_, last = best_of_n.table({'gold': proxies + 10 * DICE.normal(size=(100, 1))}, proxies)
  assert first['gold_gain'] == first['gold_gain_low'] == first['gold_gain_high'] == 0
  assert last['gold_gain'] == pytest.approx(last['gold'] - first['gold'])
  assert last['gold_gain_high'] - last['gold_gain_low'] < 0.4
  assert last['gold_high'] - last['gold_low'] > 2
