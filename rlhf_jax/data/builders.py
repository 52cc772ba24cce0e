"""Records → tokenised datasets below workdir/data, built once, named by all that they depend on.

In: sources (or the rankings file of a Collect run), a tokenizer, lengths. Out: `Built`, two sets of
fixed-size rows and a card that accounts for every record (cards.py). Left out: reading
(sources.py), how rows are laid out (rows.py) and stored (datasets.py).
"""

import dataclasses
import errno
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax import configs
from rlhf_jax.configs import BadInput, Source
from rlhf_jax.data import cards, processes, readers, rows, sources, store
from rlhf_jax.data.records import Demonstration, Text
from rlhf_jax.data.rows import Limits
from rlhf_jax.data.sources import Place, locate, read, require, split
from rlhf_jax.data.tokenizer import Tokenizer

__all__ = ['Built', 'Limits', 'Place', 'build', 'locate', 'read', 'read_prompts', 'require',
           'split', 'tokenizer_for']

CARD = 'card.json'  # there once a dataset is whole
_FORMAT = 6  # of rows and cards; raise it when they change, so that old workdirs build anew
_log = logging.getLogger('rlhf_jax')


@dataclasses.dataclass(frozen=True)
class Built:
  """Training and held-out rows (len, [i] → dict of numpy), and the account of how they came."""
  train: Any
  heldout: Any
  card: dict[str, Any]


def build(data: Sequence[Source] | pathlib.PurePath | str, tokenizer: Tokenizer, place: Place,
          limits: Limits, *, heldout: float = 0.0, seed: int = 0) -> Built:
  """Tokenises records of one kind into rows, or opens what an earlier call built.

  Args:
    data: sources of one kind, or the path of a rankings file.
    limits: P, R, T, K and what becomes of prompts above P: 'refuse' (a bad row: the build stops, or
      counts it under --skip-bad-rows) or 'head' (kept up to the last sentence that fits, see
      rows.cut). What the kind has no use for is ignored.
    heldout: share kept for validation, see sources.split_indices; `seed` chooses which.

  Rows: text tokens int32 [T], valid, mask bool [T]; demonstrations the same over [P+R]; rankings
  tokens, valid, mask [K, P+R], ranks int32 [K], present bool [K]; prompts tokens, valid [P].
  Raises: BadInput for bad rows, or where nothing is left to train on.
  """
  if isinstance(data, str | pathlib.PurePath):
    data = (Source(kind='rankings', files=(str(store.absolute(store.path(data))),)),)
  sources.require(data, place)
  if not data:
    raise BadInput('data: expected sources, found none')
  kind = data[0].kind
  limits = limits.of(kind)
  depends = {'format': _FORMAT, 'limits': dataclasses.asdict(limits), 'heldout': heldout,
             'seed': seed if heldout else 0, 'tokenizer': tokenizer.identity}
  folder = place.workdir / 'data' / f'{kind}-{_digest(data, place, depends)}'
  # a folder of a disk gets its name when it is whole
  whole = folder if store.is_local(folder) else folder / CARD
  if not processes.first():
    processes.wait_for(whole)
  elif not whole.exists():
    _build(folder, data, tokenizer, place, heldout, seed, limits)
  from rlhf_jax.data import datasets  # half a second
  folder = store.fetched(folder, folder.name, CARD)  # array_record reads local files
  try:
    card = json.loads((folder / CARD).read_text(encoding='utf-8'))
    return Built(*(datasets.open_rows(kind, folder, name) for name in ('train', 'heldout')), card)
  except datasets.LOST as error:
    raise datasets.damaged(folder, str(error)) from error


def _digest(data: Sequence[Source], place: Place, depends: Mapping[str, Any]) -> str:
  """Hash of the content of every file, how each is read, and whatever else rows depend on."""
  digest = hashlib.sha256(json.dumps([depends, place.skip_bad_rows], sort_keys=True).encode())
  for source in data:
    made, reader = bool(source.make), '' if source.make else source.reader
    digest.update(repr((source.kind, made, reader, source.size, source.seed)).encode())
    paths = sources.files(source, place)
    if readers.own(reader):
      digest.update(source.split.encode() + sources.code(reader.rpartition(':')[0]))
    # A reader may tell by a file's name what it is.
    digest.update(repr([readers.form(path, reader) for path in paths]).encode())
    for path in [*paths, *(other for main in paths for other in readers.beside(main, reader))]:
      with path.open('rb') as file:
        digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()[:12]


