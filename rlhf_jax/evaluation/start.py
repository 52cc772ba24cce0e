"""The model from which a sweep's runs start, on their fixed prompts: references, baseline,
best-of-n.

In: the start, a reward model, a judge. Out: samples, the same for every point; the numbers of step
0; best-of-n by that reward model. Samples are kept in FOLDER/samples/, a batch at a time, so
that a kill costs one batch and a larger `best_of` samples only what is new. Left out: training.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax.data import store
from rlhf_jax.evaluation import along, best_of_n, judged, overoptimization, winrate
from rlhf_jax.evaluation.along import Fixed, Score
from rlhf_jax.feedback.pieces import Pieces, packed, unpacked
from rlhf_jax.model import responses

MEASURES = ('gold', 'win_rate', 'proxy')


@dataclasses.dataclass(frozen=True)
class Samples:
  """Samples of the start: the first of each prompt is what every win rate is against."""
  references: Sequence[responses.Response]  # [P]
  answers: Sequence[Sequence[responses.Response]]  # [N][P]
  gold: np.ndarray  # float64 [P, N]; NaN without a judge
  wins: np.ndarray  # against the reference, [P, N]


def draw(fixed: Fixed, folder: pathlib.Path, of: str, count: int, seed: int) -> Samples:
  """`count` samples a prompt and one reference, judged.

  Args:
    of: what the samples are a function of besides `count`, see pieces.Pieces.
  """
  asked, key = fixed.texts, jax.random.key(seed)
  pieces = Pieces(folder / 'samples', of)
  batches = range(0, len(asked), fixed.batch)
  references = [answer for piece in pieces.done[:len(batches)]
                for answer in unpacked(piece['answers'])]
  for number in range(len(pieces.done), (count + 1) * len(batches)):
    first = batches[number % len(batches)]
    here = slice(first, first + fixed.batch)
    found = fixed.respond(fixed.start, asked[here], key, first=number)
    piece: dict[str, Any] = {'answers': packed(found)}
    if number < len(batches):
      references += found
    elif fixed.judge is not None:
      told = [judged.beside(fixed.judge, prompt, answer.marked, reference.marked)
              for prompt, answer, reference in zip(fixed.prompts[here], found, references[here],
                                                   strict=True)]
      piece |= {'gold': [float(one.scores[0]) for one in told],
                'wins': [winrate.win(*one.ranks) for one in told]}
    pieces.append(piece)
  drawn = pieces.done[len(batches):(count + 1) * len(batches)]
  answers = [answer for piece in drawn for answer in unpacked(piece['answers'])]
  unknown = [np.nan] * len(answers)
  table = lambda name: np.array([x for piece in drawn for x in piece.get(name, [])] or unknown,
                                float).reshape(count, len(asked)).T
  return Samples(references, [answers[i * len(asked):(i + 1) * len(asked)] for i in range(count)],
                 table('gold'), table('wins'))


def baseline(fixed: Fixed, samples: Samples, score: Score, seed: int
             ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """What a reward model and the judge say of the start.

  Returns:
    {'metrics': as along.measure, 'best_of_n': rows or [], 'fit': of their form, 'gold_units',
    'baseline': {'gold', 'proxy'}: means over samples, one a prompt, None without a judge}; rows of
    the evaluation.
  """
  metrics, rows = along.measure(fixed, fixed.start, score, samples.references,
                                jax.random.fold_in(jax.random.key(seed), 1))
  found: dict[str, Any] = {'metrics': metrics, 'best_of_n': [], 'fit': None, 'gold_units': None}
  told = {'gold': np.array([[(row['judgement'] or {}).get('score')] for row in rows], float),
          'proxy': np.array([[row['proxy']] for row in rows])}
  if samples.answers:
    proxies = np.stack([score(fixed.texts, some) for some in samples.answers], axis=1)
    told = {'gold': samples.gold, 'proxy': proxies.astype(float), 'win_rate': samples.wins}
    known = np.isfinite(samples.gold).all()
    measures = {name: told[name] for name in MEASURES if known or name == 'proxy'}
    found['best_of_n'] = best_of_n.table(measures, proxies)
    if known:
      found['gold_units'] = overoptimization.gold_units(told['proxy'], told['gold'])
      found['fit'] = _fit(told['gold'], proxies)
  found['baseline'] = {name: [None if np.isnan(x) else float(x) for x in told[name].mean(axis=1)]
                       for name in ('gold', 'proxy')}
  return found, rows


def _fit(gold: np.ndarray, proxies: np.ndarray) -> dict[str, Any] | None:
  """The best-of-n form through the unbiased estimates; their KL is known and has no error."""
  sizes = best_of_n.sizes(proxies.shape[1])
  gained = np.array([best_of_n.unbiased(gold, proxies, n) for n in sizes]) - gold.mean(axis=1)
  kl = np.repeat([[best_of_n.divergence(n)] for n in sizes], len(gold), axis=1)
  fit = overoptimization.fit('bon', kl, gained, [0] * len(sizes))
  if fit is not None:
    fit['curve'] = overoptimization.fitted(fit)
  return fit


def write(folder: pathlib.Path, name: str, of: str, found: dict[str, Any], rows: Sequence[Any]
          ) -> None:
  """FOLDER/NAME.jsonl, the rows; then FOLDER/NAME.json, the numbers."""
  store.write(folder / f'{name}.jsonl', ''.join(
    json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
  store.write(folder / f'{name}.json', json.dumps({'of': of, **found}, allow_nan=False))


def read(folder: pathlib.Path, name: str, of: str) -> dict[str, Any] | None:
  """What `write` wrote of the same thing; None where there is none."""
  path = folder / f'{name}.json'
  found = json.loads(path.read_text('utf-8')) if path.is_file() else {}
  return found if found.get('of') == of else None
