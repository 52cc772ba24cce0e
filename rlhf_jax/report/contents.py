"""What a workdir holds, read leniently: a report of a half-finished or damaged run is still a
report.

In: a workdir. Out: `Contents`, plain Python. Left out: checkpoints, and every judgement about the
numbers.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Run:
  """One run's folder. What is not there yet is empty."""
  name: str
  kind: str  # 'Language', 'Collect', 'Reward', 'PPO' or 'Evaluate'
  config: Mapping[str, Any]
  parents: Mapping[str, Any]
  versions: Mapping[str, str]
  commit: str
  metrics: list[dict[str, Any]]  # one a step
  samples: list[dict[str, Any]]
  evaluations: Mapping[str, list[dict[str, Any]]]  # file stem (a step or a model) -> rows
  summary: Mapping[str, Any]
  seconds: float | None  # None: not finished
  steps: int | None
  outlived: str = ''  # a run below it that was deleted and made with another configuration since

  @property
  def finished(self) -> bool:
    return self.seconds is not None


@dataclasses.dataclass(frozen=True)
class Contents:
  """Everything a report is made of."""
  workdir: pathlib.Path
  runs: list[Run]  # each after those it rests on
  results: Mapping[str, Any]  # results.json
  cards: Mapping[str, Any]  # folder below data/ -> card.json
  left_out: list[str]  # files and lines that are there and could not be read, and why

  def run(self, name: str) -> Run | None:
    """The run of that name, if there is one."""
    return next((run for run in self.runs if run.name == name), None)

  def of_kind(self, kind: str) -> list[Run]:
    """The runs of a kind, in order."""
    return [run for run in self.runs if run.kind == kind]

  @property
  def evaluation(self) -> Run | None:
    """The Evaluate run that a page speaks of: of several finished ones the one that results.json
    names, else the last; one that has not finished only where none has. None of models that there
    are no more."""
    found = [run for run in self.of_kind('Evaluate') if not run.outlived]
    finished = [run for run in found if run.finished]
    named = [run for run in finished if run.name == self.results.get('evaluation')]
    return (named or finished or found or [None])[-1]

  @property
  def measured(self) -> Mapping[str, Any]:
    """What that run found: "models", "reward_model", "labelers"; {} until it has finished.
    results.json tells of no run's state: it may be of models that are being made anew."""
    one = self.evaluation
    return one.summary if one and one.finished else {}


def read(workdir: pathlib.Path, without: Collection[str] = ()) -> Contents:
  """Reads a workdir, but for the runs named. What is missing counts as absent; what is damaged does
  too, and `left_out` says so."""
  left_out: list[str] = []
  runs, described_as = {}, {}
  for path in sorted(workdir.glob('*/config.json')):
    if path.parent.name in without:
      continue
    described = read_json(path, left_out)
    # A point of a sweep, maybe of one that has other values by now, is no run of a page.
    if 'kind' in described and 'measured' not in (described.get('parents') or {}):
      runs[path.parent.name] = _run(path.parent, described, left_out)
      described_as[path.parent.name] = described
  for name, run in runs.items():
    if run.finished and (parent := _made_anew(described_as, name)):
      runs[name] = dataclasses.replace(run, outlived=parent)
  cards = {path.parent.relative_to(workdir / 'data').as_posix(): read_json(path, left_out)
           for path in sorted((workdir / 'data').glob('*/card.json'))}
  results = read_json(workdir / 'results.json', left_out)
  return Contents(workdir, _in_order(runs), results,
                  {name: card for name, card in cards.items() if card},
                  [text.removeprefix(f'{workdir}/') for text in left_out])


def read_json(path: pathlib.Path, left_out: list[str]) -> dict[str, Any]:
  """The object in a file, {} without one; a file that holds none is named in `left_out`."""
  try:
    value = json.loads(_bytes(path, left_out) or b'{}')
  except ValueError as error:  # not JSON, or not UTF-8
    left_out.append(f'{path}: is not JSON ({error})')
    return {}
  if not isinstance(value, dict):
    left_out.append(f'{path}: holds {type(value).__name__}, expected an object')
    return {}
  return value


def read_jsonl(path: pathlib.Path, left_out: list[str]) -> list[dict[str, Any]]:
  """The objects of a file, one a line; how many whole lines hold none is said in `left_out` (the
  last line may be in the making)."""
  whole = _bytes(path, left_out).split(b'\n')[:-1]
  rows = []
  for line in whole:
    with contextlib.suppress(ValueError):  # not JSON, or not UTF-8
      rows.append(json.loads(line))
  rows = [row for row in rows if isinstance(row, dict)]
  if len(rows) < len(whole):
    left_out.append(f'{path}: {len(whole) - len(rows)} of {len(whole)} lines are no JSON objects')
  return rows


def _bytes(path: pathlib.Path, left_out: list[str]) -> bytes:
  try:
    return path.read_bytes()
  except FileNotFoundError:
    return b''
  except OSError as error:
    left_out.append(f'{path}: {error.strerror or error}')
    return b''


def _run(folder: pathlib.Path, described: Mapping[str, Any], left_out: list[str]) -> Run:
  finished = read_json(folder / 'finished.json', left_out)
  return Run(
    name=folder.name, kind=described['kind'], config=described.get('config') or {},
    parents=described.get('parents') or {}, versions=described.get('versions') or {},
    commit=described.get('commit') or '',
    metrics=read_jsonl(folder / 'metrics.jsonl', left_out),
    samples=read_jsonl(folder / 'samples.jsonl', left_out),
    evaluations={path.stem: read_jsonl(path, left_out)
                 for path in sorted((folder / 'evaluations').glob('*.jsonl'))},
    summary=finished.get('summary') or {}, seconds=finished.get('seconds'),
    steps=finished.get('steps'))


def _made_anew(described: Mapping[str, Mapping[str, Any]], name: str, above: tuple[str, ...] = ()
               ) -> str:
  """The first run below `name` that is another now, as results.json has it; '' if none is."""
  for parent in (described[name].get('parents') or {}).values():
    run, hashed = parent if isinstance(parent, list) and len(parent) == 2 else (parent, None)
    if run in described and run not in above and hashed is not None:
      if described[run].get('hash') != hashed:
        return run
      if deeper := _made_anew(described, run, (*above, name)):
        return deeper
  return ''


def _in_order(runs: Mapping[str, Run]) -> list[Run]:
  """Runs after those they rest on, alphabetically where that leaves a choice."""
  done: dict[str, Run] = {}

  def visit(name: str, path: tuple[str, ...]) -> None:
    if name in done or name in path or name not in runs:
      return
    for needed in runs[name].parents.values():
      visit(needed[0] if isinstance(needed, list) and needed else needed, (*path, name))
    done[name] = runs[name]

  for name in runs:
    visit(name, ())
  return list(done.values())
