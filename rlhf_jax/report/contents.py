"""What a workdir holds, read leniently: a report of a half-finished or damaged run is still a
report.

In: a workdir. Out: `Contents`, plain Python. Left out: checkpoints, and every judgement about the
numbers.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
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

  def run(self, name: str) -> Run | None:
    """The run of that name, if there is one."""
    return next((run for run in self.runs if run.name == name), None)

  def of_kind(self, kind: str) -> list[Run]:
    """The runs of a kind, in order."""
    return [run for run in self.runs if run.kind == kind]


def read(workdir: pathlib.Path) -> Contents:
  """Reads a workdir; files that are missing or not JSON count as absent, torn last lines are left
  out."""
  runs = {}
  for path in sorted(workdir.glob('*/config.json')):
    described = read_json(path)
    if 'kind' in described:
      runs[path.parent.name] = _run(path.parent, described)
  cards = {path.parent.relative_to(workdir / 'data').as_posix(): read_json(path)
           for path in sorted((workdir / 'data').glob('**/card.json'))}
  return Contents(workdir, _in_order(runs), read_json(workdir / 'results.json'),
                  {name: card for name, card in cards.items() if card})


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file, {} if there is none."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """The objects of a file, one a line; lines that are none are left out."""
  rows = []
  try:
    with open(path, encoding='utf-8', errors='replace') as file:
      for line in file:
        try:
          row = json.loads(line)
        except ValueError:
          continue
        if isinstance(row, dict):
          rows.append(row)
  except OSError:
    pass
  return rows


def _run(folder: pathlib.Path, described: Mapping[str, Any]) -> Run:
  finished = read_json(folder / 'finished.json')
  return Run(
    name=folder.name, kind=described['kind'], config=described.get('config') or {},
    parents=described.get('parents') or {}, versions=described.get('versions') or {},
    commit=described.get('commit') or '', metrics=read_jsonl(folder / 'metrics.jsonl'),
    samples=read_jsonl(folder / 'samples.jsonl'),
    evaluations={path.stem: read_jsonl(path)
                 for path in sorted((folder / 'evaluations').glob('*.jsonl'))},
    summary=finished.get('summary') or {}, seconds=finished.get('seconds'),
    steps=finished.get('steps'))


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
