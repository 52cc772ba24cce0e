"""Sources of a config → validated records in a fixed order, an account of every row; and splits.

In: `configs.Source`s and the Place that files are looked for and written in. Out: records of one
kind, where each came from, and counts per source. Left out: file layouts (readers.py), tokens
(rows.py).
"""

import dataclasses
import difflib
import hashlib
import importlib.util
import json
import logging
import pathlib
import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rlhf_jax.configs import BadInput, Source
from rlhf_jax.data import duplicates, functions, processes, published, readers, records, store
from rlhf_jax.data.records import KINDS, Demonstration, Ranking, Record, Text

_log = logging.getLogger('rlhf_jax')


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a command works: everything built goes below workdir/data, files come from `data`."""
  workdir: pathlib.Path
  data: pathlib.Path | None = None  # --data: where relative files of sources start
  skip_bad_rows: bool = False  # --skip-bad-rows: count bad rows instead of stopping


@dataclasses.dataclass(frozen=True)
class Gathered:
  """Records of one kind in order; the path and line of each; counts per file or function."""
  records: list[Record]
  origins: list[tuple[str, int]]
  card: dict[str, dict[str, Any]]


def read(sources: Sequence[Source], place: Place) -> tuple[list[Record], dict[str, dict[str, Any]]]:
  """Validated records of one kind in order, and counts per source (see `gather`).

  Raises: BadInput for a bad row (file, line, field), a missing or empty file, sources of several
  kinds, or where no record is left.
  """
  gathered = gather(sources, place)
  return gathered.records, gathered.card


def gather(sources: Sequence[Source], place: Place) -> Gathered:
  """`read` with the origin of each record.

  The counts of a source: 'read' rows, 'refused' {reason: rows}, 'records' made of them,
  'duplicates' and 'long_prefix_duplicates' removed (never from a function: how often it says
  something is its own choice), 'not_taken' because of Source.size, 'kept'; for rankings 'labelers'
  and 'sets' such as 'intransitive sets'.
  """
  require(sources, place)
  kinds = sorted({source.kind for source in sources})
  if len(kinds) != 1:
    raise BadInput(f'data: expected sources of one kind, found {", ".join(kinds) or "none"}')
  gathered = _gather(sources, place)
  if not gathered.records:
    refused = {name: counts['refused'] for name, counts in gathered.card.items()}
    raise BadInput(f'data: expected records, found none after refusing {json.dumps(refused)}')
  return gathered


def _gather(sources: Sequence[Source], place: Place) -> Gathered:
  """Reads all files, then takes out what is there twice, then what is above Source.size."""
  gathered, seen = Gathered([], [], {}), set()
  found: list[tuple[int, str, str, int, Record]] = []  # source, name in the card, path, line
  for number, source in enumerate(sources):
    for path in files(source, place):
      name = f'{source.make} {source.split}' if source.make else label(path, place)
      while name in gathered.card:
        name += "'"
      lines, reading = readers.read_file(path, '' if source.make else source.reader, source.kind,
                                         place.skip_bad_rows, source.split)
      counts = gathered.card[name] = {
        'read': reading.rows, 'refused': dict(sorted(reading.refused.items())),
        'records': len(lines), 'duplicates': 0, 'long_prefix_duplicates': 0, 'not_taken': 0,
        'kept': 0}
      if reading.sets:
        counts['sets'] = dict(sorted(reading.sets.items()))
      if source.kind == 'rankings':
        counts['labelers'] = len({record.labeler for _, record in lines if record.labeler})
      for line, record in lines:
        if not source.make and _content(record) in seen:
          counts['duplicates'] += 1
          continue
        seen.add(_content(record))
        found.append((number, name, str(path), line, record))
  own = [index for index, row in enumerate(found) if sources[row[0]].files]
  repeats = {own[index] for index in duplicates.repeats([found[index][-1] for index in own])}
  for index in repeats:
    gathered.card[found[index][1]]['long_prefix_duplicates'] += 1
  found = [row for index, row in enumerate(found) if index not in repeats]
  for number, source in enumerate(sources):
    rows = [row for row in found if row[0] == number]
    taken = set(range(len(rows)))
    if source.files and 0 < source.size < len(rows):
      taken = set(random.Random(source.seed).sample(range(len(rows)), source.size))
    for index, (_, name, path, line, record) in enumerate(rows):
      gathered.card[name]['kept' if index in taken else 'not_taken'] += 1
      if index in taken:
        gathered.records.append(record)
        gathered.origins.append((path, line))
  return gathered


def _content(record: Record) -> Hashable:
  """What two records share that are the same row."""
  if isinstance(record, Text):
    return record.text
  if isinstance(record, Demonstration):
    return record.prompt, record.response
  if isinstance(record, Ranking):
    return record.prompt, record.completions, record.ranks, record.labeler
  return record.prompt, record.customer


def files(source: Source, place: Place) -> list[pathlib.Path]:
  """The files of a source; those of a function are written first, if they are not there yet."""
  return [_made(source, place)] if source.make else [locate(name, place) for name in source.files]


def label(path: pathlib.Path, place: Place) -> str:
  """A path as cards show it: below --data or the workdir where it lies there."""
  for root in (place.data, place.workdir):
    if root is not None and path.is_relative_to(root):
      return str(path.relative_to(root))
  return str(path)


def require(sources: Sequence[Source], place: Place) -> None:
  """Checks that every source is well named and every file is there.

  Raises: BadInput that names all files that are missing, and where they are published.
  """
  missing, folders_given = [], []
  for source in sources:
    if source.kind not in KINDS:
      raise BadInput(f'source: kind: expected {_near(source.kind, KINDS)}, found {source.kind!r}')
    if readers.own(source.reader):
      functions.load(source.reader, 'source: reader')
    elif source.reader not in readers.READERS:
      raise BadInput(f'source: reader: expected {_near(source.reader, readers.READERS)}, '
                     f'found {source.reader!r}')
    if bool(source.files) == bool(source.make):
      raise BadInput(f'source of {source.kind}: expected either files or make, found '
                     f'{"both" if source.files else "neither"}')
    for path in (locate(name, place) for name in source.files):
      store.check(path, 'source')
    missing += [name for name in source.files if not locate(name, place).is_file()]
    folders_given += [name for name in source.files if locate(name, place).is_dir()]
  if folders_given:
    raise BadInput(f'{", ".join(dict.fromkeys(folders_given))}: expected files, found a folder; '
                   'name the files in it')
  if not missing:
    return
  folders = dict.fromkeys(pathlib.PurePath(name).parts[0] for name in missing)
  known = [f'{folder} from {published.PUBLISHED[folder]}' for folder in folders
           if folder in published.PUBLISHED]
  where = f'below {place.data}' if place.data else 'here, and --data DIR was not given'
  if all(locate(name, dataclasses.replace(place, data=None)).is_absolute() for name in missing):
    where = 'there'  # whatever --data is
  raise BadInput(f'{", ".join(dict.fromkeys(missing))}: expected '
                 f'{"this file" if len(missing) == 1 else "these files"}, found nothing {where}'
                 + (f'; published: {"; ".join(known)}' if known else ''))


def _near(name: str, names: Mapping[str, Any]) -> str:
  return ' or '.join(repr(key) for key in difflib.get_close_matches(name, names, 2) or names)


def locate(name: str, place: Place) -> pathlib.Path:
  """The path that a config names: relative ones are below --data, where that was given."""
  path = pathlib.Path(name).expanduser() if store.is_local(name) else store.path(name)
  return path if place.data is None or path.is_absolute() else place.data / path


def _made(source: Source, place: Place) -> pathlib.Path:
  """The JSONL that holds what `source.make` yields; written once, whole or not at all.

  Its name holds a hash of the function's code, so that a changed world is made anew.
  """
  module = source.make.partition(':')[0]
  digest = hashlib.sha256(repr(source).encode() + code(module)).hexdigest()[:12]
  name = '-'.join([source.kind, *source.make.replace(':', '.').split('.')[-1:], source.split])
  path = place.workdir / 'data' / 'sources' / f'{name}-{digest}.jsonl'
  if not processes.first():
    processes.wait_for(path)
  if path.is_file():
    return path
  make = functions.load(source.make, 'source: make')

  def made():
    given = source.split, source.size, source.seed
    for record in functions.yielded(f'source: make {source.make!r}', make, *given):
      if not isinstance(record, KINDS[source.kind]):
        raise BadInput(f'{source.make}: expected it to yield {KINDS[source.kind].__name__} for '
                       f'kind {source.kind!r}, found {type(record).__name__}')
      yield record

  count = records.write_jsonl(path, made())
  _log.info('%s %s: %d %s', source.make, source.split, count, source.kind)
  return path


def code(module: str) -> bytes:
  """Source code of a module, or of the whole package it lies in; nothing where it is not found."""
  if module.endswith('.py'):
    path = pathlib.Path(module).expanduser()
    return path.read_bytes() if path.is_file() else b''
  try:
    spec = importlib.util.find_spec(module)
  except ModuleNotFoundError:
    spec = None
  if spec is None or not spec.origin:
    return b''
  path = pathlib.Path(spec.origin)
  package = sorted(path.parent.glob('*.py')) if (path.parent / '__init__.py').is_file() else [path]
  return b''.join(file.read_bytes() for file in package)


def digest(function: str) -> str:
  """A hash of the code behind 'module:function', see `code`; of no function that of nothing."""
  module = function.rpartition(':')[0]
  return hashlib.sha256(code(module) if module else b'').hexdigest()


def split(items: Sequence[Record], heldout: float, seed: int) -> tuple[list[Record], list[Record]]:
  """Parts records into training and held-out ones, both in their order; see `split_indices`."""
  train, held = split_indices(items, heldout, seed)
  return [items[index] for index in train], [items[index] for index in held]


def split_indices(items: Sequence[Record], heldout: float,
                  seed: int) -> tuple[list[int], list[int]]:
  """Which records train and which are held out: about a share `heldout` of them.

  By customer where it is known, else by prompt or document, in the order of a hash of (seed, name):
  nothing depends on the order of the records. Prompts that are nearly the same (duplicates.groups)
  are never on both sides: where a held-out customer wrote what a training customer wrote too, the
  record is in neither; where that leaves nothing, the split is by prompt alone.
  """
  if not 0 <= heldout < 1:
    raise BadInput(f'heldout: expected a share from 0 to below 1, found {heldout}')
  if heldout == 0:
    return list(range(len(items))), []
  numbers = duplicates.groups(items)
  names: dict[int, str] = {}  # the least of a group's prompts: it does not depend on their order
  for number, item in zip(numbers, items, strict=True):
    name = ' '.join(duplicates.content(item).casefold().split())
    names[number] = min(names.get(number, name), name)
  by_prompt = [f'p {names[number]}' for number in numbers]
  customers = [getattr(item, 'customer', '') for item in items]
  by_customer = [f'c {customer}' if customer else prompt
                 for customer, prompt in zip(customers, by_prompt, strict=True)]
  for groups in (by_customer, by_prompt):
    held = _held(groups, heldout, seed)
    train = [index for index, group in enumerate(groups) if group not in held]
    trained = {numbers[index] for index in train}
    left = [index for index, group in enumerate(groups)
            if group in held and numbers[index] not in trained]
    if left:
      return train, left
  return list(range(len(items))), []  # everything is one prompt


def _held(groups: Sequence[str], heldout: float, seed: int) -> set[str]:
  """Groups in hash order that make up `heldout` of all; the smallest where none is small enough."""
  sizes: dict[str, int] = {}
  for group in groups:
    sizes[group] = sizes.get(group, 0) + 1
  order = sorted(sizes, key=lambda group: hashlib.sha256(f'{seed} {group}'.encode()).digest())
  wanted, held, taken = max(1, round(heldout * len(groups))), set(), 0
  for group in order:
    if taken + sizes[group] <= wanted:
      held.add(group)
      taken += sizes[group]
  if len(held) == len(sizes):
    return set()
  return held or ({min(order, key=sizes.__getitem__)} if len(sizes) > 1 else set())
