"""Records → tokenised datasets below workdir/data, built once, named by all that they depend on.

In: sources (or the rankings file of a Collect run), a tokenizer, lengths. Out: `Built`, two sets of
fixed-size rows and a card that accounts for every record. Left out: reading (sources.py), how rows
are laid out (rows.py) and stored (datasets.py).
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax import configs
from rlhf_jax.configs import BadInput, Source
from rlhf_jax.data import rows, sources
from rlhf_jax.data.records import Demonstration, Text
from rlhf_jax.data.sources import Place, read, require, split
from rlhf_jax.data.tokenizer import Tokenizer

__all__ = ['Built', 'Place', 'build', 'read', 'read_prompts', 'require', 'split', 'tokenizer_for']

_FORMAT = 1  # of rows and cards; raise it when they change, so that old workdirs build anew
_log = logging.getLogger('rlhf_jax')


@dataclasses.dataclass(frozen=True)
class Built:
  """Training and held-out rows (len, [i] → dict of numpy), and the account of how they came."""
  train: Any
  heldout: Any
  card: dict[str, Any]


def build(data: Sequence[Source] | pathlib.Path | str, tokenizer: Tokenizer, place: Place, *,
          heldout: float = 0.0, prompt_length: int = 0, response_length: int = 0, length: int = 0,
          k_max: int = 0, seed: int = 0, prompt_cut: str = 'refuse') -> Built:
  """Tokenises records of one kind into rows, or opens what an earlier call built.

  Args:
    data: sources of one kind, or the path of a rankings file.
    heldout: share kept for validation, see sources.split_indices; `seed` chooses which.
    prompt_length, response_length: P and R; text takes `length`, rankings take `k_max` too. What
      the kind has no use for is ignored.
    prompt_cut: what becomes of prompts above P: 'refuse' (a bad row: the build stops, or counts it
      under --skip-bad-rows) or 'head' (kept up to the last sentence that fits, see rows.cut).

  Rows: text tokens int32 [T], valid, mask bool [T]; demonstrations the same over [P+R]; rankings
  tokens, valid, mask [K, P+R], ranks int32 [K], present bool [K]; prompts tokens, valid [P].
  Raises: BadInput for bad rows, or where nothing is left to train on.
  """
  if isinstance(data, str | pathlib.Path):
    data = (Source(kind='rankings', files=(str(pathlib.Path(data).absolute()),)),)
  sources.require(data, place)
  if not data:
    raise BadInput('data: expected sources, found none')
  kind = data[0].kind
  limits = rows.Limits(prompt_length, response_length, length, k_max, prompt_cut).of(kind)
  depends = {'format': _FORMAT, 'limits': dataclasses.asdict(limits), 'heldout': heldout,
             'seed': seed if heldout else 0, 'tokenizer': tokenizer.json}
  folder = place.workdir / 'data' / f'{kind}-{_digest(data, place, depends)}'
  if sources.process():
    sources.wait_for(folder)
  elif not folder.is_dir():
    _build(folder, data, tokenizer, place, heldout, seed, limits)
  from rlhf_jax.data import datasets  # half a second
  card = json.loads((folder / 'card.json').read_text(encoding='utf-8'))
  return Built(*(datasets.open_rows(kind, folder, name) for name in ('train', 'heldout')), card)


def _digest(data: Sequence[Source], place: Place, depends: Mapping[str, Any]) -> str:
  """Hash of the content of every file, how each is read, and whatever else rows depend on."""
  digest = hashlib.sha256(json.dumps([depends, place.skip_bad_rows], sort_keys=True).encode())
  for source in data:
    made = bool(source.make)
    digest.update(repr((source.kind, made, '' if made else source.reader, source.size,
                        source.seed)).encode())
    for path in sources.files(source, place):
      with open(path, 'rb') as file:
        digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()[:12]


def _build(folder: pathlib.Path, data: Sequence[Source], tokenizer: Tokenizer, place: Place,
           heldout: float, seed: int, limits: rows.Limits) -> None:
  """Writes rows and card beside `folder`, then renames: a killed build leaves nothing half-used."""
  from rlhf_jax.data import datasets  # half a second
  kind = data[0].kind
  gathered = sources.gather(data, place)
  pieces = rows.pieces(kind, gathered.records, gathered.origins, tokenizer, limits,
                       place.skip_bad_rows)
  train, held = sources.split_indices(pieces.records, heldout, seed)
  splits = {name: rows.arrays(kind, [pieces.tokens[index] for index in indices], tokenizer, limits)
            for name, indices in (('train', train), ('heldout', held))}
  card = _card(kind, gathered, pieces, {'train': train, 'heldout': held}, splits)
  if not train:
    raise BadInput(f'{kind}: expected records to train on, found none of {len(gathered.records)} '
                   f'left; refused: {json.dumps(card["refused"])}; raise the length limits')
  half = folder.with_name(f'.{folder.name}.half')
  shutil.rmtree(half, ignore_errors=True)  # of a build that was killed
  try:
    half.mkdir(parents=True)
    datasets.write(kind, splits, half)
    write_text(half / 'card.json', json.dumps(card, indent=1, ensure_ascii=False) + '\n')
    os.rename(half, folder)
  except Exception as error:
    shutil.rmtree(half, ignore_errors=True)
    full = getattr(error, 'errno', None) == errno.ENOSPC or 'No space left' in str(error)
    if full:  # array_record raises its own exceptions
      raise BadInput(f'{folder}: no space left on the disk; free some and start again') from error
    raise
  _log.info('%s', summary(card))


def _card(kind, gathered, pieces, split_of, splits) -> dict[str, Any]:
  """The account: every record read is in a split, or counted with the reason why it is not."""
  labelers = {getattr(record, 'labeler', '') for record in pieces.records} - {''}
  card = {
    'kind': kind, 'sources': gathered.card, 'records': len(gathered.records),
    'refused': dict(sorted(pieces.refused.items())), 'cut': pieces.cut,
    'tokens': pieces.lengths, 'split': {name: len(found) for name, found in split_of.items()},
    'heldout_also_in_train': len(pieces.records) - sum(map(len, split_of.values())),
    'rows': {name: len(arrays['tokens']) for name, arrays in splits.items()},
    'valid_tokens': {name: int(arrays['valid'].sum()) for name, arrays in splits.items()}}
  if kind == 'rankings':
    card |= {'completions_removed': dict(sorted(pieces.removed.items())), 'labelers': len(labelers),
             'k': _histogram(len(completions) for _, completions, _ in pieces.tokens)}
  return card


def _histogram(values) -> dict[str, int]:
  counts: dict[int, int] = {}
  for value in values:
    counts[value] = counts.get(value, 0) + 1
  return {str(value): counts[value] for value in sorted(counts)}


def summary(card: Mapping[str, Any]) -> str:
  """A card as one paragraph."""
  parts = []
  for name, counts in card['sources'].items():
    refused = ', '.join(f'{count} {reason}' for reason, count in counts['refused'].items())
    more = [f'{counts[key]} {key.replace("_", " ")}' for key in ('duplicates', 'not_taken')
            if counts[key]]
    parts.append(f'{name}: {counts["read"]} rows read, {counts["kept"]} records kept'
                 + (f', refused: {refused}' if refused else '') + ''.join(f', {m}' for m in more))
  refused = ', '.join(f'{count} {reason}' for reason, count in card['refused'].items())
  cuts = ', '.join(f'{value["count"]} {what} ({value["share"]:.1%})'
                   for what, value in card['cut'].items() if value['count'])
  removed = ', '.join(f'{count} {reason}' for reason, count
                      in card.get('completions_removed', {}).items())
  parts.append(f'{card["rows"]["train"]} rows to train on, {card["rows"]["heldout"]} held out'
               + (f'; refused at the limits: {refused}' if refused else '')
               + (f'; cut at the limits: {cuts}' if cuts else '')
               + (f'; completions removed: {removed}' if removed else ''))
  return f'{card["kind"]}: ' + '; '.join(parts)


def read_prompts(data: Sequence[Source], tokenizer: Tokenizer, place: Place, *, prompt_length: int,
                 prompt_cut: str = 'refuse') -> tuple[list[Any], dict[str, Any]]:
  """Records of any kind but text whose prompts fit in P tokens, cut where asked, and the account.

  For what works on texts and not on rows: sampling for rankings, evaluation on rankings.
  Raises: BadInput for a prompt that is too long, unless skipped or cut.
  """
  gathered = sources.gather(data, place)
  limits = rows.Limits(prompt_length=prompt_length, prompt_cut=prompt_cut)
  pieces = rows.fit_prompts(gathered.records, gathered.origins, tokenizer, limits,
                            place.skip_bad_rows)
  return pieces.records, {'kind': data[0].kind, 'sources': gathered.card, 'cut': pieces.cut,
                          'refused': dict(pieces.refused), 'tokens': pieces.lengths}


def tokenizer_for(config: configs.Tokenizer, data: Sequence[Source], place: Place, *,
                  heldout: float = 0.0, seed: int = 0) -> Tokenizer:
  """The tokenizer of a run that starts from nothing: read from a file, or trained once and kept.

  It is trained on what `build` with the same heldout and seed trains on, never on held-out text.
  """
  if config.file:
    return Tokenizer.from_file(sources.locate(config.file, place))
  depends = {'format': _FORMAT, 'vocabulary': config.vocabulary, 'heldout': heldout, 'seed': seed}
  sources.require(data, place)
  path = place.workdir / 'data' / f'tokenizer-{_digest(data, place, depends)}.json'
  if sources.process():
    sources.wait_for(path)
  elif not path.is_file():
    train, _ = split(read(data, place)[0], heldout, seed)
    Tokenizer.train(_texts(train), config.vocabulary).save(path)
  return Tokenizer.from_file(path)


def _texts(records):
  for record in records:
    if isinstance(record, Text):
      yield record.text
    else:
      yield record.prompt
      if isinstance(record, Demonstration):
        yield record.response


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  with open(temporary, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
