"""Variants against each other: by hand, and where the answer is known."""

import numpy as np
import pytest

from rlhf_jax.evaluation import compared, study

DICE = np.random.default_rng(1)
GOLD, KL = (lambda row: row['gold']), (lambda row: row['kl'])


def rows(gold, kl=0.0):
  return [{'gold': value, 'kl': kl} for value in gold]


def test_what_all_have_in_common_cancels():
  common = DICE.normal(size=200) * 5
  one = {seed: {1: rows(common), 9: rows(common + 1 + 0.1 * DICE.normal(size=200))}
         for seed in (0, 1, 2)}
  other = {seed: {4: rows(common)} for seed in (2, 0, 7)}
  found = compared.at_the_end(one, other, GOLD, study.two_way)
  assert found['mean'] == pytest.approx(1, abs=0.02) and found['n'] == 400 and found['seeds'] == 2
  assert 0.9 < found['low'] < found['mean'] < found['high'] < 1.1  # two seeds are few


def test_the_other_is_taken_where_it_was_as_far():
  """By hand: d = 0, 1, 3 at steps 1, 2, 3; gold 0, 4, 10. At d = 2 that is 7."""
  path = {1: rows([-1, 1], 0), 2: rows([3, 5], 1), 3: rows([9, 11], 9)}
  one = {0: {5: rows([8, 10], 4)}}
  found = compared.at_the_same_kl(one, {0: path}, KL, GOLD, study.two_way)
  assert found['mean'] == pytest.approx(2) and found['d'] == 2 and found['seeds'] == 1


def test_the_first_time_counts():
  path = {1: rows([0.0], 0), 2: rows([4.0], 4), 3: rows([7.0], 1), 4: rows([9.0], 9)}
  one = {0: {5: rows([4.0], 4)}}
  assert compared.at_the_same_kl(one, {0: path}, KL, GOLD, study.two_way)['mean'] == 0


def test_who_never_went_so_far_is_left_out():
  one = {0: {5: rows([1.0, 2.0], 4)}, 1: {5: rows([1.0, 2.0], 1)}}
  path = {1: rows([0.0, 0.0], 0), 2: rows([0.5, 1.5], 1)}
  found = compared.at_the_same_kl(one, {0: path, 1: path}, KL, GOLD, study.two_way)
  assert found['seeds'] == 1 and found['d'] == 1 and found['mean'] == pytest.approx(0.5)
  assert compared.at_the_same_kl({0: one[0]}, {0: path}, KL, GOLD, study.two_way) is None
  assert compared.at_the_same_kl(one, {}, KL, GOLD, study.two_way) is None
  fewer = {0: {5: rows([1.0], 4)}}
  assert compared.at_the_end(one, fewer, GOLD, study.two_way) is None


def test_other_prompts_are_not_compared():
  """As many, of other lengths say: what they have in common does not cancel."""
  path = lambda first: {step: [some | {'id': f'{first + i}'} for i, some in enumerate(
    rows([1.0, 2.0], step))] for step in (1, 4)}
  one, other = {0: path(0)}, {0: path(2)}
  assert compared.at_the_end(one, other, GOLD, study.two_way) is None
  assert compared.at_the_same_kl(one, other, KL, GOLD, study.two_way) is None
  assert compared.at_the_end(one, {0: path(0)}, GOLD, study.two_way)['n'] == 2


def test_nobody_judged():
  one = {0: {5: rows([None, None], 4)}}
  assert compared.at_the_end(one, one, GOLD, study.two_way) is None
