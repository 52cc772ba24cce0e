"""Win rates, reward-model accuracy, calibration and text statistics against cases worked by
hand."""

import numpy as np
import pytest

from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import Judgement, Prompt, Ranking
from rlhf_jax.evaluation import judged, results, reward_accuracy, text_statistics, winrate


def test_ties_count_one_half():
  assert [winrate.win(1, 2), winrate.win(2, 1), winrate.win(1, 1)] == [1, 0, .5]
  rate = winrate.win_rate([1, 1, 0, .5] * 150)
  assert rate['mean'] == .625 and rate['n'] == 600
  # standard deviation of {1, 1, 0, ½}: √(.171875) = .41458; 1.96 · .41458 / √600 = .0332
  assert rate['low'] == pytest.approx(.625 - .0332, abs=.003)
  assert rate['high'] == pytest.approx(.625 + .0332, abs=.003)


def test_where_all_agree_the_interval_keeps_a_width():
  # Wilson with k = n = 10: the lower end is 10 / (10 + 1.96²) = .7225
  assert winrate.win_rate([1] * 10)['low'] == pytest.approx(0.7225, abs=1e-4)
  assert winrate.win_rate([1] * 10)['high'] == 1
  assert winrate.rate([0.0] * 10) == (0, [0, pytest.approx(0.2775, abs=1e-4)])
  # Of 10 ties: ½ ± 1.96 · √(10 + 1.96²) / 2(10 + 1.96²) = ½ ± .2634
  assert winrate.rate([0.5] * 10)[1] == pytest.approx([.2366, .7634], abs=1e-4)


def test_one_prompt_has_no_interval_to_redraw():
  row = {'proxy': 1.0, 'kl': 2.0, 'length': 3, 'judgement': None, 'ended': True, 'category': 'x',
         'response': 'so', 'reference_proxy': 1.0}
  entry = results.model_entry([row], 'sft')
  assert [entry[f'{name}_ci'] for name in ('gold', 'proxy', 'kl', 'response_length')] == [None] * 4
  assert entry['kl'] == 2.0 and results.loss_entry([(2.0, 3)], [(1.0, 3)])[
    'pretraining_loss_change_ci'] is None
  assert reward_accuracy.accuracy([np.array([1.0, -1.0]), np.zeros(0)])['accuracy_ci'] is None
  # Wilson of one tie, worked by hand: ½ ± 1.96 · √(¼ + 1.96²/4) / (1 + 1.96²) = ½ ± .4454
  tie = winrate.win_rate([0.5])
  assert (tie['low'], tie['high']) == pytest.approx((.0546, .9454), abs=1e-4)


def test_no_verdicts():
  assert winrate.win_rate([]) == {'mean': None, 'low': None, 'high': None, 'n': 0}


def test_pairs_that_the_labeler_ties_are_left_out():
  # b > a = c: two pairs, b−a = 3 − 1 and b−c = 3 − 4
  found = reward_accuracy.pair_differences([1, 3, 4], [2, 1, 2])
  assert sorted(found) == [-1, 2]
  assert reward_accuracy.pair_differences([1, 2], [1, 1]).size == 0
  with pytest.raises(ValueError, match='one score and one rank'):
    reward_accuracy.pair_differences([1, 2, 3], [1, 2])


def test_accuracy_counts_pairs_and_halves_equal_scores():
  told = reward_accuracy.accuracy([np.array([1.0, -1.0, 0.0]), np.array([2.0]), np.array([])])
  assert told['accuracy'] == (1 + .5 + 1) / 4 and told['pairs'] == 4 and told['prompts'] == 2
  assert told['accuracy_ci'] == pytest.approx(
    [0.5, 1]
  )  # only the first prompt drawn, only the second
  assert reward_accuracy.accuracy([])['accuracy'] is None


def test_calibrated_scores_have_no_error_and_bold_ones_do():
  random = np.random.default_rng(0)
  true = random.normal(size=40000) * 2
  better = random.random(40000) < 1 / (1 + np.exp(-true))
  differences = [np.where(better, true, -true)]  # better minus worse
  honest = reward_accuracy.calibration(differences)
  assert honest['ece'] < .01 and sum(row['n'] for row in honest['reliability']) == 40000
  for row in honest['reliability']:
    assert row['low'] <= row['confidence'] <= row['high']
    assert row['accuracy'] == pytest.approx(row['confidence'], abs=.03)
  assert reward_accuracy.calibration([3 * one for one in differences])['ece'] > .1


def test_expected_calibration_error_by_hand():
  # Scores that differ by ln 3 either way: p is ¾ or ¼. All four pairs ordered right: the share is 1
  # or 0, so each pair is wrong by ¼, whichever way it was turned.
  told = reward_accuracy.calibration([np.full(4, np.log(3))])
  assert told['ece'] == pytest.approx(.25)
  assert all(
    row['accuracy'] in (0, 1) and row['confidence'] == pytest.approx(0.25 + 0.5 * row['accuracy'])
    for row in told['reliability']
  )
  assert reward_accuracy.calibration([])['ece'] is None


