"""K samples of a policy for each prompt, ranked by a judge, written as rankings.

In: a `Collect` config, the policy, prompts. Out: folder/rankings.jsonl (what any user's rankings
look like), folder/judge.json (what the judge was calibrated to), a summary. Prompts are taken in
blocks that depend on the config alone; block b is sampled with fold_in(key(seed), b). So a killed
run goes on at the block it was in and ends with the same bytes; until then folder/pieces/ holds the
blocks that are ranked, and those that the judge is calibrated on. Where there are several processes
all sample together, over the mesh, and process 0 asks the judge. Left out: people (a web page would
be one more judge), several policies in one ranking.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import numbers
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import rich.console
import rich.progress

from rlhf_jax import configs
from rlhf_jax.data import agreement, builders, processes, records, sources, store
from rlhf_jax.feedback.pieces import Pieces, fingerprint, packed, unpacked
from rlhf_jax.model import responses

CALIBRATION_PROMPTS = 600  # whose samples a judge is calibrated on
_SECONDS_BETWEEN_LINES = 10.0
_LOG = logging.getLogger('rlhf_jax')


@dataclasses.dataclass(frozen=True)
class Block:
  """Prompts [start, stop) sampled in one call, `k` completions each."""
  index: int
  start: int
  stop: int
  k: tuple[int, ...]


def run(config: configs.Collect, parents: Mapping[str, Any], place: builders.Place,
        folder: pathlib.Path, name: str) -> dict[str, Any]:
  """Collects the rankings of one run, going on where a killed one stopped.

  Args:
    parents: 'policy' -> Parent(model, tokenizer, params, ...).
    folder: the run's folder; gets rankings.jsonl and, if the judge can be calibrated, judge.json.
  Returns: the summary of finished.json; on other processes than 0 nothing.
  Raises: BadInput for a config that cannot be, bad prompts, or a judge that ties everything.
  """
  _check(config, name)
  policy = parents['policy']
  longest = config.prompt_length + config.response_length
  if longest > policy.model.context:
    raise configs.BadInput(f'{name}: prompt_length and response_length need {longest} tokens, the '
                           f'context of its policy is {policy.model.context}')
  store.make(folder)
  prompts, card = builders.read_prompts(
    config.prompts, policy.tokenizer, place, builders.Limits.like(config))
  blocks = plan([draw_k(config, index) for index in range(len(prompts))], config.batch,
                config.others + 1)
  of = fingerprint([prompt.prompt for prompt in prompts])
  sample = _Sampler(config, policy, prompts, Pieces(folder / 'pieces' / 'calibration', of))
  asked, given = records.load_judge(config.judge), _calibration(config, place, name)
  of = fingerprint([of, sources.digest(config.judge), given])
  journal = _Journal(folder, of)
  judge = None if journal.joined else _judge(asked, given, folder, name, sample, blocks, of)
  for block in _progress(blocks, journal.done, name):
    completions = sample(block)
    sampled = time.monotonic()
    rows, counts = _ranked(config, judge, prompts, block, completions)
    journal.append(rows, {**counts, 'sampling_seconds': sample.take_seconds(),
                          'judging_seconds': time.monotonic() - sampled})
    processes.barrier()  # process 0 may have asked a slow judge
  if not processes.first():
    return {}
  if not journal.counts()['rankings']:
    raise configs.BadInput(f'{name}.judge: {config.judge} tied all responses of each of the '
                           f'{len(prompts)} prompts; nothing can be learnt from that')
  summary = {'refused_prompts': sum(card['refused'].values()), **journal.finish()}
  _LOG.info('%s: %s', name, account(summary))
  return summary


def account(summary: Mapping[str, Any]) -> str:
  """A run's summary in a line: how many rankings there are, and what is not among them and why."""
  left = {'rankings that tie all responses': summary['all_tied'],
          'prompts without two different responses': summary['too_few_distinct'],
          'prompts refused at the limits': summary['refused_prompts']}
  out = ', '.join(f'{count} {what}' for what, count in left.items() if count)
  return (f'{summary["rankings"]} rankings of {summary["prompts"]} prompts, {summary["pairs"]} '
          f'pairs, {summary["tied_share"]:.0%} of them tied, {summary["ended_share"]:.0%} of '
          f'responses ended' + (f'; left out: {out}' if out else ''))


