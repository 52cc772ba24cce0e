"""A sweep as it runs: one live table in a terminal, a plain line now and then in a pipe.

Enter: steps of points. Leave: what is shown. Left out: runs by themselves (metrics.Progress).
"""

import dataclasses
import time
from collections.abc import Collection, Mapping
from typing import Any

import rich.live
import rich.table

from rlhf_jax.runtime.metrics import PLAIN_SECONDS, clock, console

# Column -> metrics it shows, the first that is there.
COLUMNS = {'score': ('score',), 'gold': ('gold',), 'KL': ('kl',)}
FRAME = 6  # lines of a table that are no row: head, borders, caption, and the cursor's


@dataclasses.dataclass
class _Row:
  """One point on the board."""
  steps: int
  step: int = 0
  state: str = ''  # 'finished', 'failed', 'at work'
  shown: dict[str, float] = dataclasses.field(default_factory=dict)
  left: float | None = None  # seconds


class Board:
  """The table of all points; a context manager while the sweep is at work."""

  def __init__(self, steps: Mapping[str, int], finished: Collection[str] = ()):
    """Begins with no point at work.

    Args:
      steps: point -> how many it takes.
      finished: points that an earlier start made; they take no time again.
    """
    self._rows = {name: _Row(count, count, 'finished') if name in finished else _Row(count)
                  for name, count in steps.items()}
    self._live = rich.live.Live(console=console, auto_refresh=False, transient=False)
    self._told = time.monotonic()

  def __enter__(self) -> 'Board':
    if console.is_terminal:
      self._live.start()
    return self

  def __exit__(self, *error: Any) -> None:
    if console.is_terminal:
      self._refresh(whole=True)
      self._live.stop()

  def ended(self, name: str, state: str) -> None:
    """A point is 'finished' or 'failed'."""
    row = self._rows[name]
    row.state, row.left = state, None
    row.step = row.steps if state == 'finished' else row.step
    self._refresh()

  def progress(self, name: str, step: int, steps: int, headline: tuple[str, ...]) -> '_Line':
    """What the loop tells the steps of a point to; see metrics.Progress."""
    self._rows[name] = _Row(steps, step, 'at work')
    return _Line(self, name, step)

  def show(self, name: str, step: int, metrics: Mapping[str, Any], pace: float) -> None:
    """A step of a point, and how many seconds one takes."""
    row = self._rows[name]
    row.step, row.left = step, pace * (row.steps - step)
    for column, metric in COLUMNS.items():
      value = next((metrics[key] for key in metric if metrics.get(key) is not None), None)
      if value is not None:
        row.shown[column] = value
    now = time.monotonic()
    if console.is_terminal:
      self._refresh()
    elif now - self._told >= PLAIN_SECONDS or step == row.steps:
      self._told = now
      console.print(self._plain(name, pace), markup=False)

  def _left(self, pace: float) -> float:
    """Seconds until all points are done, at the pace of the one at work."""
    return pace * sum(row.steps - row.step for row in self._rows.values() if row.state in (
      '', 'at work'))

  def _plain(self, name: str, pace: float) -> str:
    row = self._rows[name]
    done = sum(other.state in ('finished', 'failed') for other in self._rows.values())
    parts = [f'{column} {value:.3f}' for column, value in row.shown.items()]
    return '  '.join([name, f'{row.step}/{row.steps}', *parts, f'{clock(row.left or 0)} left',
                      f'(point {done + 1} of {len(self._rows)}, all in {clock(self._left(pace))})'])

  def _near(self, count: int) -> list[str]:
    """So many points, that or those at work among them; in their order."""
    names = list(self._rows)
    busy = [index for index, row in enumerate(self._rows.values()) if row.state == 'at work']
    begun = [index for index, row in enumerate(self._rows.values()) if row.state]
    middle = (busy or begun or [0])[-1]
    first = max(0, min(middle - count // 2, len(names) - count))
    return names[first:first + count]

  def _refresh(self, whole: bool = False) -> None:
    """The table anew: all points, or as many as a terminal has lines for."""
    if not self._live.is_started:
      return
    shown = list(self._rows) if whole else self._near(max(console.height - FRAME, 1))
    told = f'{len(shown)} of {len(self._rows)} points' if len(shown) < len(self._rows) else None
    table = rich.table.Table('point', 'step', *COLUMNS, 'left', caption=told)
    for name in shown:
      row = self._rows[name]
      left = clock(row.left) if row.left is not None else row.state
      table.add_row(name, f'{row.step}/{row.steps}', *(
        f'{row.shown[column]:.3f}' if column in row.shown else '' for column in COLUMNS), left)
    self._live.update(table, refresh=True)


class _Line:
  """One point's steps, told to the board."""

  def __init__(self, board: Board, name: str, first: int):
    self._board, self._name, self._first = board, name, first
    self._start = time.monotonic()

  def started(self) -> None:
    self._start = time.monotonic()

  def show(self, step: int, row: Mapping[str, Any]) -> None:
    pace = (time.monotonic() - self._start) / max(step - self._first, 1)
    self._board.show(self._name, step, row, pace)

  def close(self) -> None:
    """Nothing: the board stays."""
