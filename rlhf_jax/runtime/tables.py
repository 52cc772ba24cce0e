"""A sweep's folder as two files: sweep.parquet, a row a point and step, and summary.json.

Enter: the files of the points and of their starts. Leave: the two, written whole.
Left out: what the numbers mean (evaluation/study.py); figures (report/).
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rlhf_jax.data import store
from rlhf_jax.evaluation import study
from rlhf_jax.runtime import workdir
from rlhf_jax.runtime.grid import Point

WHOLE = ('seed', 'step')  # integers; other numbers are float64


def read(folder: Path, point: Point, start: str) -> study.Made:
  """A point from its folder, as far as it has come."""
  here = folder / point.name
  finished, failed = (workdir.read_json(here / f'{name}.json') for name in ('finished', 'failed'))
  return study.Made(
    name=point.name, values=point.values, config=dataclasses.asdict(point.config), start=start,
    status='finished' if finished else 'failed' if failed else 'unfinished',
    reason=(failed or {}).get('reason', '') if not finished else '',
    seconds=(finished or {}).get('seconds'), metrics=_rows(here / 'metrics.jsonl'),
    evaluations={int(path.stem): _rows(path) for path in (here / 'evaluations').glob('*.jsonl')
                 if path.stem.isdigit()})


def table(points: Sequence[study.Made], starts: Mapping[str, Mapping[str, Any]]) -> pyarrow.Table:
  """One row a point and step; step 0 is the start, measured as every step is.

  Columns: point, the sweep's fields, step, then every metric by name; null where a step has not
  measured it. A metric that is called as a field of the sweep, such as the coefficient that a step
  went by, has 'update_' before its name, since it may be another number.
  """
  rows = []
  fields = dict.fromkeys(field for point in points for field in point.values)
  for point in points:
    begun = {'step': 0} | starts[point.start]['metrics'] if point.start in starts else {}
    for row in [begun, *point.metrics] if begun else point.metrics:
      rows.append({'point': point.name, **point.values} | {
        f'update_{name}' if name in fields else name: value for name, value in row.items()})
  names = ['point', *fields, 'step']
  names += sorted({name for row in rows for name in row} - set(names))
  return pyarrow.table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def write(folder: Path, points: Sequence[study.Made], starts: Mapping[str, Mapping[str, Any]],
          told: Mapping[str, Any]) -> dict[str, Any]:
  """Writes DIR/sweep.parquet and DIR/summary.json; returns the summary, which has `told` too."""
  with store.writing(folder / 'sweep.parquet', 'wb') as file:
    pyarrow.parquet.write_table(table(points, starts), file)
  draw_of = told.get('settings', {}).get('draw_of', {})
  summary = {**told, **study.summary(points, starts, draw_of)}
  workdir.write_json(folder / 'summary.json', summary)
  return summary


def _column(name: str, values: list[Any]) -> pyarrow.Array:
  if any(isinstance(value, str) for value in values):
    return pyarrow.array([None if value is None else str(value) for value in values],
                         pyarrow.string())
  if name in WHOLE:
    return pyarrow.array(values, pyarrow.int64())
  return pyarrow.array([None if value is None else float(value) for value in values],
                       pyarrow.float64())


def _rows(path: Path) -> list[dict[str, Any]]:
  """The rows that are whole: the last line of a point under way may be in the making."""
  rows = []
  for line in path.read_bytes().split(b'\n')[:-1] if path.exists() else ():
    with contextlib.suppress(ValueError):  # not JSON, or not UTF-8
      rows.append(json.loads(line))
  return rows
