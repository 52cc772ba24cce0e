"""Held-out prompts, sampled from several models, judged: the numbers of results.json.

In: an `Evaluate` config, the models, prompts, rankings by every labeler. Out:
folder/evaluations/MODEL.jsonl (one row a prompt: what reports, dashboards and gates read),
MODEL.json (the numbers of the model, written last: a model that has it is not sampled again), and
the summary. Every response is a function of (seed, model name). While it is at work, folder/pieces/
holds each batch of samples and the numbers of the rankings, so that a kill costs one of them. Where
there are several processes all sample and score together, over the mesh, and process 0 asks the
judge and writes. Left out: benchmarks.
"""

import dataclasses
import hashlib
import json
import logging
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import configs
from rlhf_jax.data import builders, processes, records, sources, store
from rlhf_jax.data.tokenizer import same_ids
from rlhf_jax.evaluation import judged, results, text_loss
from rlhf_jax.feedback.pieces import Pieces, fingerprint, packed, unpacked
from rlhf_jax.model import responses

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

  def pieces(self, name: str, of: Any) -> Pieces:
    """What is done of one part of the work, which is a function of the config and of `of`."""
    return Pieces(self.folder / 'pieces' / name, fingerprint(of))


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
  store.make(folder / 'evaluations')
  judge = records.load_judge(config.judge) if config.judge and processes.first() else None
  evaluation = _Evaluation(config, parents, place, folder, name, judge, ())
  _check(evaluation)
  prompts, card = builders.read_prompts(
    config.prompts,
    evaluation.model(config.against).tokenizer,
    place,
    builders.Limits.like(config),
  )
  evaluation = dataclasses.replace(evaluation, prompts=prompts)
  # Rankings first: what is wrong with them is said before the long work begins.
  ranked = _rankings(evaluation) if config.rankings else {'labelers': {}}
  models = _models(evaluation)
  reward = ranked.get('reward_model', {})
  if config.reward and processes.first():
    reward |= results.score_statistics(_read_rows(_rows_path(evaluation, config.against)))
  if processes.first():
    store.remove(folder / 'pieces')
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
  longest = config.prompt_length + config.response_length
  if config.reward and longest > (context := evaluation.parents['reward'].model.context):
    raise configs.BadInput(f'{name}.reward: prompt_length and response_length need {longest} '
                           f'tokens, its context is {context}')
  same = evaluation.model(config.against).tokenizer
  others = {f'models[{label!r}]': evaluation.model(label).tokenizer for label in config.models}
  others |= {'reward': evaluation.parents['reward'].tokenizer} if config.reward else {}
  for field, tokenizer in others.items():  # KL and scores are asked for with the tokens sampled
    if not same_ids(tokenizer, same):
      raise configs.BadInput(f'{name}.{field}: has another tokenizer than {config.against!r}; '
                             'evaluate models of one family together')


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
  of = fingerprint([[prompt.prompt for prompt in evaluation.prompts],
                    sources.digest(config.judge)])
  references: tuple[list[Any], np.ndarray | None] | None = None
  for label, sampled in config.models.items():
    path = evaluation.folder / 'evaluations' / f'{label}.json'
    if not processes.share(path.exists() and json.loads(
        path.read_text(encoding='utf-8')).get('of', of) == of):
      if references is None:  # independent of every model's own samples, the baseline's included
        references = _respond(evaluation, config.against, 'reference')
      rows = _rows(evaluation, label, *references)
      for name in (label, config.against):
        if (run := config.models[name].run) not in losses:
          losses[run] = _text_losses(evaluation, evaluation.model(name))
      if processes.first():
        store.write(_rows_path(evaluation, label),
                    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
        entry = results.model_entry(rows, config.against) | results.loss_entry(
          losses[sampled.run], losses[config.models[config.against].run]) | {
          'sampled': dataclasses.asdict(sampled), 'of': of}
        store.write(path, json.dumps(entry, indent=1, allow_nan=False))
    entries[label] = processes.share(
      json.loads(path.read_text(encoding='utf-8')) if processes.first() else None)
    entries[label].pop('of', None)
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
  asked = [prompt.prompt for prompt in evaluation.prompts for _ in range(n)]
  pieces = evaluation.pieces(f'{purpose}-{label}', asked)
  for first in range(len(pieces.done), -(-len(asked) // config.batch)):
    some = asked[first * config.batch:(first + 1) * config.batch]
    answers = responses.respond(
      parent.model, parent.params, parent.tokenizer, [sampled.prefix + text for text in some],
      jax.random.fold_in(jax.random.key(config.seed), seed), temperature=sampled.temperature,
      prompt_length=prompt_length, response_length=response_length, batch=config.batch,
      first=first)
    pieces.append({'answers': packed(answers), 'proxies': _proxies(evaluation, some, answers)})
  drawn = [answer for piece in pieces.done for answer in unpacked(piece['answers'])]
  if not config.reward:
    return drawn, None
  proxies = np.array([score for piece in pieces.done for score in piece['proxies']], np.float32)
  best = np.argmax(proxies.reshape(-1, n), axis=1) + np.arange(len(evaluation.prompts)) * n
  return [drawn[i] for i in best], proxies[best]


def _proxies(evaluation: _Evaluation, asked: Sequence[str], answers: Sequence[Any]
             ) -> list[float] | None:
  """The reward model's scores, given the bare prompts whatever prefix the model saw."""
  config = evaluation.config
  if not config.reward:
    return None
  reward = evaluation.parents['reward']
  return responses.score_responses(
    reward.model, reward.params, reward.tokenizer, asked, answers,
    prompt_length=config.prompt_length, response_length=config.response_length,
    batch=config.batch).tolist()


def _divergence(evaluation: _Evaluation, label: str, answers: Sequence[Any]) -> np.ndarray:
  """log p(response) − log p_reference(response), summed over tokens, in nats: float64[n]; its mean
  estimates the KL.

  p is what the tokens were drawn from, temperature included; the reference is the run of
  config.against at temperature 1. Choosing the best of n adds ln n − (n−1)/n (Gao et al. 2022).
  At temperature 0 p is the model at temperature 1 (see generate.generate), and the response its
  greedy one: the number says how the two models differ on what the model would say, and estimates
  no KL. That of the greedy policy, a point mass, would be −log p_reference(response).
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


def _text_losses(evaluation: _Evaluation, parent: Any) -> list[tuple[float, int]]:
  """(nats a token, tokens) of each run of rows of the held-out text."""
  config = evaluation.config
  if not config.text:
    return []
  rows = builders.build(
    config.text,
    parent.tokenizer,
    evaluation.place,
    builders.Limits.like(config),
    seed=config.seed,
  ).train
  return text_loss.by_part(parent.model, parent.params, rows, config.batch)


# ---- labelers and reward model ----

def _rankings(evaluation: _Evaluation) -> dict[str, Any]:
  """The entries "labelers" and "reward_model" from rankings of held-out prompts."""
  config = evaluation.config
  rankings = _read_rankings(evaluation, config.rankings)
  training = _training_labelers(evaluation) or {ranking.labeler for ranking in rankings}
  of = [records.to_row(ranking) for ranking in rankings]
  pieces = evaluation.pieces(
    'rankings', [of, sorted(training), sources.digest(config.judge)])
  if not pieces.done:
    entries = {'labelers': results.labelers_entry(rankings, training)}
    if config.reward:
      entries['reward_model'] = _reward_entry(evaluation, rankings, training)
    pieces.append(entries)
  return pieces.done[0]


def _reward_entry(evaluation: _Evaluation, rankings: Sequence[records.Ranking],
                  training: Collection[str]) -> dict[str, Any]:
  """The entry "reward_model" of results.json."""
  config = evaluation.config
  key = lambda ranking: (ranking.prompt, ranking.completions, ranking.ended)
  sets = {key(ranking): ranking for ranking in rankings}
  reward = evaluation.parents['reward']
  flat = np.asarray(responses.score_responses(
    reward.model, reward.params, reward.tokenizer,
    [ranking.prompt for ranking in sets.values() for _ in ranking.completions],
    [answer for ranking in sets.values() for answer in _as_trained(ranking, reward.tokenizer)],
    prompt_length=config.prompt_length, response_length=config.response_length, batch=config.batch))
  ends = np.cumsum([len(ranking.completions) for ranking in sets.values()])[:-1]
  scored = dict(zip(sets, np.split(flat, ends), strict=True))
  scores = [scored[key(ranking)] for ranking in rankings]
  entry = results.reward_entry(rankings, scores, training, evaluation.judge)
  _LOG.info(
    '%s: reward model orders %s of %d pairs as training labelers do, %s as held-out ones',
    evaluation.name,
    _short(entry['accuracy']),
    entry['pairs'],
    _short(entry['accuracy_heldout_labelers']),
  )
  return entry


def _as_trained(ranking: records.Ranking, tokenizer: Any) -> list[responses.Response]:
  """The completions as the tokens that reward models are trained on: eos where they ended."""
  texts, ended = zip(*map(ranking.completion, range(len(ranking.completions))), strict=True)
  found = tokenizer.encode_responses([ranking.prompt] * len(texts), texts)
  return [responses.Response(text, (*ids, *[tokenizer.eos] * whole), 0.0, whole)
          for text, ids, whole in zip(texts, found, ended, strict=True)]


def _read_rankings(
  evaluation: _Evaluation, where: str | tuple[configs.Source, ...]
) -> list[records.Ranking]:
  """The rankings of a Collect run, or of sources, whose prompts fit."""
  config = evaluation.config
  return list(builders.read_prompts(
    _sources(evaluation, where), evaluation.model(config.against).tokenizer, evaluation.place,
    builders.Limits.like(config))[0])


def _sources(evaluation: _Evaluation, where: str | tuple[configs.Source, ...]
             ) -> tuple[configs.Source, ...]:
  """Where the rankings of a Collect run are, or the sources themselves."""
  if isinstance(where, str):
    path = store.absolute(evaluation.place.workdir) / where / 'rankings.jsonl'
    if not path.is_file():
      raise configs.BadInput(f'{evaluation.name}.rankings: run {where!r} left no {path}')
    where = (configs.Source(kind='rankings', files=(str(path),)),)
  return where


def _training_labelers(evaluation: _Evaluation) -> set[str]:
  """The labelers whose rankings the reward model was trained on; none where the
  rankings of another workdir's model are no longer there.
  """
  reward = evaluation.parents['reward'] if evaluation.config.reward else None
  data = getattr(reward and reward.config, 'data', ())
  if not data:
    return set()
  here = store.absolute(evaluation.place.workdir)
  beside = here if reward.folder is None else store.absolute(reward.folder).parent
  if beside != here and isinstance(data, str):
    data = (configs.Source('rankings', (str(beside / data / 'rankings.jsonl'),)),)
  try:
    # Read for the names alone: what was trained on need not fit the lengths of an evaluation.
    read, _ = sources.read(_sources(evaluation, data), evaluation.place)
    return {ranking.labeler for ranking in read}
  except configs.BadInput as error:
    if beside == here:
      raise
    _LOG.warning('%s: who ranked for %s is not known, so all labelers count as those of its '
                 'training: %s', evaluation.name, reward.folder, error)
    return set()


# ---- files ----

def _rows_path(evaluation: _Evaluation, label: str) -> pathlib.Path:
  return evaluation.folder / 'evaluations' / f'{label}.jsonl'


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  with path.open('r', encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def _short(value: float | None) -> str:
  return '–' if value is None else f'{value:.3f}'
