"""Files as numbered rows: JSON lines, a JSON list, Parquet, plain text; .gz for all but Parquet.

In: a path. Out: (number, value) pairs, and counts of what was met and refused. Left out: what a row
must hold (layouts.py, published.py), CSV.

A bad row stops with `FILE:LINE: field 'ranks': expected …, found …; fix`, or is counted by reason
when the user asked to skip bad rows. What a source is known to hold, such as intransitive rankings,
is never an error: it is left out and counted.
"""

import collections
import contextlib
import dataclasses
import gzip
import itertools
import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import Record, Refused, described, show

_LINES = ('.jsonl', '.ndjson', '.jsonl.gz', '.ndjson.gz')
_TEXT = ('.txt', '.txt.gz')


class LeftOut(Refused):
  """A row that a source is known to hold and that no record can be made of: counted, no error."""

  def __init__(self, reason: str):
    super().__init__(reason, '', 'another row', reason, 'leave it out')


@dataclasses.dataclass
class Reading:
  """One file being read: where it is, and what was found in it."""
  path: pathlib.Path
  skip_bad_rows: bool = False
  split: str = ''  # Source.split, for readers of the user's own
  form: str = ''  # 'lines', 'list', 'parquet' or 'plain'; '': by the file's name and content
  rows: int = 0  # rows met, good or bad
  refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  sets: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  unit: str = ':'  # what comes between the path and the number of a row

  def refuse(self, line: int, error: Refused) -> None:
    """Counts a bad row, or raises BadInput that says where it is."""
    if isinstance(error, LeftOut):
      self.leave_out(error.reason)
      return
    if not self.skip_bad_rows:
      raise BadInput(f'{self.path}{self.unit}{line}: {error} (or --skip-bad-rows)') from error
    self.refused[error.reason] += 1

  def leave_out(self, reason: str, rows: int = 1) -> None:
    """Counts rows that the source is known to hold and that no record can be made of."""
    self.refused[reason] += rows

  def each(self, make: Callable[[Any], Iterable[Record]]) -> Iterator[tuple[int, Record]]:
    """The records that `make` finds in each value; it raises Refused for a bad one."""
    return self.each_of(self.values(), make)

  def each_of(self, values: Iterable[tuple[int, Any]],
              make: Callable[[Any], Iterable[Record]]) -> Iterator[tuple[int, Record]]:
    """`each` over numbered values from elsewhere."""
    for number, value in values:
      try:
        made = list(make(value))
      except Refused as error:
        self.refuse(number, error)
        continue
      for record in made:
        yield number, record

  def values(self) -> Iterator[tuple[int, Any]]:
    """Numbered values of the file. Raises: BadInput where it is missing, empty or not its form."""
    if not self.path.is_file():
      raise BadInput(f'{self.path}: expected a file, found '
                     f'{"a folder" if self.path.is_dir() else "nothing there"}')
    read = {'lines': self._json_lines, 'list': self._json_list, 'parquet': self._parquet,
            'plain': self._plain}
    return read[self.form or form(self.path)]()

  def _lines(self) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. A line of other bytes than UTF-8 is a bad row."""
    return ((number, line) for number, line in self._decoded() if line is not None)

  def _decoded(self) -> Iterator[tuple[int, str | None]]:
    """`_lines`, and None in the place of each bad one that is skipped."""
    start = self.rows
    try:
      with _open(self.path) as file:
        for number, raw in enumerate(file, 1):
          # Split at \n alone: JSON may hold U+2028 and other line ends of Unicode as they are.
          raw = raw.removeprefix(b'\xef\xbb\xbf') if number == 1 else raw
          if not raw.strip():
            continue
          self.rows += 1
          try:
            yield number, raw.decode('utf-8').rstrip('\r\n')
          except UnicodeDecodeError as error:
            self.refuse(number, Refused(
              'not UTF-8', '', 'UTF-8', f'byte 0x{raw[error.start]:02x} at byte {error.start + 1} '
              'of the line', 'save the file as UTF-8'))
            yield number, None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise BadInput(f'{self.path}: expected gzip data, found {error}') from error
    if self.rows == start:
      raise BadInput(f'{self.path}: expected rows, found an empty file')

  def _json_lines(self) -> Iterator[tuple[int, Any]]:
    for number, line in self._lines():
      try:
        value = json.loads(line)
      except (ValueError, RecursionError) as error:
        self.refuse(number, Refused('not JSON', '', 'a JSON object', f'{error} in {show(line)}',
                                    'write one JSON object a line'))
        continue
      yield number, value

  def _json_list(self) -> Iterator[tuple[int, Any]]:
    lines = dict(self._decoded())
    bad = next((number for number, line in lines.items() if line is None), None)
    if bad is not None:  # without a line two rows may become one
      raise BadInput(f'{self.path}:{bad}: expected UTF-8, found other bytes in a list, of which '
                     'no line can be skipped; save the file as UTF-8')
    text = '\n'.join(lines.values())
    try:
      items = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise BadInput(f'{self.path}: expected one JSON list, found {error}') from error
    if not isinstance(items, list):
      raise BadInput(f'{self.path}: expected one JSON list, found {described(items)}')
    self.rows, self.unit = len(items), ': element '
    if not items:
      raise BadInput(f'{self.path}: expected rows, found an empty list')
    yield from enumerate(items, 1)

  def _parquet(self) -> Iterator[tuple[int, Any]]:
    import pyarrow  # a fifth of a second
    import pyarrow.parquet
    self.unit = ': row '
    try:
      with self.path.open('rb') as opened, pyarrow.parquet.ParquetFile(opened) as file:
        for batch in file.iter_batches():
          yield from self._batch(batch)
    except (pyarrow.ArrowException, OSError) as error:
      raise BadInput(f'{self.path}: expected Parquet, found '
                     f'{" ".join(str(error).split())} after row {self.rows}') from error
    if not self.rows:
      raise BadInput(f'{self.path}: expected rows, found a file without any')

  def _batch(self, batch: Any) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a pyarrow batch. One that holds other bytes than UTF-8 is a bad row."""
    try:
      rows = batch.to_pylist()
    except ValueError:  # other bytes than UTF-8 among them; it does not say in which row
      rows = None
    for index in range(batch.num_rows):
      self.rows += 1
      try:
        yield self.rows, rows[index] if rows else batch.slice(index, 1).to_pylist()[0]
      except UnicodeDecodeError as error:
        self.refuse(self.rows, Refused('not UTF-8', '', 'UTF-8', str(error), 'write it as UTF-8'))
      except ValueError as error:  # times in nanoseconds, which Python has not
        self.refuse(self.rows, Refused(
          'no value of Python', '', 'values that Python has', ' '.join(str(error).split()),
          'cast the column (times to microseconds) or drop it'))

  def _plain(self) -> Iterator[tuple[int, Any]]:
    """{'text'} of each document; blank lines part the documents, bad ones that are skipped do not.
    """
    start, last, count, document = 0, 0, 0, []
    for number, line in itertools.chain(self._decoded(), [(0, None)]):
      if document and number != last + 1:
        yield start, {'text': '\n'.join(document)}
        document, count = [], count + 1
      last = number
      if line is not None:
        start = start if document else number
        document.append(line)
    self.rows = count + self.refused.total()


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[Any]:
  with path.open('rb') as file:
    yield gzip.GzipFile(fileobj=file) if path.suffix.lower() == '.gz' else file


def form(path: pathlib.Path) -> str:
  """The form of a file by its name; .json, and names that say nothing, by how it starts.

  Raises: BadInput where that is no form.
  """
  for name, ends in (('lines', _LINES), ('plain', _TEXT), ('parquet', ('.parquet',))):
    if path.name.lower().endswith(ends):
      return name
  try:
    with _open(path) as file:
      start = file.read(4096).removeprefix(b'\xef\xbb\xbf').lstrip()
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise BadInput(f'{path}: expected gzip data, found {error}') from error
  for name, first in (('list', b'['), ('lines', b'{'), ('parquet', b'PAR1')):
    if start.startswith(first):
      return name
  if not start:
    raise BadInput(f'{path}: expected rows, found an empty file')
  raise BadInput(f'{path}: expected JSON lines, a JSON list, Parquet or text, found '
                 f'{show(start[:20].decode("utf-8", "replace"))}; name text .txt, or name a reader')
