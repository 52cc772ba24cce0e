"""results.json from the finished runs of a workdir, and the table at the end of `run`.

Enter: finished.json of each run. Leave: plain numbers, the summaries of Evaluate runs merged,
seconds by run; nothing of a run whose parent was made anew with another configuration.
Left out: figures and prose (report/).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.table
import rich.text

from rlhf_jax import configs
from rlhf_jax.data import processes
from rlhf_jax.runtime import workdir

MEASURES = ('gold', 'proxy', 'kl', 'response_length', 'eos_rate', 'hallucination_rate',
            'truthful_rate', 'truthful_informative_rate', 'rude_rate', 'constraint_rate',
            'pretraining_loss')
logger = logging.getLogger('rlhf_jax')


def assemble(folder: Path, runs: Mapping[str, configs.Run]) -> dict[str, Any]:
  """Writes and returns DIR/results.json: what the finished runs of the file found.

  Returns:
    What the Evaluate runs found; of several the last's where two say the same thing (whole entries
    of models); and 'evaluation', its name. Where there is none, {'runs': {RUN: its summary}}. And
    'seconds': {RUN: over all its restarts}.
  """
  finished = {name: found for name in runs
              if (found := workdir.read_json(folder / name / 'finished.json')) is not None
              and not _outlived(folder, name)}
  evaluations = {name: found['summary'] for name, found in finished.items()
                 if isinstance(runs[name], configs.Evaluate)}
  told: dict[str, Any] = {}
  for name, summary in evaluations.items():
    models = {**told.get('models', {}), **summary.get('models', {})}
    told = {**told, **{key: value for key, value in summary.items() if value or key not in told},
            'models': models, 'evaluation': name}
  if not evaluations:
    told['runs'] = {name: found['summary'] for name, found in finished.items()}
  told['seconds'] = {name: found['seconds'] for name, found in finished.items()}
  if processes.first():
    workdir.write_json(folder / 'results.json', told)
  return told


def _outlived(folder: Path, name: str) -> bool:
  """Whether a run rests on one that was deleted and made with another configuration; says so."""
  parent = _made_anew(folder, name)
  if parent:
    logger.warning('%s was made from another %s than there is now, and is left out of '
                   'results.json; delete %s to make it again', name, parent, folder / name)
  return bool(parent)


def _made_anew(folder: Path, name: str) -> str:
  """The first run below `name` that is another now; '' if none is. One that is gone is as it was.
  """
  parents = (workdir.read_json(folder / name / 'config.json') or {}).get('parents', {})
  for run, hashed in parents.values():
    there = None if '/' in run else workdir.read_json(folder / run / 'config.json')
    if there is not None and there.get('hash') != hashed:
      return run
    if there is not None and (deeper := _made_anew(folder, run)):
      return deeper
  return ''


def table(told: Mapping[str, Any]) -> rich.table.Table:
  """A model a column where models were evaluated, else a run a row."""
  if told.get('models'):
    return _models(told)
  shown = rich.table.Table('run', 'seconds', 'ended with')
  for name, seconds in told['seconds'].items():
    numbers = {key: value for key, value in told.get('runs', {}).get(name, {}).items()
               if isinstance(value, int | float)}
    shown.add_row(name, f'{seconds:.0f}', '  '.join(f'{k} {v:.4g}' for k, v in numbers.items()))
  return shown


def _models(told: Mapping[str, Any]) -> rich.table.Table:
  models = told['models']
  # Models have any names; as Text they are shown as they are, brackets and colons too.
  shown = rich.table.Table('', *(rich.table.Column(rich.text.Text(name)) for name in models),
                           caption=_caption(told), caption_justify='left')
  rates = dict.fromkeys(key for entry in models.values() for key, rate in entry.items()
                        if key.startswith('win_rate_vs_') and isinstance(rate, Mapping))
  for key in rates:
    found = [entry.get(key) or {} for entry in models.values()]
    shown.add_row(rich.text.Text(f'win rate vs {key.removeprefix("win_rate_vs_")}'),
                  *(_number(rate.get('mean')) for rate in found))
    shown.add_row('  95 % interval', *(f"{_number(rate.get('low'))}–{_number(rate.get('high'))}"
                                       for rate in found))
  for measure in MEASURES:
    found = [entry.get(measure) for entry in models.values()]
    if any(value is not None for value in found):
      shown.add_row(measure.replace('_', ' '), *map(_number, found))
  return shown


def _caption(told: Mapping[str, Any]) -> str:
  parts = []
  for title, key, names in (
      ('labelers agree', 'labelers', {'training': 'agreement_training',
                                      'held out': 'agreement_heldout'}),
      ('reward model orders pairs', 'reward_model', {'training': 'accuracy',
                                                     'held out': 'accuracy_heldout_labelers'})):
    numbers = [f'{_number(told[key][name])} ({label})' for label, name in names.items()
               if told.get(key, {}).get(name) is not None]
    parts += [f"{title}: {', '.join(numbers)}"] if numbers else []
  return '\n'.join([*parts, f"{sum(told['seconds'].values()):.0f} seconds"])


def _number(value: Any) -> str:
  return '–' if value is None else f'{value:.3f}'
