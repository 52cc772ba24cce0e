"""Readers by name: a file → validated records of a kind, each with its line or row.

In: a path, the name of a reader, a kind. Out: (line, record) pairs and counts of what was read and
refused. Left out: which files belong to a source, how many of their records are taken (sources.py).

'' reads the layouts that the field shares (layouts.py), in a form told by the file's name and
content (files.py); a name that holds a colon is a function of the user's own.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_jax.configs import BadInput
from rlhf_jax.data import files, functions, layouts, published
from rlhf_jax.data.files import Reading
from rlhf_jax.data.records import Demonstration, Prompt, Ranking, Record, described, kind_of

Reader = Callable[[Reading, str], Iterator[tuple[int, Record]]]


def _rows(form: str) -> Reader:
  """The reader of the shared layouts in a form of file."""
  def read(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
    def make(value: Any) -> list[Record]:
      if isinstance(value, str) and kind in ('text', 'prompts') and reading.unit == ': element ':
        value = {kind.removesuffix('s'): value}  # a JSON list of texts
      return [layouts.record(kind, value)]
    reading.form = form
    return reading.each(make)
  return read


_FORMS = {'jsonl': 'lines', 'json_list': 'list', 'parquet': 'parquet', 'plain': 'plain'}
# Name of a layout -> the reader, and the kind of its records; None: whatever the source asks for.
READERS: Mapping[str, tuple[Reader, str | None]] = {
  '': (_rows(''), None),
  **{name: (_rows(form), 'text' if form == 'plain' else None) for name, form in _FORMS.items()},
  'pairs': (published.pairs, 'rankings'),
  'self_instruct': (published.self_instruct, 'demonstrations'),
  'dolly': (published.dolly, 'demonstrations'),
  'hh_rlhf': (published.hh_rlhf, 'rankings'),
  'openai_summarize': (published.openai_summarize, 'rankings'),
  'mt_bench': (published.mt_bench, 'rankings'),
  'nectar': (published.nectar, 'rankings'),
  'ultrafeedback': (published.ultrafeedback, 'rankings'),
  'shp': (published.shp, 'rankings'),
  'webgpt': (published.webgpt, 'rankings'),
  'pku_saferlhf': (published.pku_saferlhf, 'rankings'),
  'helpsteer3': (published.helpsteer3, 'rankings'),
  'alpaca': (published.alpaca, 'demonstrations'),
  'sharegpt': (published.sharegpt, 'demonstrations'),
}


def own(name: str) -> bool:
  """Whether `name` is a function of the user's: 'file.py:function' or 'module:function'."""
  return ':' in name


def _own(name: str) -> Reader:
  """A reader around a user's function of (path, kind, split) that yields rows."""
  function = functions.load(name, 'reader')

  def read(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
    def rows() -> Iterator[tuple[int, Any]]:
      given = functions.yielded(f'{reading.path}: reader {name}', function, reading.path, kind,
                              reading.split)
      for number, row in enumerate(given, 1):
        reading.rows = number
        yield number, row
      if not reading.rows:
        raise BadInput(f'{reading.path}: expected rows, found none by reader {name}')
    if not reading.path.is_file():
      raise BadInput(f'{reading.path}: expected a file, found {described(None)}')
    reading.unit = ': row '
    return reading.each_of(rows(), lambda value: [layouts.record(kind, value)])
  return read


def form(path: pathlib.Path, reader: str) -> str:
  """What a reader takes a file for, whatever its content: 'lines', 'plain.gz'; '' is not known.

  Raises: BadInput for a file of no known form.
  """
  if own(reader):
    return ''
  return (_FORMS.get(reader) or files.form(path)) + ('.gz' if path.suffix.lower() == '.gz' else '')


def beside(path: pathlib.Path, reader: str) -> list[pathlib.Path]:
  """The files that a reader reads beside the one it is given."""
  return published.answers(path) if reader == 'mt_bench' else []


def read_file(path: pathlib.Path, reader: str, kind: str, skip_bad_rows: bool,
              split: str = 'train') -> tuple[list[tuple[int, Record]], Reading]:
  """All records of `kind` in a file, in order, each with its line; and the counts.

  Demonstrations and rankings also read as 'prompts': each prompt once.
  Raises: BadInput for a bad row (unless skipped), an empty file, a reader that has no such records.
  """
  read, native = (_own(reader), None) if own(reader) else READERS[reader]
  reading = Reading(path, skip_bad_rows, split)
  if native not in (None, kind) and (kind != 'prompts' or native == 'text'):
    raise BadInput(f'{path}: reader {reader!r} gives {native}, found a source of kind {kind!r}')
  found = list(read(reading, kind))
  if kind == 'prompts':
    found = _prompts(found)
  return found, reading


def _prompts(found: Sequence[tuple[int, Record]]) -> list[tuple[int, Record]]:
  """Prompts of demonstrations and rankings; those read as prompts stay as they are."""
  if all(kind_of(record) == 'prompts' for _, record in found):
    return list(found)
  prompts: dict[str, tuple[int, Prompt]] = {}
  for line, record in found:
    assert isinstance(record, (Demonstration, Ranking))
    prompts.setdefault(record.prompt, (line, Prompt(
      record.prompt, record.category, record.customer, record.meta)))
  return list(prompts.values())
