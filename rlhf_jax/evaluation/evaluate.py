"""Held-out prompts, sampled from several models, judged: the numbers of results.json.

In: an `Evaluate` config, the models, prompts, rankings by every labeler. Out:
folder/evaluations/MODEL.jsonl (one row a prompt: what reports, dashboards and gates read),
MODEL.json (the numbers of the model, written last: a model that has it is not sampled again), and
the summary. Every response is a function of (seed, model name). Left out: benchmarks.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import configs
from rlhf_jax.data import builders, records
from rlhf_jax.evaluation import judged, results
from rlhf_jax.feedback import agreement
from rlhf_jax.model import experience, responses

_TEXT_PARTS = 32  # the pretraining loss is taken over so many runs of rows, for its interval
_LOG = logging.getLogger('rlhf_jax')


@dataclasses.dataclass(frozen=True)
class _Evaluation:
  """What every model of one evaluation shares."""
  config: configs.Evaluate
  parents: Mapping[str, Any]
  place: builders.Place
  folder: pathlib.Path
  name: str
  judge: records.Judge | None
  prompts: Sequence[records.Prompt]

  def model(self, label: str) -> Any:
    """The Parent behind an entry of config.models."""
    return self.parents[f'models.{label}']


def run(
  config: configs.Evaluate,
  parents: Mapping[str, Any],
  place: builders.Place,
  folder: pathlib.Path,
  name: str,
) -> dict[str, Any]:
  """Evaluates every model of the config, going on where a killed one stopped.

  Args:
    parents: 'models.NAME' for every entry of config.models, and 'reward' where config.reward names
      a run.
    folder: the run's folder; gets evaluations/.
  Returns: {"labelers", "reward_model", "models"} as in results.json, "prompts", "refused_prompts".
  Raises: BadInput for a config that cannot be, bad prompts or rankings.
  """
  (folder / 'evaluations').mkdir(parents=True, exist_ok=True)
  judge = records.load_judge(config.judge) if config.judge else None
  evaluation = _Evaluation(config, parents, place, folder, name, judge, ())
  _check(evaluation)
  prompts, card = builders.read_prompts(
    config.prompts,
    evaluation.model(config.against).tokenizer,
    place,
    prompt_length=config.prompt_length,
    prompt_cut=config.prompt_cut,
  )
  evaluation = dataclasses.replace(evaluation, prompts=prompts)
  # Rankings first: what is wrong with them is said before the long work begins.
  ranked = _rankings(evaluation) if config.rankings else {'labelers': {}}
  models = _models(evaluation)
  reward = ranked.get('reward_model', {})
  if config.reward:
    reward |= results.score_statistics(_read_rows(_rows_path(evaluation, config.against)))
  return {
    'labelers': ranked['labelers'],
    'reward_model': reward,
    'models': models,
    'prompts': len(prompts),
    'refused_prompts': sum(card['refused'].values()),
  }


def _check(evaluation: _Evaluation) -> None:
  """BadInput for numbers that do not go together."""
  config, name = evaluation.config, evaluation.name
  if config.against not in config.models:
    raise configs.BadInput(
      f'{name}.against: {config.against!r} is none of the models {", ".join(config.models)}')
  for label, sampled in config.models.items():
    field = f'{name}.models[{label!r}]'
    if sampled.best_of < 1 or sampled.temperature < 0:
      raise configs.BadInput(f'{field}: best_of must be at least 1 and temperature at least 0')
    if sampled.best_of > 1 and not config.reward:
      raise configs.BadInput(
        f'{name}.reward: empty, but {label!r} is the best of {sampled.best_of} by it')
    needed, context = sum(_lengths(evaluation, label)), evaluation.model(label).model.context
    if needed > context:
      raise configs.BadInput(f'{field}: prefix, prompt_length and response_length need {needed} '
                             f'tokens, its context is {context}')


def _lengths(evaluation: _Evaluation, label: str) -> tuple[int, int]:
  """Longest prompt of a model in tokens, its prefix included, and longest response."""
  config, prefix = evaluation.config, evaluation.config.models[label].prefix
  # One more, because where the prefix meets the prompt a token may fall into two.
  added = len(evaluation.model(label).tokenizer.encode(prefix)) + 1 if prefix else 0
  return config.prompt_length + added, config.response_length


# ---- models ----

def _models(evaluation: _Evaluation) -> dict[str, Any]:
  """NAME -> its entry in results.json."""
  config, entries, losses = evaluation.config, {}, {}
  references: tuple[list[Any], np.ndarray | None] | None = None
  for label, sampled in config.models.items():
    path = evaluation.folder / 'evaluations' / f'{label}.json'
    if not path.is_file():
      if references is None:  # independent of every model's own samples, the baseline's included
        references = _respond(evaluation, config.against, 'reference')
      rows = _rows(evaluation, label, *references)
      builders.write_text(
        _rows_path(evaluation, label),
        ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows),
      )
      if sampled.run not in losses:
        losses[sampled.run] = _pretraining_loss(evaluation, evaluation.model(label))
      entry = results.model_entry(rows, config.against) | losses[sampled.run] | {
        'sampled': dataclasses.asdict(sampled)}
      builders.write_text(path, json.dumps(entry, indent=1, allow_nan=False))
    entries[label] = json.loads(path.read_text(encoding='utf-8'))
    won = entries[label][f'win_rate_vs_{config.against}']
    _LOG.info(
      '%s: %s wins %s of %d against %s, gold %s, KL %s',
      evaluation.name,
      label,
      _short(won['mean']),
      won['n'],
      config.against,
      _short(entries[label]['gold']),
      _short(entries[label]['kl']),
    )
  return entries


def _rows(evaluation: _Evaluation, label: str, references: Sequence[Any],
          reference_proxies: np.ndarray | None) -> list[dict[str, Any]]:
  """One row a prompt of one model."""
  answers, proxies = _respond(evaluation, label)
  _, rows = judged.judge_rows(evaluation.judge, evaluation.prompts, answers, references)
  divergence = _divergence(evaluation, label, answers)
  for index, row in enumerate(rows):
    row['kl'] = float(divergence[index])
    row['proxy'] = None if proxies is None else float(proxies[index])
    row['reference_proxy'] = None if reference_proxies is None else float(reference_proxies[index])
  return rows


def _respond(
  evaluation: _Evaluation, label: str, purpose: str = 'own'
) -> tuple[list[Any], np.ndarray | None]:
  """One response a prompt, and the reward model's scores of them: float32[n], None without a reward
  model.

  Another `purpose` is another draw from the same model.
  """
  config, parent = evaluation.config, evaluation.model(label)
  sampled, n = config.models[label], config.models[label].best_of
  prompt_length, response_length = _lengths(evaluation, label)
  seed = int.from_bytes(
    hashlib.blake2b(f'{purpose}:{label}'.encode(), digest_size=4).digest(), 'big'
  )
  drawn = responses.respond(
    parent.model, parent.params, parent.tokenizer,
    [sampled.prefix + prompt.prompt for prompt in evaluation.prompts for _ in range(n)],
    jax.random.fold_in(jax.random.key(config.seed), seed), temperature=sampled.temperature,
    prompt_length=prompt_length, response_length=response_length, batch=config.batch)
  proxies = _proxies(evaluation, drawn, n)
  if n == 1:
    return list(drawn), proxies
  best = np.argmax(proxies.reshape(-1, n), axis=1) + np.arange(len(evaluation.prompts)) * n
  return [drawn[i] for i in best], proxies[best]


def _proxies(evaluation: _Evaluation, answers: Sequence[Any], n: int = 1) -> np.ndarray | None:
  """The reward model's scores, n responses a prompt, given the bare prompt whatever prefix the
  model saw."""
  config = evaluation.config
  if not config.reward:
    return None
  reward = evaluation.parents['reward']
  return np.asarray(
    responses.score_responses(
      reward.model,
      reward.params,
      reward.tokenizer,
      [prompt.prompt for prompt in evaluation.prompts for _ in range(n)],
      answers,
      prompt_length=config.prompt_length,
      response_length=config.response_length,
      batch=config.batch,
    )
  )


def _divergence(evaluation: _Evaluation, label: str, answers: Sequence[Any]) -> np.ndarray:
  """log p(response) − log p_reference(response), summed over tokens, in nats: float64[n]; its mean
  estimates the KL.

  p is what the tokens were drawn from, temperature included; the reference is the run of
  config.against at temperature 1. Choosing the best of n adds ln n − (n−1)/n (Gao et al. 2022).
  """
  config = evaluation.config
  reference = evaluation.model(config.against)
  logprobs, mask = responses.logprob_responses(
    reference.model,
    reference.params,
    reference.tokenizer,
    [prompt.prompt for prompt in evaluation.prompts],
    answers,
    prompt_length=config.prompt_length,
    response_length=config.response_length,
    batch=config.batch,
    temperature=1.0,
  )
  n = config.models[label].best_of
  drawn = np.array([answer.logprob for answer in answers], np.float64)
  return (
    drawn
    - np.sum(np.where(mask, logprobs, 0), axis=1, dtype=np.float64)
    + math.log(n)
    - (n - 1) / n
  )


def _pretraining_loss(evaluation: _Evaluation, parent: Any) -> dict[str, Any]:
  """Nats a token on held-out text; the interval is a bootstrap over runs of rows."""
  config = evaluation.config
  if not config.text:
    return {'pretraining_loss': None, 'pretraining_loss_ci': None}
  rows = builders.build(
    config.text,
    tokenizer=parent.tokenizer,
    place=evaluation.place,
    heldout=0.0,
    prompt_length=config.prompt_length,
    response_length=config.response_length,
    length=config.text_length,
    k_max=0,
    seed=config.seed,
  ).train
  size = -(-len(rows) // _TEXT_PARTS)
  parts = [_Part(rows, start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
  losses = jax.jit(functools.partial(experience.next_token_losses, parent.model))
  found = [
    responses.mean_loss(losses, parent.params, part, min(config.batch, size)) for part in parts
  ]
  loss, interval = agreement.ratio_interval(
    [mean * tokens for mean, tokens in found], [tokens for _, tokens in found]
  )
  return {'pretraining_loss': loss, 'pretraining_loss_ci': interval}


@dataclasses.dataclass(frozen=True)
class _Part:
  """Rows [start, stop) of rows."""
  rows: Any
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start

  def __getitem__(self, index: int) -> Any:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self.rows[self.start + index]


# ---- labelers and reward model ----

def _rankings(evaluation: _Evaluation) -> dict[str, Any]:
  """The entries "labelers" and "reward_model" from rankings of held-out prompts."""
  config = evaluation.config
  rankings = _read_rankings(evaluation, config.rankings)
  training = _training_labelers(evaluation) or {ranking.labeler for ranking in rankings}
  entries = {'labelers': results.labelers_entry(rankings, training)}
  if not config.reward:
    return entries
  sets = {(ranking.prompt, ranking.completions): ranking for ranking in rankings}
  reward = evaluation.parents['reward']
  flat = np.asarray(responses.score_responses(
    reward.model, reward.params, reward.tokenizer,
    [ranking.prompt for ranking in sets.values() for _ in ranking.completions],
    [text for ranking in sets.values() for text in ranking.completions],
    prompt_length=config.prompt_length, response_length=config.response_length, batch=config.batch))
  ends = np.cumsum([len(ranking.completions) for ranking in sets.values()])[:-1]
  scored = dict(zip(sets, np.split(flat, ends), strict=True))
  scores = [scored[ranking.prompt, ranking.completions] for ranking in rankings]
  entry = results.reward_entry(rankings, scores, training, evaluation.judge)
  _LOG.info(
    '%s: reward model orders %s of %d pairs as training labelers do, %s as held-out ones',
    evaluation.name,
    _short(entry['accuracy']),
    entry['pairs'],
    _short(entry['accuracy_heldout_labelers']),
  )
  return entries | {'reward_model': entry}


def _read_rankings(
  evaluation: _Evaluation, where: str | tuple[configs.Source, ...]
) -> list[records.Ranking]:
  """The rankings of a Collect run, or of sources."""
  if isinstance(where, str):
    path = (evaluation.place.workdir / where / 'rankings.jsonl').resolve()
    if not path.is_file():
      raise configs.BadInput(f'{evaluation.name}.rankings: run {where!r} left no {path}')
    where = (configs.Source(kind='rankings', files=(str(path),)),)
  config = evaluation.config
  return list(builders.read_prompts(where, evaluation.model(config.against).tokenizer,
                                    evaluation.place, prompt_length=config.prompt_length,
                                    prompt_cut=config.prompt_cut)[0])


def _training_labelers(evaluation: _Evaluation) -> set[str]:
  """The labelers whose rankings the reward model was trained on."""
  config = evaluation.config
  trained = evaluation.parents['reward'].config if config.reward else None
  data = getattr(trained, 'data', ())
  return {ranking.labeler for ranking in _read_rankings(evaluation, data)} if data else set()


# ---- files ----

def _rows_path(evaluation: _Evaluation, label: str) -> pathlib.Path:
  return evaluation.folder / 'evaluations' / f'{label}.jsonl'


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  with open(path, encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def _short(value: float | None) -> str:
  return '–' if value is None else f'{value:.3f}'