def draw_k(config: configs.Collect, index: int) -> int:
  """How many completions prompt `index` gets: uniform in config.k, whatever the order of work."""
  low, high = config.k
  return low + _hash(config.seed, 'k', index) % (high - low + 1)


def draw_labelers(config: configs.Collect, index: int) -> list[str]:
  """Which `config.labels` labelers rank prompt `index`: distinct, each equally likely."""
  drawn = lambda labeler: _hash(config.seed, 'labeler', index, labeler)
  return sorted(config.labelers, key=drawn)[:config.labels]


def plan(k: Sequence[int], batch: int, least: int = 1) -> list[Block]:
  """Cuts prompts into consecutive blocks of at most `batch` samples, but of at least `least`
  prompts, which may need more."""
  starts, samples = [0], 0
  for index, wanted in enumerate(k):
    if samples + wanted > batch and index >= starts[-1] + least:
      starts.append(index)
      samples = 0
    samples += wanted
  if len(starts) > 1 and len(k) - starts[-1] < least:
    starts.pop()
  return [Block(number, start, stop, tuple(k[start:stop]))
          for number, (start, stop) in enumerate(itertools.pairwise([*starts, len(k)]))]


def _hash(*parts: Any) -> int:
  digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'big')


def _check(config: configs.Collect, name: str) -> None:
  low, high = config.k
  if not 2 <= low <= high:
    raise configs.BadInput(
      f'{name}.k: expected 2 <= fewest <= most completions, found {config.k}')
  if not 0 <= config.others < low:
    raise configs.BadInput(f'{name}.others: expected 0 to {low - 1}, since of {low} completions '
                           f'one is of the prompt itself, found {config.others}')
  if len(set(config.labelers)) != len(config.labelers):
    raise configs.BadInput(f'{name}.labelers: one is named twice in {config.labelers}')
  if not 1 <= config.labels <= len(config.labelers):
    raise configs.BadInput(f'{name}.labels: expected 1 to {len(config.labelers)} (the labelers '
                           f'there are), found {config.labels}')


class _Sampler:
  """block -> for each of its prompts the distinct completions, in the order they were sampled."""

  def __init__(self, config: configs.Collect, policy: Any, prompts: Sequence[records.Prompt],
               calibration: Pieces):
    self.config, self.policy, self.prompts = config, policy, prompts
    self.key = jax.random.key(config.seed)
    self.calibration = calibration  # block i, once it was sampled, is piece i
    self.seconds = 0.0

  def __call__(self, block: Block) -> list[list[Any]]:
    done = self.calibration.done
    found = done[block.index] if block.index < len(done) else self._drawn(block)
    self.seconds += found['seconds']
    return _grouped(block, found)

  def for_calibration(self, blocks: Iterable[Block]) -> list[list[Any]]:
    """The completions of each prompt of the first blocks; they are not sampled again."""
    for block in blocks:
      if block.index >= len(self.calibration.done):
        self.calibration.append(self._drawn(block))
    return [one for block in blocks
            for one in _grouped(block, self.calibration.done[block.index])]

  def _drawn(self, block: Block) -> dict[str, Any]:
    config, policy, started = self.config, self.policy, time.monotonic()
    asked = [self.prompts[block.start + i].prompt for i, k in enumerate(block.k) for _ in range(k)]
    samples = responses.respond(
      policy.model, policy.params, policy.tokenizer, asked,
      jax.random.fold_in(self.key, block.index), temperature=config.temperature,
      prompt_length=config.prompt_length, response_length=config.response_length,
      batch=config.batch)
    return {'samples': packed(samples), 'seconds': time.monotonic() - started}

  def take_seconds(self) -> float:
    """What sampling the blocks took that were asked for since the last call."""
    seconds, self.seconds = self.seconds, 0.0
    return seconds


def _grouped(block: Block, drawn: Mapping[str, Any]) -> list[list[Any]]:
  samples = iter(unpacked(drawn['samples']))
  return [_distinct([next(samples) for _ in range(k)]) for k in block.k]