def _build(folder: pathlib.Path, data: Sequence[Source], tokenizer: Tokenizer, place: Place,
           heldout: float, seed: int, limits: rows.Limits) -> None:
  """Writes rows and card beside `folder`, then renames: a killed build leaves nothing half-used.

  In a store the card is put up last, and without it nothing is used.
  """
  from rlhf_jax.data import datasets  # half a second
  kind = data[0].kind
  pieces, split_of, card = account(data, tokenizer, place, limits, heldout, seed)
  splits = {name: rows.arrays(kind, [pieces.tokens[index] for index in indices], tokenizer, limits)
            for name, indices in split_of.items()}
  card |= {'rows': {name: len(arrays['tokens']) for name, arrays in splits.items()},
           'valid_tokens': {name: int(arrays['valid'].sum()) for name, arrays in splits.items()}}
  if not split_of['train']:
    raise BadInput(f'{kind}: expected records to train on, found none of {card["records"]} '
                   f'left; refused: {json.dumps(card["refused"])}; raise the length limits')
  there = pathlib.Path(folder) if store.is_local(folder) else store.cache(folder.name)
  half = store.half(there)
  try:
    datasets.write(kind, splits, half)
    store.write(half / CARD, json.dumps(card, indent=1, ensure_ascii=False) + '\n')
    if not store.is_local(folder):
      store.put_folder(half, folder, CARD)
    store.keep(half, there)
  except Exception as error:
    shutil.rmtree(half, ignore_errors=True)
    full = getattr(error, 'errno', None) == errno.ENOSPC or 'No space left' in str(error)
    if full:  # array_record raises its own exceptions
      raise BadInput(f'{folder}: no space left on the disk; free some and start again') from error
    raise
  _log.info('%s', cards.summary(card))


def account(data: Sequence[Source], tokenizer: Tokenizer, place: Place, limits: Limits,
            heldout: float, seed: int) -> tuple[rows.Pieces, dict[str, list[int]], dict[str, Any]]:
  """What `build` makes of records before it lays out rows: (pieces, indices of each split, card).

  Raises: BadInput for bad rows.
  """
  kind = data[0].kind
  gathered = sources.gather(data, place)
  pieces = rows.pieces(kind, gathered.records, gathered.origins, tokenizer, limits,
                       place.skip_bad_rows)
  # Whole: two cuts of one dialogue do not look alike.
  whole = [gathered.records[index] for index in pieces.places]
  train, held = sources.split_indices(whole, heldout, seed)
  split_of = {'train': train, 'heldout': held}
  return pieces, split_of, cards.card(kind, gathered, pieces, split_of, limits)


def read_prompts(data: Sequence[Source], tokenizer: Tokenizer, place: Place,
                 limits: Limits) -> tuple[list[Any], dict[str, Any]]:
  """Records of any kind but text whose prompts fit in P tokens, cut where asked, and the account.

  For what works on texts and not on rows: sampling for rankings, evaluation on rankings.
  Raises: BadInput for a prompt that is too long, unless skipped or cut.
  """
  gathered = sources.gather(data, place)
  pieces = rows.fit_prompts(gathered.records, gathered.origins, tokenizer, limits,
                            place.skip_bad_rows)
  return pieces.records, {'kind': data[0].kind, 'sources': gathered.card, 'cut': pieces.cut,
                          'refused': dict(pieces.refused), 'tokens': pieces.lengths}


def most_completions(data: Sequence[Source], place: Place) -> int:
  """The largest K of the rankings in such sources."""
  return max(len(ranking.completions) for ranking in read(data, place)[0])


def tokenizer_for(config: configs.Tokenizer, data: Sequence[Source], place: Place, *,
                  heldout: float = 0.0, seed: int = 0, most: int = 0) -> Tokenizer:
  """The tokenizer of a run that starts from nothing: read from a file, or trained once and kept.

  It is trained on what `build` with the same heldout and seed trains on, never on held-out text.

  Args:
    most: ids that the model has rows for (its `vocabulary`); 0: as many as there are.

  Raises: BadInput for a tokenizer with more ids: the loss of a token without a row is infinite.
  """
  tokenizer = Tokenizer.from_file(sources.locate(config.file, place) if config.file else _trained(
    config, data, place, heldout, seed))
  if 0 < most < tokenizer.vocabulary:
    lower = '' if config.file else f', or lower tokenizer.vocabulary ({config.vocabulary})'
    raise BadInput(
      f'model.vocabulary: expected at least {tokenizer.vocabulary}, as many as the tokenizer has '
      f"ids, found {most}; raise it, leave it out (0 takes the tokenizer's){lower}")
  return tokenizer


def _trained(config, data, place, heldout, seed):
  """The file of the tokenizer that is trained on `data`; trained if it is not there yet."""
  depends = {'format': _FORMAT, 'vocabulary': config.vocabulary, 'heldout': heldout, 'seed': seed}
  sources.require(data, place)
  path = place.workdir / 'data' / f'tokenizer-{_digest(data, place, depends)}.json'
  if not processes.first():
    processes.wait_for(path)
  elif not path.is_file():
    train, _ = split(read(data, place)[0], heldout, seed)
    Tokenizer.train(_texts(train), config.vocabulary).save(path)
  return path


def _texts(records):
  for record in records:
    if isinstance(record, Text):
      yield record.text
    else:
      yield record.prompt
      if isinstance(record, Demonstration):
        yield record.response
