"""What a training run tells as it runs: metrics.jsonl, samples.jsonl, TensorBoard, one live line.

Enter: one dict of numbers a step. Leave: one JSON object a step, without NaN; whatever depends on
clock or machine ends in `_seconds`, `_per_second` or `_bytes`, the rest is the same for a run that
was stopped and one that was not.
Only process 0 writes. Left out: uploading anywhere; figures (report/).
"""

import concurrent.futures
import contextlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from rlhf_jax.data import store
from rlhf_jax.runtime import workdir

PLAIN_SECONDS = 5.0  # between two progress lines in a pipe
BOARD_SECONDS = 5.0  # between two flushes of TensorBoard's events
logger = logging.getLogger('rlhf_jax')
ROWS = ('metrics.jsonl', 'samples.jsonl')
CLOCK = ('_seconds', '_per_second', '_bytes')
console = rich.console.Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
  console.width = 120  # tables in a log file


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
  """The entries of a row that depend on neither clock nor machine."""
  return {name: value for name, value in row.items() if not name.endswith(CLOCK)}


class Metrics:
  """The files of DIR/RUN that grow by a row a step."""

  def __init__(self, folder: Path, step: int):
    """Opens the files as they were after `step` steps: rows above it are cut off, 0 empties
    them.
    """
    self._folder = folder
    for name in ROWS:
      cut_back(folder / name, step)
    evaluations = folder / 'evaluations'
    for path in evaluations.glob('*.jsonl') if evaluations.exists() else ():
      if path.stem.isdigit() and int(path.stem) > step:
        path.unlink()
    if step == 0:
      store.remove(folder / 'tensorboard')
    self._growing = store.Growing(folder, ROWS)
    self.here = self._growing.here  # where files that grow, and those of a profiler, are written
    self._file, self._samples = (
      (self.here / name).open('a', encoding='utf-8') for name in ROWS)
    self._board = Board(self.here / 'tensorboard', step)

  def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Appends {'step': step, …}; numbers that are not finite become null. Returns the row."""
    row = {'step': step} | workdir.finite(metrics)
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()
    self._board.write(step, {k: v for k, v in row.items() if k != 'step'})
    return row

  def write_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to samples.jsonl."""
    lines = [json.dumps({'step': step} | workdir.finite(row), ensure_ascii=False) for row in rows]
    self._samples.write(''.join(line + '\n' for line in lines))
    self._samples.flush()

  def write_evaluation(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes evaluations/STEP.jsonl."""
    lines = [json.dumps(workdir.finite(row), ensure_ascii=False) + '\n' for row in rows]
    if lines:
      store.write(self._folder / 'evaluations' / f'{step}.jsonl', ''.join(lines))

  def sync(self) -> None:
    """Until all rows are on disk, or in the store: before a checkpoint, which must never be ahead
    of them.
    """
    for file in (self._file, self._samples):
      file.flush()
      os.fsync(file.fileno())
    self._board.flush()
    self._growing.sync()

  def close(self) -> None:
    """Closes the files; what a full disk keeps from being written was told when it was written."""
    for file in (self._file, self._samples, self._board):
      with contextlib.suppress(OSError):
        file.close()
    try:
      self._growing.close()
    except Exception as error:  # whatever ended the run is what is to be told
      logger.warning('%s: rows after the last checkpoint are not put up (%s)', self._folder, error)


class Board:
  """TensorBoard's events of one process, written at once.

  tensorboardX's own SummaryWriter hands them to a thread, which dies on a full disk and then blocks
  the training. The package is imported beside the compilation of the first step: it takes along
  whatever of torch and cloud clients is installed, which is seconds.
  """

  def __init__(self, folder: Path, step: int):
    """Starts a file that tells TensorBoard to drop what is above `step`."""
    folder.mkdir(parents=True, exist_ok=True)
    pool = concurrent.futures.ThreadPoolExecutor(1)
    self._opened = pool.submit(_open, folder, step)
    pool.shutdown(wait=False)
    self._flushed = time.monotonic()

  def write(self, step: int, row: Mapping[str, Any]) -> None:
    """One event with all numbers of a row."""
    writer, event, summary = self._opened.result()
    values = [summary.Summary.Value(tag=name, simple_value=value)
              for name, value in row.items() if isinstance(value, int | float)]
    writer.write_event(event.Event(
      wall_time=time.time(), step=step, summary=summary.Summary(value=values)))
    if time.monotonic() - self._flushed > BOARD_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Until all events are on disk."""
    self._opened.result()[0].flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._opened.result()[0].close()


def _open(folder, step):
  """(writer, the modules of its records)."""
  from tensorboardX import event_file_writer
  from tensorboardX.proto import event_pb2, summary_pb2

  writer = event_file_writer.EventsWriter(str(folder / 'events'), f'.{step}.{os.getpid()}')
  if step:
    writer.write_event(event_pb2.Event(
      wall_time=time.time(), step=step + 1,
      session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)))
  return writer, event_pb2, summary_pb2