def test_distinct_and_repetition():
  texts = ['the cat saw the cat', 'the dog', '']
  assert text_statistics.distinct(texts, 1) == 4 / 7
  assert text_statistics.distinct(texts, 2) == 4 / 5  # the-cat twice; cat-saw, saw-the, the-dog
  assert text_statistics.distinct(['word'], 2) is None
  assert text_statistics.repetition(texts, 2) == pytest.approx((1 / 4 + 0) / 2)
  assert text_statistics.statistics(texts)['words'] == pytest.approx(7 / 3)
  assert text_statistics.statistics([])['distinct_1'] is None


def judge(prompt, responses, labeler):
  """Longer is better, up to rounding to words; flags as a judge of the miniature world gives
  them."""
  lengths = [float(len(text.split())) for text in responses]
  order = sorted(set(lengths), reverse=True)
  flags = tuple(
    {'rude': 'fool' in text}
    | ({'hallucination': 'moon' in text} if prompt.category == 'closed' else {})
    for text in responses
  )
  return Judgement(tuple(lengths), tuple(order.index(n) + 1 for n in lengths), flags)


PROMPTS = [Prompt('one', 'closed'), Prompt('two', 'open'), Prompt('three', 'open')]


def test_judged_rows():
  metrics, rows = judged.judge_rows(
    judge, PROMPTS, ['on the moon', 'fool', 'a b …'], ['x', 'y', 'a b c d']
  )
  assert metrics['win_rate'] == (1 + .5 + 0) / 3 and metrics['gold'] == (3 + 1 + 3) / 3
  assert (
    metrics['rude_rate'] == 1 / 3 and metrics['hallucination_rate'] == 1
  )  # only one prompt brings a passage
  assert (
    metrics['eos_rate'] == 2 / 3 and metrics['distinct_2'] == 1 and 'response_length' not in metrics
  )
  assert all(isinstance(value, float) for value in metrics.values())
  assert rows[0]['judgement'] == {
    'score': 3.0,
    'flags': {'rude': False, 'hallucination': False} | {'hallucination': True},
    'win': 1.0,
    'reference_score': 1.0,
  }
  assert rows[2]['ended'] is False and rows[2]['reference'] == 'a b c d'
  assert len({row['id'] for row in rows}) == 3


def test_the_judge_is_shown_the_response_first_in_half_of_the_prompts():
  """A judge that likes what it reads first must not move a win rate."""
  asked = [Prompt(f'prompt {i}') for i in range(200)]
  first = lambda prompt, texts, labeler: Judgement((1.0, 0.0), (1, 2), ({'a': True}, {'a': False}))
  metrics, rows = judged.judge_rows(first, asked, ['x'] * 200, ['y'] * 200)
  assert 0.4 < metrics['win_rate'] < 0.6
  for row in rows:
    told = row['judgement']
    assert told['win'] == told['score'] == 1 - told['reference_score'] == told['flags']['a']


@pytest.mark.parametrize('references', [None, ['x', 'y', 'z']])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_judge_whose_scores_are_no_numbers_is_named_with_the_prompt(bad, references):
  def doubtful(prompt, texts, labeler):
    score = bad if prompt.prompt == 'two' else 1.0
    return Judgement((score,) * len(texts), (1,) * len(texts))

  with pytest.raises(BadInput, match=r'doubtful.: expected finite scores, found (nan|inf).*"two"'):
    judged.judge_rows(doubtful, PROMPTS, ['a', 'b', 'c'], references)


def test_judged_without_judge_or_references():
  metrics, rows = judged.judge_rows(None, PROMPTS, ['a', 'b', 'c'], ['x', 'y', 'z'])
  assert 'win_rate' not in metrics and 'gold' not in metrics and rows[0]['judgement'] is None
  metrics, _ = judged.judge_rows(judge, PROMPTS, ['a', 'b', 'c'])
  assert 'win_rate' not in metrics and metrics['gold'] == 1


def test_model_entry_by_hand():
  _, rows = judged.judge_rows(
    judge, PROMPTS, ['on the moon', 'fool', 'a b …'], ['x', 'y', 'a b c d']
  )
  for row, proxy in zip(rows, (1.0, 2.0, 6.0), strict=True):
    row |= {'proxy': proxy, 'reference_proxy': 2.0, 'kl': proxy / 2, 'length': 4}
  entry = results.model_entry(rows, 'sft')
  assert entry['win_rate_vs_sft']['mean'] == .5 and entry['win_rate_vs_sft']['n'] == 3
  assert (entry['proxy'], entry['kl'], entry['response_length']) == (3, 1.5, 4)
  assert entry['hallucination_rate'] == 1 and entry['hallucination_rate_n'] == 1
  assert (
    entry['truthful_rate'] is None
    and entry['constraint_rate'] is None
    and entry['truthful_rate_n'] == 0
  )
  assert list(entry['by_category']) == ['closed', 'open']
  assert entry['by_category']['open']['n'] == 2
  assert entry['by_category']['open']['win_rate_vs_sft']['mean'] == .25
  assert (
    entry['by_category']['closed']['gold'] == 3
    and entry['by_category']['closed']['hallucination_rate'] == 1
  )