def _distinct(samples: Sequence[Any]) -> list[Any]:
  """The first of each text; one that ended and one that was cut there are two texts."""
  first: dict[str, Any] = {}
  for response in samples:
    first.setdefault(response.marked, response)
  return list(first.values())


def _with_others(completions: Sequence[Sequence[Any]], others: int) -> list[list[Any]]:
  """The last `others` completions of each prompt give way to the first ones of the prompts after
  it in the block."""
  count = len(completions)
  mixed = []
  for i, own in enumerate(completions):
    near = [completions[(i + 1 + j) % count][0] for j in range(min(others, count - 1))]
    mixed.append(_distinct([*own[:max(1, len(own) - len(near))], *near]))
  return mixed


def _calibration(config: configs.Collect, place: builders.Place, name: str) -> str:
  """judge.json of the run config.calibration; '' where none is named."""
  if not config.calibration:
    return ''
  if not hasattr(records.load_judge(config.judge), 'calibrate'):
    raise configs.BadInput(
      f'{name}.calibration: the judge {config.judge} cannot be calibrated; leave it empty')
  source = place.workdir / config.calibration / 'judge.json'
  if not source.exists():
    raise configs.BadInput(f'{name}.calibration: run {config.calibration!r} left no {source}')
  return source.read_text(encoding='utf-8')


def _judge(judge: records.Judge, given: str, folder: pathlib.Path, name: str,
           sample: _Sampler, blocks: Sequence[Block], of: str) -> records.Judge | None:
  """The judge, calibrated if it can be: as `given` says, or else on this run's first samples.

  A judge can be if it has `calibrate(prompts, responses) -> dict`, for all labelers that it knows
  (another run may ask others than this one), and `calibrated(dict) -> judge`. None on other
  processes than 0, which only sample.
  """
  if not hasattr(judge, 'calibrate'):
    return judge
  found = Pieces(folder / 'pieces' / 'judge', of)
  if given:
    told = json.loads(given)
  elif found.done:
    told = found.done[0]
  else:
    used = [block for block in blocks if block.start < CALIBRATION_PROMPTS]
    texts = [[response.marked for response in completions]
             for completions in sample.for_calibration(used)]
    asked = sample.prompts[:len(texts)]
    told = judge.calibrate(asked, texts) if processes.first() else {}
    found.append(told)
    _LOG.info('%s: judge calibrated on the samples of %d prompts', name, len(asked))
  if not processes.first():
    return None
  store.write(folder / 'judge.json', json.dumps(told, indent=1))
  return judge.calibrated(json.loads(json.dumps(told)))


def _ranked(config: configs.Collect, judge: records.Judge | None, prompts: Sequence[records.Prompt],
            block: Block, completions: Sequence[Sequence[Any]]
            ) -> tuple[list[records.Ranking], dict[str, int]]:
  """The rankings of one block, and what the summary counts; nothing without a judge."""
  rows: list[records.Ranking] = []
  if judge is None:
    return rows, {}
  counts = dict.fromkeys(('prompts', 'samples', 'ended', 'too_few_distinct', 'completions',
                          'pairs', 'tied', 'rankings', 'all_tied'), 0)
  counts['samples'] = sum(block.k)
  completions = _with_others(completions, config.others)
  for index, distinct in zip(range(block.start, block.stop), completions, strict=True):
    if len(distinct) < 2:
      counts['too_few_distinct'] += 1
      continue
    counts['prompts'] += 1
    counts['completions'] += len(distinct)
    counts['ended'] += sum(response.ended for response in distinct)
    prompt, texts = prompts[index], tuple(response.marked for response in distinct)
    for labeler in draw_labelers(config, index):
      ranks = tuple(records.asked(judge, prompt, texts, labeler).ranks)
      if len(ranks) != len(texts):
        raise configs.BadInput(f'judge {config.judge}: {len(texts)} responses but {len(ranks)} '
                               f'ranks for the prompt {prompt.prompt!r}')
      if not all(isinstance(rank, numbers.Real) and 1 <= rank < math.inf
                 for rank in ranks):  # NaN is not, either
        raise configs.BadInput(f'judge {config.judge}: found the ranks {ranks} for the prompt '
                               f'{prompt.prompt!r}; expected 1 for the best, 2 for the next')
      if any(rank != int(rank) for rank in ranks):  # means of several: int() would tie 1.2 and 1.8
        ranks = [1 + sum(other < rank for other in ranks) for rank in ranks]
      ranks = tuple(map(int, ranks))
      pairs = len(ranks) * (len(ranks) - 1) // 2
      counts['pairs'] += pairs
      counts['tied'] += sum(a == b for i, a in enumerate(ranks) for b in ranks[:i])
      if len(set(ranks)) == 1:  # says nothing, and readers refuse it
        counts['all_tied'] += 1
        continue
      counts['rankings'] += 1
      rows.append(records.Ranking(
        prompt.prompt, texts, ranks, labeler=labeler, category=prompt.category,
        customer=prompt.customer, meta=prompt.meta,
        ended=tuple(bool(response.ended) for response in distinct)))
  return rows, counts


