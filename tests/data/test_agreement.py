"""Agreement between labelers on cases worked by hand."""

import tracemalloc

import numpy as np
import pytest

from rlhf_jax.data import agreement
from rlhf_jax.data.records import Ranking

TEXTS = ('a', 'b', 'c')


def ranked(labeler, ranks, prompt='p'):
  return Ranking(prompt, TEXTS, ranks, labeler=labeler)


@pytest.mark.parametrize('first, second, expected', [
  ((1, 2, 3), (1, 2, 3), (3, 3)),
  ((1, 2, 3), (3, 2, 1), (0, 3)),
  ((1, 2, 3), (2, 1, 3), (2, 3)),  # a and b turned round, c last for both
  ((1, 1, 2), (1, 2, 3), (2, 2)),  # a-b is tied by the first: left out
  ((1, 1, 2), (1, 2, 2), (1, 1)),  # a-b tied by the first, b-c by the second; a-c is left
  ((1, 1, 1), (1, 2, 3), (0, 0)),
  ((1, 4, 9), (1, 2, 3), (3, 3))])  # only the order counts
def test_ordered_alike(first, second, expected):
  _, signs = agreement.signs([ranked('x', first), ranked('y', second)])
  alike, told = agreement.ordered_alike(signs)
  assert (alike[0, 1], told[0, 1]) == (alike[1, 0], told[1, 0]) == expected


def test_share_over_all_pairs_of_labelers():
  rankings = [ranked('x', (1, 2, 3)), ranked('y', (2, 1, 3)), ranked('z', (3, 2, 1)),
              ranked('x', (1, 2, 3), 'q'), ranked('y', (1, 2, 2), 'q'),
              ranked('x', (1, 2, 3), 'alone')]
  told = agreement.agreement(rankings)
  # p: x-y 2 of 3, x-z 0 of 3, y-z 1 of 3 (a before b is turned by z: b-a alike); q: x-y 2 of 2
  assert told['agreement'] == (2 + 0 + 1 + 2) / (3 + 3 + 3 + 2)
  assert told['pairs'] == 11 and told['prompts'] == 2
  low, high = told['agreement_ci']
  assert low == pytest.approx(3 / 9) and high == pytest.approx(1)  # only p drawn, only q drawn


def test_only_labelers_that_count():
  rankings = [ranked('x', (1, 2, 3)), ranked('y', (2, 1, 3)), ranked('z', (3, 2, 1))]
  told = agreement.agreement(rankings, agreement.within({'x', 'z'}))
  assert told['agreement'] == 0 and told['pairs'] == 3


def test_only_the_completions_that_both_saw_are_compared():
  rankings = [ranked('x', (1, 2, 3)), Ranking('p', ('d', 'b', 'a'), (1, 2, 3), labeler='y')]
  told = agreement.agreement(rankings)  # x: a before b, y: b before a; the rest one of them saw
  assert told == {'agreement': 0, 'agreement_ci': None, 'pairs': 1, 'prompts': 1}
  apart = [ranked('x', (1, 2, 3)), Ranking('p', ('d', 'e'), (1, 2), labeler='y')]
  assert agreement.agreement(apart) == {
    'agreement': None, 'agreement_ci': None, 'pairs': 0, 'prompts': 0}


def test_the_order_in_which_completions_are_listed_does_not_matter():
  # Files of pairs list the winner first: labelers who disagree list them the other way round.
  pairs = [Ranking('p', ('a', 'b'), (1, 2), 'x'), Ranking('p', ('b', 'a'), (1, 2), 'y'),
           Ranking('p', ('b', 'a'), (2, 1), 'z')]
  told = agreement.agreement(pairs)
  assert told['agreement'] == 1 / 3 and told['pairs'] == 3


def test_the_pairs_of_one_labeler_are_one_opinion():
  pairs = [Ranking('p', ('a', 'b'), (1, 2), 'x'), Ranking('p', ('b', 'c'), (1, 2), 'x'),
           ranked('y', (1, 2, 3))]
  assert agreement.agreement(pairs)['pairs'] == 2
  assert agreement.agreement(pairs[:2])['pairs'] == 0
  assert agreement.agreement([ranked('', (1, 2, 3)), ranked('', (3, 2, 1))])['pairs'] == 0
  contradiction = [*pairs, Ranking('p', ('b', 'a'), (1, 2), 'x')]
  assert agreement.agreement(contradiction)['pairs'] == 1


def test_interval_of_a_mean_is_that_of_the_normal_approximation():
  values = np.random.default_rng(1).random(900) < .7
  mean, (low, high) = agreement.ratio_interval(values)
  half = 1.96 * np.sqrt(mean * (1 - mean) / 900)
  assert mean == values.mean()
  assert low == pytest.approx(mean - half, abs=0.004) and high == pytest.approx(
    mean + half, abs=0.004
  )


def test_interval_redraws_prompts_and_not_pairs():
  # 50 prompts of 100 pairs each, all right or all wrong: as uncertain as 50 coins, not 5,000.
  right = np.array([100.0, 0.0] * 25)
  _, (low, high) = agreement.ratio_interval(right, np.full(50, 100.0))
  assert high - low == pytest.approx(2 * 1.96 * .5 / np.sqrt(50), rel=.1)


def test_interval_of_many_prompts_is_that_of_all_resamples_at_once(monkeypatch):
  generator = np.random.default_rng(0)
  above, below = generator.random(301), generator.integers(0, 3, 301)
  whole = agreement.ratio_interval(above, below)
  for name in ('_BLOCK', '_KEPT'):  # kept in blocks, then drawn anew
    agreement._many.cache_clear()
    agreement._few.cache_clear()
    monkeypatch.setattr(agreement, name, 1000)
    share, interval = agreement.ratio_interval(above, below)
    assert share == whole[0] and interval == pytest.approx(whole[1], abs=1e-12)


def test_the_memory_of_an_interval_has_a_limit(monkeypatch):
  monkeypatch.setattr(agreement, 'RESAMPLES', 200)
  monkeypatch.setattr(agreement, '_BLOCK', 2**18)
  monkeypatch.setattr(agreement, '_KEPT', 2**18)
  tracemalloc.start()
  try:
    agreement.ratio_interval(np.arange(20_000))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 12e6  # 200 resamples of 20,000 numbers are 32 MB


def test_interval_is_the_same_every_time_and_refuses_other_shapes():
  agreement._few.cache_clear()
  first = agreement.ratio_interval([1, 0, 1, 1])
  agreement._few.cache_clear()
  assert agreement.ratio_interval([1, 0, 1, 1]) == first
  assert agreement.ratio_interval([]) == (None, None)
  assert agreement.ratio_interval([3.0, 0.0], [4, 0]) == (0.75, None)  # one prompt counts
  assert agreement.ratio_interval([0.0, 0.0], [0, 0]) == (None, None)
  with pytest.raises(ValueError, match='one numerator'):
    agreement.ratio_interval([1, 2], [1])


def test_two_noisy_labelers_agree_as_often_as_arithmetic_says():
  # Each orders two completions rightly with c = 0.837: they agree c² + (1 − c)² = 72.7 % of the
  # time.
  random = np.random.default_rng(0)
  rankings = []
  for i in range(4000):
    for labeler in 'xy':
      ranks = (1, 2) if random.random() < .837 else (2, 1)
      rankings.append(Ranking(str(i), ('a', 'b'), ranks, labeler=labeler))
  told = agreement.agreement(rankings)
  assert told['agreement'] == pytest.approx(.727, abs=.02)
  assert told['agreement_ci'][0] < .727 < told['agreement_ci'][1]