def test_rudeness_that_was_asked_for_is_told_apart():
  asked = [Prompt(str(i), 'open', meta={'register': register} if register else {})
           for i, register in enumerate(['', '', '', '', 'kind', 'kind', 'rude', 'rude', ['odd']])]
  texts = ['fool', 'a', 'b', 'c', 'd', 'fool', 'fool', 'fool', 'e']
  metrics, rows = judged.judge_rows(judge, asked, texts, ['x'] * 9)
  assert [row.get('register') for row in rows[3:7]] == [None, 'kind', 'kind', 'rude']
  assert metrics['rude_rate'] == 2 / 7  # the two that asked for it are left out
  entry = results.model_entry(rows, 'sft')
  assert (entry['rude_rate'], entry['rude_rate_n']) == (2 / 7, 7)
  assert entry['by_category']['open']['rude_rate'] == 2 / 7
  found = entry['rude_rate_by_request']
  assert {name: (rate['mean'], rate['n']) for name, rate in found.items()} == {
    'respectful': (0.5, 2), 'none': (0.2, 5), 'rude': (1.0, 2)}
  assert found['rude']['high'] == 1 and found['rude']['low'] < 1
  # Nobody asks for a tone, or nobody says what is rude: nothing to take apart.
  assert results.model_entry(rows[:4], 'sft')['rude_rate_by_request'] is None
  for row in rows:
    row['judgement'] = None
    row |= {'proxy': 1.0, 'reference_proxy': 1.0}
  assert results.model_entry(rows, 'sft')['rude_rate_by_request'] is None


def test_without_a_judge_the_reward_model_decides():
  _, rows = judged.judge_rows(None, PROMPTS, ['a', 'b', 'c'], ['x', 'y', 'z'])
  for row, proxy in zip(rows, (1.0, 2.0, 6.0), strict=True):
    row |= {'proxy': proxy, 'reference_proxy': 2.0, 'kl': 0.0}
  entry = results.model_entry(rows, 'base')
  assert entry['win_rate_vs_base']['mean'] == .5 and entry['judge'] == 'reward model'
  assert entry['gold'] is None and entry['rude_rate'] is None


def rankings(ranks):
  return [Ranking(f'prompt {i}', ('a', 'b b', 'c c c'), order, labeler=labeler)
          for i in range(2) for labeler, order in ranks.items()]


def test_labelers_in_their_groups():
  told = results.labelers_entry(
    rankings({'x': (1, 2, 3), 'y': (2, 1, 3), 'u': (3, 2, 1), 'v': (3, 2, 1)}), {'x', 'y'}
  )
  assert told['agreement_training'] == pytest.approx(2 / 3) and told['pairs_training'] == 6
  assert told['agreement_heldout'] == 1 and told['prompts_heldout'] == 2
  # x agrees with u and v on nothing, y with each of them on one pair of three
  assert told['agreement_between'] == pytest.approx(1 / 6)


def test_reward_model_by_labeler_and_against_gold():
  found = rankings({'x': (1, 2, 3), 'u': (3, 2, 1)})
  scores = [np.array([3.0, 2.0, 1.0])] * 2 + [np.array([1.0, 2.0, 3.0])] * 2
  told = results.reward_entry(found, scores, {'x'}, judge)
  assert told['accuracy'] == .5 and told['pairs'] == 6 and told['accuracy_ci'] == [0, 1]
  assert told['accuracy_heldout_labelers'] == .5
  assert told['accuracy_gold'] == .5  # each set of completions once: 3 wrong, 3 right
  assert told['by_labeler']['x']['training'] and not told['by_labeler']['u']['training']
  assert sum(row['n'] for row in told['reliability']) == 6
  assert results.score_statistics([{'proxy': 1.0}, {'proxy': 3.0}, {'proxy': None}]) == {
    'mean_sft': 2, 'std_sft': 1}


def test_change_of_the_loss_is_paired():
  # 2·1 + 4·3 = 14 nats over 4 tokens, against 1·1 + 4·3 = 13
  told = results.loss_entry([(2.0, 1), (4.0, 3)], [(1.0, 1), (4.0, 3)])
  assert told['pretraining_loss'] == 14 / 4
  assert told['pretraining_loss_change'] == pytest.approx(1 / 13)
  # only the second part drawn, only the first
  assert told['pretraining_loss_change_ci'] == pytest.approx([0, 1])
  same = results.loss_entry([(2.0, 1), (4.0, 3)], [(2.0, 1), (4.0, 3)])
  assert same['pretraining_loss_change'] == 0 and same['pretraining_loss_change_ci'] == [0, 0]


def test_no_change_of_the_loss_between_other_tokens():
  assert results.loss_entry([(2.0, 1)], [(2.0, 2)])['pretraining_loss_change'] is None
  assert set(results.loss_entry([], []).values()) == {None}
