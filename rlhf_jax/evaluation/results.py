"""From evaluated rows and scored rankings to the numbers of results.json.

In: rows of evaluations/MODEL.jsonl; rankings with one score a completion. Out: JSON-able dicts with
the keys of results.json, intervals of others than win rates under NAME_ci (95 %, percentile
bootstrap over prompts; null where one alone counts). Left out: models and files.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data import agreement, records
from rlhf_jax.evaluation import judged, reward_accuracy, text_statistics, winrate

Rows = Sequence[Mapping[str, Any]]


def model_entry(rows: Rows, against: str) -> dict[str, Any]:
  """One entry of results.json's "models" without pretraining_loss; null where no prompt applies or
  nobody judged.

  Without a judge a win is a higher proxy score than the reference's, and 'judge' says so.
  'rude_rate' leaves out the prompts that ask for rudeness; 'rude_rate_by_request' takes all apart.
  """
  gold = [row['judgement']['score'] for row in rows if row['judgement']]
  entry: dict[str, Any] = {
    f'win_rate_vs_{against}': winrate.win_rate(wins(rows)),
    'judge': 'judge' if gold else 'reward model',
  }
  for name, values in (
    ('gold', gold),
    ('proxy', _present(rows, 'proxy')),
    ('kl', _present(rows, 'kl')),
    ('response_length', _present(rows, 'length')),
  ):
    entry[name], entry[f'{name}_ci'] = agreement.ratio_interval(values)
  entry['eos_rate'], entry['eos_rate_ci'] = winrate.rate([float(row['ended']) for row in rows])
  rates = judged.rates(rows)
  for name in (*judged.RATES.values(), *rates):
    entry[name], entry[f'{name}_ci'], entry[f'{name}_n'] = rates.get(name, (None, None, 0))
  entry['rude_rate_by_request'] = judged.rude_rate_by_request(rows)
  entry |= text_statistics.statistics(
    [row['response'].removesuffix(records.UNFINISHED) for row in rows]
  )
  categories = sorted({row['category'] for row in rows if row['category']})
  entry['by_category'] = {
    category: _category([row for row in rows if row['category'] == category], against)
    for category in categories
  }
  return entry


def loss_entry(
  losses: Sequence[tuple[float, int]], baseline: Sequence[tuple[float, int]]
) -> dict[str, Any]:
  """pretraining_loss in nats a token, and pretraining_loss_change, the share by which it is above
  the baseline's.

  The interval of the change is narrower than those of the losses suggest: both models are redrawn
  on the same text, so what is hard to both cancels.

  Args:
    losses, baseline: (nats a token, tokens) of the same parts of a text.
  """
  sums = [mean * tokens for mean, tokens in losses]
  loss, interval = agreement.ratio_interval(sums, [tokens for _, tokens in losses])
  change = bounds = None
  if losses and [tokens for _, tokens in losses] == [tokens for _, tokens in baseline]:
    ratio, ends = agreement.ratio_interval(sums, [mean * tokens for mean, tokens in baseline])
    change, bounds = ratio - 1, ends and [end - 1 for end in ends]
  return {'pretraining_loss': loss, 'pretraining_loss_ci': interval,
          'pretraining_loss_change': change, 'pretraining_loss_change_ci': bounds}


def wins(rows: Rows) -> list[float]:
  """Each row's win over its reference: by the judge, or where there is none by the proxy scores, if
  any."""
  found = []
  for row in rows:
    if row['judgement']:
      found.append(row['judgement']['win'])
    elif row.get('proxy') is not None:
      found.append(winrate.win(-row['proxy'], -row['reference_proxy']))
  return found


def labelers_entry(
  rankings: Sequence[records.Ranking], training: Collection[str]
) -> dict[str, Any]:
  """results.json's "labelers": agreement within the training labelers, within the others, and
  between the two."""
  kinds = {'training': lambda a, b: a in training and b in training,
           'heldout': lambda a, b: a not in training and b not in training,
           'between': lambda a, b: (a in training) != (b in training)}
  entry: dict[str, Any] = {}
  for kind, counted in kinds.items():
    told = agreement.agreement(rankings, counted)
    entry |= {f'agreement_{kind}': told['agreement'], f'agreement_{kind}_ci': told['agreement_ci'],
              f'pairs_{kind}': told['pairs'], f'prompts_{kind}': told['prompts']}
  return entry


def reward_entry(
  rankings: Sequence[records.Ranking],
  scores: Sequence[Sequence[float]],
  training: Collection[str],
  judge: records.Judge | None,
) -> dict[str, Any]:
  """results.json's "reward_model" without mean_sft and std_sft.

  Args:
    scores: the reward model's, one a completion of each ranking.
    training: labelers the reward model has learnt from; 'ece' and 'accuracy' are over their
      rankings.
    judge: for accuracy_gold, on the order of its scores; None: null.
  """
  found = {
    '': _accuracy(rankings, scores, lambda labeler: labeler in training),
    '_heldout_labelers': _accuracy(rankings, scores, lambda labeler: labeler not in training),
    '_gold': _against_gold(rankings, scores, judge) if judge else reward_accuracy.accuracy([]),
  }
  entry: dict[str, Any] = {'prompts': found['']['prompts']}
  for whose, told in found.items():
    entry |= {f'accuracy{whose}': told['accuracy'], f'accuracy{whose}_ci': told['accuracy_ci'],
              f'pairs{whose}': told['pairs']}
  entry['by_labeler'] = {
    name: _accuracy(rankings, scores, lambda labeler, name=name: labeler == name)
    | {'training': name in training}
    for name in sorted({ranking.labeler for ranking in rankings})
  }
  differences = {True: [], False: []}
  for ranking, score in zip(rankings, scores, strict=True):
    differences[ranking.labeler in training].append(
      reward_accuracy.pair_differences(score, ranking.ranks))
  heldout = reward_accuracy.calibration(differences[False])
  return entry | reward_accuracy.calibration(differences[True]) | {
    'ece_heldout_labelers': heldout['ece']}


def score_statistics(rows: Rows) -> dict[str, float | None]:
  """Mean and standard deviation of the reward model's scores: without them kl_coef means
  nothing."""
  values = _present(rows, 'proxy')
  return {
    'mean_sft': float(np.mean(values)) if values else None,
    'std_sft': float(np.std(values)) if values else None,
  }


def _present(rows: Rows, name: str) -> list[float]:
  return [row[name] for row in rows if row.get(name) is not None]


def _category(rows: Rows, against: str) -> dict[str, Any]:
  gold, interval = agreement.ratio_interval(
    [row['judgement']['score'] for row in rows if row['judgement']]
  )
  return {
    'n': len(rows),
    f'win_rate_vs_{against}': winrate.win_rate(wins(rows)),
    'gold': gold,
    'gold_ci': interval,
    **{name: rate for name, (rate, _, _) in judged.rates(rows).items()},
  }


def _accuracy(
  rankings: Sequence[records.Ranking], scores: Sequence[Sequence[float]], counted: Any
) -> dict[str, Any]:
  """Accuracy over the rankings whose labeler counts; all rankings of a prompt are one unit of the
  bootstrap."""
  units: dict[Any, list[np.ndarray]] = {}
  for ranking, score in zip(rankings, scores, strict=True):
    if counted(ranking.labeler):
      units.setdefault(ranking.prompt, []).append(
        reward_accuracy.pair_differences(score, ranking.ranks))
  return reward_accuracy.accuracy([np.concatenate(unit) for unit in units.values()])


def _against_gold(
  rankings: Sequence[records.Ranking], scores: Sequence[Sequence[float]], judge: records.Judge
) -> dict[str, Any]:
  """Accuracy on the pairs that the judge does not tie, each set of completions once; all sets of a
  prompt are one unit of the bootstrap.
  """
  once = {(ranking.prompt, ranking.completions): (ranking, score)
          for ranking, score in zip(rankings, scores, strict=True)}
  units: dict[Any, list[np.ndarray]] = {}
  for ranking, score in once.values():
    prompt = records.Prompt(ranking.prompt, ranking.category, ranking.customer, ranking.meta)
    ranks = records.asked(judge, prompt, ranking.completions, '').ranks
    units.setdefault(ranking.prompt, []).append(reward_accuracy.pair_differences(score, ranks))
  return reward_accuracy.accuracy([np.concatenate(unit) for unit in units.values()])
