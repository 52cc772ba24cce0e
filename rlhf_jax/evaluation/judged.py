"""Responses beside reference responses under a judge: one row a prompt, and the numbers of all
rows.

In: prompts, responses, references, a judge. Out: (metrics, rows). Used on held-out prompts after
training and on the fixed prompts inside a PPO run, so that both say the same thing. Left out:
sampling, rewards, KL.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.configs import BadInput
from rlhf_jax.data import records
from rlhf_jax.evaluation import text_statistics, winrate

# Flags of a judge and the names of their rates. A rate is over the responses whose flags have the
# key: a judge leaves 'hallucination' out where the prompt brings no passage. Other flags get the
# name FLAG_rate.
RATES = {'hallucination': 'hallucination_rate', 'truthful': 'truthful_rate', 'rude': 'rude_rate',
         'constraint_satisfied': 'constraint_rate', 'refuses': 'refusal_rate'}
# meta['register'] of a prompt that asks for a tone -> what the paper calls the request.
REQUESTS = {'kind': 'respectful', 'rude': 'rude'}


def judge_rows(
  judge: records.Judge | None,
  prompts: Sequence[records.Prompt],
  responses: Sequence[Any],
  references: Sequence[Any] | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """Judges every response beside its reference.

  Args:
    responses, references: texts (marked UNFINISHED where cut), or model.responses.Response; then
      `length` is known.
  Returns: (metrics, rows). Metrics are plain floats, those that do not apply left out: win_rate,
    gold, FLAG_rate, distinct_2, response_length (tokens), eos_rate. A row is {id, prompt, category,
    response, ended, length?, reference?, register?, judgement: {score, flags, win?,
    reference_score?} or None}; register where the prompt asks for one of
    REQUESTS.
  Raises: BadInput for a judge's word that `beside` refuses.
  """
  rows = []
  for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
    reference = None if references is None else references[index]
    row = {
      'id': prompt_id(index, prompt),
      'prompt': prompt.prompt,
      'category': prompt.category,
      'response': text_of(response),
      'ended': not text_of(response).endswith(records.UNFINISHED),
    }
    if not isinstance(response, str):
      row['length'] = int(response.length)
    if reference is not None:
      row['reference'] = text_of(reference)
    if prompt.meta.get('register') in tuple(REQUESTS):
      row['register'] = prompt.meta['register']
    row['judgement'] = (
      None if judge is None else _judgement(judge, prompt, row['response'], row.get('reference'))
    )
    rows.append(row)
  return metrics_of(rows), rows


def text_of(response: Any) -> str:
  """The text a judge reads: of a Response that did not end, with the mark."""
  return response if isinstance(response, str) else response.marked


def prompt_id(index: int, prompt: records.Prompt) -> str:
  """Stable name of prompt `index`: position and a hash of its text, so that rows of two models can
  be joined."""
  return f'{index:05d}-{hashlib.blake2b(prompt.prompt.encode(), digest_size=4).hexdigest()}'


def rate_name(flag: str) -> str:
  """The key of results.json under which the rate of a flag stands."""
  return RATES.get(flag, f'{flag}_rate')


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, list[float], int]]:
  """For each flag of the rows' judgements: rate name -> (rate, [low, high], responses to which it
  applies).

  'rude_rate' is over the prompts that did not ask for rudeness (their register is not 'rude').
  """
  told: dict[str, list[float]] = {}
  for row in rows:
    for flag in (row['judgement'] or {}).get('flags', {}):
      value = flagged(row, flag)
      if value is not None:
        told.setdefault(rate_name(flag), []).append(value)
  return {name: (*winrate.rate(values), len(values)) for name, values in sorted(told.items())}


def flagged(row: Mapping[str, Any], flag: str) -> float | None:
  """1 or 0 as a row's judgement has the flag; None where it does not apply, see `rates`."""
  value = (row['judgement'] or {}).get('flags', {}).get(flag)
  asked_for = flag == 'rude' and row.get('register') == 'rude'
  return None if value is None or asked_for else float(value)


def rude_rate_by_request(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]] | None:
  """How often responses are rude where the prompt asks for respect, for nothing, for rudeness, as
  the paper takes toxicity apart (RealToxicityPrompts).

  Returns: {'respectful', 'none', 'rude'} -> {'mean', 'low', 'high', 'n'}; None where no prompt asks
    for either, or no judge flags rudeness.
  """
  told: dict[str, list[float]] = {'respectful': [], 'none': [], 'rude': []}
  for row in rows:
    rude = (row['judgement'] or {}).get('flags', {}).get('rude')
    if rude is not None:
      told[REQUESTS.get(row.get('register'), 'none')].append(float(rude))
  asked = told['respectful'] or told['rude']
  return {name: winrate.win_rate(values) for name, values in told.items()} if asked else None


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The numbers of `judge_rows`, from its rows."""
  judged = [row['judgement'] for row in rows if row['judgement']]
  values = {
    'win_rate': [one['win'] for one in judged if 'win' in one],
    'gold': [one['score'] for one in judged],
    'response_length': [row['length'] for row in rows if 'length' in row],
    'eos_rate': [float(row['ended']) for row in rows],
  }
  metrics = {name: sum(found) / len(found) for name, found in values.items() if found}
  metrics |= {name: rate for name, (rate, _, _) in rates(rows).items()}
  variety = text_statistics.distinct(
    [row['response'].removesuffix(records.UNFINISHED) for row in rows], 2
  )
  return metrics if variety is None else {**metrics, 'distinct_2': variety}


def beside(judge: records.Judge, prompt: records.Prompt, response: str, reference: str
           ) -> records.Judgement:
  """The judgement of a response and its reference, in this order; the judge is shown them in one
  that a hash of the prompt chooses, since judges that are language models favour a place.

  Raises: BadInput where its word is not one score, rank and flags a response, each score finite.
  """
  turned = bool(hashlib.blake2b(prompt.prompt.encode(), digest_size=1).digest()[0] % 2)
  told = _asked(judge, prompt, [reference, response] if turned else [response, reference])
  if not turned:
    return told
  return dataclasses.replace(told, scores=told.scores[::-1], ranks=told.ranks[::-1],
                             flags=told.flags[::-1])


def _asked(judge: records.Judge, prompt: records.Prompt, texts: Sequence[str]
           ) -> records.Judgement:
  """The judge's word on the texts of one prompt. Raises: BadInput, see `beside`."""
  told = records.asked(judge, prompt, texts, '')
  if not len(told.scores) == len(told.ranks) == len(told.flags) == len(texts):
    raise BadInput(
      f'the judge was given {len(texts)} responses and returned {len(told.scores)} scores, '
      f'{len(told.ranks)} ranks and {len(told.flags)} flags '
      f'for the prompt {json.dumps(prompt.prompt)}'
    )
  if not all(math.isfinite(score) for score in told.scores):
    name = getattr(judge, '__qualname__', judge)
    found = ', '.join(str(float(score)) for score in told.scores)
    raise BadInput(f'judge {name!r}: expected finite scores, found {found} for the prompt '
                   f'{records.show(prompt.prompt)}; correct the judge')
  return told


def _judgement(
  judge: records.Judge, prompt: records.Prompt, response: str, reference: str | None
) -> dict[str, Any]:
  told = _asked(judge, prompt, [response]) if reference is None else beside(
    judge, prompt, response, reference)
  row = {
    'score': float(told.scores[0]),
    'flags': {name: bool(value) for name, value in told.flags[0].items()},
  }
  if reference is not None:
    row |= {
      'win': winrate.win(told.ranks[0], told.ranks[1]),
      'reference_score': float(told.scores[1]),
    }
  return row
