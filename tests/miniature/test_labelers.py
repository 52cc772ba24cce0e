"""The labelers: who agrees with whom, how noise is solved for, and that each repeats itself."""

import itertools
import json
import random
import statistics

import numpy as np
import pytest

from rlhf_jax import miniature
from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import load_judge
from rlhf_jax.miniature import answers, crowd, habits, utility
from rlhf_jax.miniature.language import Dice


def samples(split, size, seed):
  """Prompts and 4 to 9 answers each by the average writer."""
  dice = Dice('tests', 'samples', split, seed)
  prompts = list(miniature.prompts(split, size, seed))
  texts = [
    [answers.answer(dict(p.meta), dice, habits.Habits()) for _ in range(4 + int(dice.random() * 6))]
    for p in prompts
  ]
  return prompts, texts


def agreement(judge, prompts, texts, people):
  """Share of pairs of responses, tied ones left out, that two people order alike: a plain loop."""
  alike = counted = 0
  for prompt, responses in zip(prompts, texts, strict=True):
    ranks = [judge(prompt, responses, person).ranks for person in people]
    for first, second in itertools.combinations(ranks, 2):
      for a, b in itertools.combinations(range(len(responses)), 2):
        if first[a] != first[b] and second[a] != second[b]:
          alike += (first[a] < first[b]) == (second[a] < second[b])
          counted += 1
  return alike / counted


@pytest.fixture(scope='module')
def solved():
  return miniature.labelers.calibrate(*samples('reward', 250, 0))


def test_calibration_reaches_the_agreement_of_the_paper_on_other_prompts(solved):
  judge = miniature.labelers.calibrated(json.loads(json.dumps(solved)))
  prompts, texts = samples('reward_heldout', 400, 1)
  assert agreement(judge, prompts, texts, miniature.TRAINING_LABELERS) == pytest.approx(
    0.726, abs=0.015
  )
  assert agreement(judge, prompts, texts, miniature.HELDOUT_LABELERS) == pytest.approx(
    0.773, abs=0.013
  )


def test_calibration_says_what_it_found(solved):
  assert set(solved) == {'training', 'heldout'}
  for group, entry in solved.items():
    assert entry['agreement'] == pytest.approx(crowd.AGREEMENT[group], abs=0.002)
    assert entry['pairs'] > 10000
  assert solved['training']['noise'] > solved['heldout']['noise'] > 0.3
  only = miniature.labelers.calibrate(
    *samples('reward', 30, 0), labelers=miniature.HELDOUT_LABELERS[:1]
  )
  assert set(only) == {'heldout'}


def test_noise_orders_them(solved):
  prompts, texts = samples('reward_heldout', 60, 2)
  shares = [
    agreement(crowd.Labelers(training=scale), prompts, texts, miniature.TRAINING_LABELERS)
    for scale in (0.0, 0.6, 2.5)
  ]
  assert shares[0] > 0.88 and shares[0] > shares[1] > shares[2] > 0.5


def test_the_vectorised_ranks_are_those_of_the_judge():
  random.seed(0)
  for _ in range(50):
    scores = [round(random.gauss(0, 0.3), 3) for _ in range(7)]
    padded = np.array([*scores, np.nan, np.nan])
    assert tuple(crowd._ranks(padded)[:7].astype(int)) == utility.ranks_of(scores, crowd.TIE)
    assert np.isnan(crowd._ranks(padded)[7:]).all()


def test_a_labeler_repeats_itself_and_differs_from_others():
  prompts, texts = samples('reward', 30, 3)
  judge = miniature.labelers
  for prompt, responses in zip(prompts, texts, strict=True):
    first = judge(prompt, responses, 'aino')
    assert first == judge(prompt, responses, 'aino')
    assert judge(prompt, responses[::-1], 'aino').scores == first.scores[::-1]
  assert any(
    judge(p, t, 'aino').ranks != judge(p, t, 'chen').ranks
    for p, t in zip(prompts, texts, strict=True)
  )
  other = crowd.Labelers(seed=1)
  assert any(
    other(p, t, 'aino').ranks != judge(p, t, 'aino').ranks
    for p, t in zip(prompts, texts, strict=True)
  )


def test_ties_are_allowed_and_ranks_start_at_one():
  assert utility.ranks_of([1.0, 3.0, 1.05, -2.0], 0.12) == (2, 1, 2, 3)
  assert utility.ranks_of([0.0, 0.0]) == (1, 1)
  assert utility.ranks_of([]) == ()
  prompts, texts = samples('reward', 200, 4)
  ranks = [miniature.labelers(p, t, 'dara').ranks for p, t in zip(prompts, texts, strict=True)]
  tied = statistics.mean(len(set(r)) < len(r) for r in ranks)
  assert 0.05 < tied < 0.9 and all(min(r) == 1 for r in ranks)


def test_labelers_follow_gold_on_the_whole():
  prompts, texts = samples('reward', 300, 5)
  right = counted = 0
  for prompt, responses in zip(prompts, texts, strict=True):
    scores = miniature.gold(prompt, responses).scores
    ranks = miniature.labelers(prompt, responses, 'hana').ranks
    for a, b in itertools.combinations(range(len(responses)), 2):
      if ranks[a] != ranks[b] and scores[a] != scores[b]:
        right, counted = right + ((ranks[a] < ranks[b]) == (scores[a] > scores[b])), counted + 1
  assert 0.72 < right / counted < 0.92


def test_noise_is_standard_normal():
  values = [crowd.normal('test', i) for i in range(4000)]
  assert statistics.mean(values) == pytest.approx(0, abs=0.05)
  assert statistics.stdev(values) == pytest.approx(1, abs=0.04)
  assert crowd.normal('test', 1) == values[1]


def test_flags_are_golds():
  prompts, texts = samples('reward', 20, 6)
  for prompt, responses in zip(prompts, texts, strict=True):
    assert (
      miniature.labelers(prompt, responses, 'emil').flags == miniature.gold(prompt, responses).flags
    )


def test_strangers_are_refused_with_near_misses():
  prompt = next(iter(miniature.prompts('reward', 1, 0)))
  with pytest.raises(BadInput, match='did you mean aino'):
    miniature.labelers(prompt, ['fox .'], 'ainu')


def test_judges_are_found_by_name():
  assert load_judge(miniature.GOLD) is miniature.gold
  assert load_judge(miniature.LABELERS) is miniature.labelers
  assert set(miniature.TRAINING_LABELERS).isdisjoint(miniature.HELDOUT_LABELERS)