def cut_back(path: Path, step: int) -> None:
  """Removes the rows above `step`, and a last line that a kill left unfinished; whole or not at
  all.
  """
  if not path.exists():
    return
  text = path.read_bytes().decode('utf-8', errors='replace')
  kept = []
  for line in re.findall(r'[^\n]*\n|[^\n]+', text):  # splitlines() also splits at U+2028
    try:
      if not line.endswith('\n') or json.loads(line)['step'] > step:
        continue
    except (ValueError, KeyError, TypeError):
      continue
    kept.append(line)
  if len(''.join(kept)) != len(text):
    store.write(path, ''.join(kept))


def last_row(path: Path) -> dict[str, Any]:
  """The last object of a .jsonl file; {} if there is none."""
  text = path.read_text('utf-8').strip('\n') if path.exists() else ''
  return json.loads(text.split('\n')[-1]) if text else {}


class Progress:
  """One live line in a terminal; in a pipe a plain line now and then."""

  def __init__(self, name: str, step: int, steps: int, headline: tuple[str, ...]):
    self._name, self._first, self._steps, self._headline = name, step, steps, headline
    self._start = self._shown = time.monotonic()
    self._live: rich.progress.Progress | None = None
    if console.is_terminal:
      self._live = rich.progress.Progress(
        rich.progress.TextColumn('{task.description:<12}'), rich.progress.BarColumn(20),
        rich.progress.MofNCompleteColumn(), rich.progress.TextColumn('{task.fields[told]}'),
        console=console)
      self._task = self._live.add_task(name, total=steps, completed=step, told='compiling')
      self._live.start()

  def show(self, step: int, row: Mapping[str, Any]) -> None:
    """Tells a step."""
    now = time.monotonic()
    rate = (step - self._first) / max(now - self._start, 1e-9)
    parts = [f'{name} {row[name]:.3f}' for name in self._headline if row.get(name) is not None]
    if row.get('tokens_per_second'):
      parts.append(f"{short(row['tokens_per_second'])} tokens/s")
    parts.append(f'{clock((self._steps - step) / rate)} left' if step < self._steps
                 else f'{clock(now - self._start)} taken')
    told = '  '.join(parts)
    if self._live is not None:
      self._live.update(self._task, completed=step, told=told)
    elif now - self._shown >= PLAIN_SECONDS or step == self._steps:
      self._shown = now
      console.print(f'{self._name}  {step}/{self._steps}  {told}', markup=False)

  def started(self) -> None:
    """Compilation is over: the rate counts from here."""
    self._start = time.monotonic()

  def close(self) -> None:
    if self._live is not None:
      self._live.stop()


def clock(seconds: float) -> str:
  """62 → '1:02', 3662 → '1:01:02'."""
  if not math.isfinite(seconds):
    return '?'
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return f'{hours}:{minute:02}:{second:02}' if hours else f'{minute}:{second:02}'


def short(value: float) -> str:
  """12345 → '12.3k'."""
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.1f}{unit}'
  return f'{value:.0f}'
