"""results.json from the finished runs of a workdir, and the table at the end of `run`.

Enter: finished.json of each run. Leave: plain numbers, the summaries of Evaluate runs merged,
seconds by run.
Left out: figures and prose (report/).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.table

from rlhf_jax import configs
from rlhf_jax.runtime import workdir

COLUMNS = ('gold', 'proxy', 'kl', 'response_length', 'eos_rate', 'hallucination_rate',
           'truthful_rate', 'rude_rate', 'constraint_rate', 'pretraining_loss')


def assemble(folder: Path, runs: Mapping[str, configs.Run]) -> dict[str, Any]:
  """Writes and returns DIR/results.json: what the finished runs of the file found.

  Returns:
    The merged summaries of the Evaluate runs; where there is none, {'runs': {RUN: its summary}}.
    And
    'seconds': {RUN: over all its restarts}.
  """
  finished = {name: found for name in runs
              if (found := workdir.read_json(folder / name / 'finished.json')) is not None}
  evaluations = [found['summary'] for name, found in finished.items()
                 if isinstance(runs[name], configs.Evaluate)]
  told: dict[str, Any] = {}
  for summary in evaluations:
    told = _merged(told, summary)
  if not evaluations:
    told['runs'] = {name: found['summary'] for name, found in finished.items()}
  told['seconds'] = {name: found['seconds'] for name, found in finished.items()}
  workdir.write_json(folder / 'results.json', told)
  return told


def table(told: Mapping[str, Any]) -> rich.table.Table:
  """A model a row where models were evaluated, else a run a row."""
  if told.get('models'):
    return _models(told['models'])
  shown = rich.table.Table('run', 'seconds', 'ended with')
  for name, seconds in told['seconds'].items():
    numbers = {
      k: v
      for k, v in told.get('runs', {}).get(name, {}).items() if isinstance(v, int | float)
    }
    shown.add_row(name, f'{seconds:.0f}', '  '.join(f'{k} {v:.4g}' for k, v in numbers.items()))
  return shown


def _models(models: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
  rates = dict.fromkeys(key for entry in models.values() for key in entry
                        if key.startswith('win_rate_vs_') and not key.endswith('_ci'))
  columns = [c for c in COLUMNS if any(entry.get(c) is not None for entry in models.values())]
  shown = rich.table.Table('model', *(key.replace('_', ' ') for key in rates),
                           *(c.replace('_', ' ') for c in columns))
  for name, entry in models.items():
    wins = [_interval(entry.get(key)) for key in rates]
    shown.add_row(name, *wins, *(_number(entry.get(c)) for c in columns))
  return shown


def _interval(rate: Any) -> str:
  if not isinstance(rate, Mapping) or rate.get('mean') is None:
    return '–'
  return f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"


def _number(value: Any) -> str:
  return '–' if value is None else f'{value:.3f}'


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
  """Two nested dicts as one; the second wins."""
  both = {k: _merged(first[k], second[k]) for k in first.keys() & second.keys()
          if isinstance(first[k], Mapping) and isinstance(second[k], Mapping)}
  return {**first, **second, **both}