class _Journal:
  """rankings.jsonl in the making: a piece a block, joined at the end. progress.json, written after
  it, keeps what was counted."""

  def __init__(self, folder: pathlib.Path, fingerprint: str):
    self.final, self.state = folder / 'rankings.jsonl', folder / 'progress.json'
    self._folder, self._of = folder, fingerprint
    earlier = json.loads(self.state.read_text(encoding='utf-8')) if self.state.exists() else {}
    joined = earlier.get('fingerprint') == fingerprint and self.final.exists()
    self.joined = processes.share(earlier if joined else {})
    self._pieces = Pieces(folder / 'pieces' / 'rankings', fingerprint)
    self.done = self.joined.get('blocks', len(self._pieces.done))

  def append(self, rows: Iterable[records.Ranking], counts: Mapping[str, float]) -> None:
    """Adds the rows of one block; after return they survive a kill."""
    self._pieces.append({'rows': [records.to_row(row) for row in rows], 'counts': dict(counts)})

  def counts(self) -> dict[str, Any]:
    """What all blocks count together."""
    if self.joined:
      return self.joined
    total = collections.Counter()
    for piece in self._pieces.done:
      total.update(piece['counts'])
    return {'fingerprint': self._of, 'blocks': len(self._pieces.done), **total}

  def finish(self) -> dict[str, Any]:
    """Writes rankings.jsonl and returns the summary."""
    counts = self.counts()
    if not self.joined:
      store.write(self.final, ''.join(json.dumps(row, ensure_ascii=False) + '\n'
                                      for piece in self._pieces.done for row in piece['rows']))
      store.write(self.state, json.dumps(counts))
    store.remove(self._folder / 'pieces')
    rows = [records.from_row('rankings', json.loads(line))
            for line in self.final.read_text(encoding='utf-8').split('\n') if line]
    summary = {
      'prompts': counts['prompts'], 'rankings': counts['rankings'], 'samples': counts['samples'],
      'mean_k': counts['completions'] / max(counts['prompts'], 1), 'pairs': counts['pairs'],
      'tied_share': counts['tied'] / max(counts['pairs'], 1),
      'ended_share': counts['ended'] / max(counts['completions'], 1),
      'too_few_distinct': counts['too_few_distinct'], 'all_tied': counts['all_tied'],
      'sampling_seconds': counts['sampling_seconds'],
      'judging_seconds': counts['judging_seconds']}
    told = agreement.agreement(rows)
    if told['pairs']:
      summary |= {'agreement': told['agreement'], 'agreement_ci': told['agreement_ci'],
                  'agreement_pairs': told['pairs']}
    return summary


def _progress(blocks: Sequence[Block], done: int, name: str) -> Iterable[Block]:
  """The blocks that are left: one live line in a terminal, a plain one every ten seconds in a
  pipe."""
  if sys.stderr.isatty() and processes.first():
    yield from rich.progress.track(
      blocks[done:], f'{name}: rankings', total=len(blocks), completed=done,
      console=rich.console.Console(stderr=True))
    return
  said = time.monotonic()
  for block in blocks[done:]:
    yield block
    if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
      said = time.monotonic()
      _LOG.info('%s: %d of %d prompts ranked', name, block.stop, blocks[-1].stop)
