"""The page of a sweep: one self-contained HTML file, and its figures as SVG and CSV beside it.

In: summary.json, sweep.parquet and the evaluations of a sweep's workdir. Out: DIR/report.html,
DIR/figures/. Left out: every number that is not in those files already.
"""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe
import pyarrow
import pyarrow.parquet

from rlhf_jax.data import store
from rlhf_jax.report import contents, study_figures
from rlhf_jax.report.study_figures import Variant

SAMPLES, HIGHEST = 12, 5
FIGURES = ('overoptimization', 'beta', 'tax_beta', 'gamma', 'tax_gamma', 'tax', 'training')
# Measures of the second figure, and how columns of tables are told.
PANELS = {
  'win_rate': 'wins against the start', 'gold': 'judge’s score', 'proxy': 'reward-model score',
  'kl': 'KL, nats', 'response_length': 'length, tokens', 'eos_rate': 'share that ends',
  'refusal_rate': 'refusals', 'hallucination_rate': 'hallucination', 'repetition': 'repetition',
  'distinct_2': 'distinct word pairs', 'truthful_rate': 'truthful',
  'truthful_informative_rate': 'truthful and informative', 'rude_rate': 'rude unasked',
  'constraint_rate': 'constraint kept', 'reward_accuracy': 'reward model right',
  'reward_ece': 'its calibration error', 'pretraining_loss': 'pretraining loss'}
RATES = ('win_rate', 'eos_rate', 'refusal_rate', 'hallucination_rate', 'truthful_rate',
         'truthful_informative_rate', 'rude_rate', 'constraint_rate', 'reward_accuracy',
         'repetition', 'distinct_2')
TRAINING = {'kl': 'KL of the rollouts, nats', 'score': 'reward-model score',
            'gold': 'judge’s score', 'entropy': 'entropy, nats a token',
            'clip_fraction': 'clip fraction', 'explained_variance': 'explained variance'}


def is_sweep(workdir: pathlib.Path) -> bool:
  """Whether a workdir is that of a sweep which has come to its tables, and they can be read."""
  return 'variants' in contents.read_json(workdir / 'summary.json', []) and (
    workdir / 'sweep.parquet').is_file()


def points(workdir: pathlib.Path) -> list[str]:
  """The names of a sweep's points."""
  return list(contents.read_json(workdir / 'summary.json', []).get('points', {}))


def stopped(workdir: pathlib.Path) -> dict[str, str]:
  """Point -> 'finished', 'failed', 'begun' or 'not begun' of a sweep that has not come to its
  tables; {} of any other workdir."""
  if is_sweep(workdir):
    return {}
  there = lambda name, file: (workdir / name / file).is_file()
  return {name: 'finished' if there(name, 'finished.json') else
          'failed' if there(name, 'failed.json') else
          'begun' if there(name, 'config.json') else 'not begun'
          for name in contents.read_json(workdir / 'sweep.json', []).get('runs') or {}}


def page(workdir: pathlib.Path, environment: jinja2.Environment) -> str:
  """The HTML; writes figures/NAME.svg and NAME.csv, and removes those that there are no more.

  Args:
    environment: with the filters of report.py.
  """
  left_out: list[str] = []
  told = contents.read_json(workdir / 'summary.json', left_out)
  variants = [one for one in told['variants'] if one['finished']]
  drawn = _figures(told, variants, _table(workdir / 'sweep.parquet', left_out))
  for name, (svg, rows) in drawn.items():
    store.write(workdir / 'figures' / f'{name}.svg', standalone(svg))
    store.write(workdir / 'figures' / f'{name}.csv', as_csv(rows))
  for name in FIGURES:
    for form in ('svg', 'csv') if name not in drawn else ():  # of a grid of before
      (workdir / 'figures' / f'{name}.{form}').unlink(missing_ok=True)
  return environment.get_template('study.html').render(
    title=store.absolute(workdir).name, told=told, variants=variants,
    drawn={name: markupsafe.Markup(svg) for name, (svg, _) in drawn.items()},
    panels={name: title for name, title in PANELS.items()
            if any(name in one['measures'] for one in variants)},
    rates=RATES, start=_start(told, variants), samples=_samples(workdir, told, variants, left_out),
    rests_on=(workdir / 'runs.html').is_file(), new=_new(workdir, told),
    left_out=[text.removeprefix(f'{workdir}/') for text in left_out])


def _table(path: pathlib.Path, left_out: list[str]) -> pyarrow.Table:
  try:
    with path.open('rb') as file:
      return pyarrow.parquet.read_table(file)
  except (pyarrow.ArrowException, OSError) as error:
    left_out.append(f'{path}: is not Parquet ({error})')
    return pyarrow.table({'point': [], 'step': []})


def _new(workdir: pathlib.Path, told: Mapping[str, Any]) -> list[str]:
  """The points that a sweep has got since its tables were made."""
  runs = contents.read_json(workdir / 'sweep.json', []).get('runs') or {}
  return [name for name in runs if name not in told['points']]


def standalone(svg: str) -> str:
  """An <svg> of a page as a file of its own: dark on white, in any sans-serif."""
  return svg.replace('<svg', '<svg xmlns="http://www.w3.org/2000/svg" color="#1c1e21" '
                     'font-family="sans-serif"', 1).replace('style="width', 'style="background: '
                                                            'white; width', 1)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows with a header; columns in the order in which they first come."""
  out = io.StringIO()
  writer = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)),
                          lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()


def _figures(told: Mapping[str, Any], variants: Sequence[Variant], table: Any
             ) -> dict[str, tuple[str, list[dict[str, Any]]]]:
  """Name -> (SVG, what is drawn as rows)."""
  drawn: dict[str, tuple[str, list[dict[str, Any]]]] = {}
  if variants:
    judged = any('gold' in one['curves'] for one in variants)
    units = 'units of the judge' if judged else 'units of the reward model'
    drawn['overoptimization'] = (
      study_figures.overoptimization(variants, told['starts'], units),
      _paths(variants) + _best_of_n(told['starts']))
    panels = {name: title for name, title in PANELS.items()
              if any(name in one['measures'] for one in variants)}
    rows = [_row(one, panels) for one in variants]
    for field in ('beta', 'gamma'):
      # With and without the pretraining gradient alone, γ is no axis.
      if len({one[field] for one in variants} - ({0} if field == 'gamma' else set())) > 1:
        drawn[field] = study_figures.against(variants, field, panels), rows
        if any('tax' in one['measures'] for one in variants):
          drawn[f'tax_{field}'] = study_figures.against(
            variants, field, {'tax': 'loss above the start’s, nats a token'}), [
              _row(one, ('tax',)) for one in variants]
    if any({'tax', 'win_rate'} <= one['measures'].keys() for one in variants):
      drawn['tax'] = study_figures.tax(variants), [_row(one, ('tax', 'win_rate'))
                                                   for one in variants]
  points = _points(told, table)
  columns = {name: title for name, title in TRAINING.items()
             if any(value is not None for one in points.values() for value in one[name])}
  if columns:
    everyone = told['variants']
    rows = [{'point': name, 'step': step, **{column: one[column][i] for column in columns}}
            for name, one in points.items() for i, step in enumerate(one['step'])]
    drawn['training'] = study_figures.training(points, study_figures.colours(everyone),
                                               columns), rows
  return drawn


def _row(one: Variant, measures: Any) -> dict[str, Any]:
  row = {'variant': one['label'], 'beta': one['beta'], 'gamma': one['gamma'], **one['values']}
  for name in measures:
    for key in ('mean', 'low', 'high', 'n'):
      row[f'{name}_{key}'] = one['measures'].get(name, {}).get(key)
  return row


def _paths(variants: Sequence[Variant]) -> list[dict[str, Any]]:
  return [{'curve': one['label'], 'point': point, 'd': d, 'gold': path['gold'][i],
           'proxy': path['proxy'][i]}
          for one in variants for point, path in zip(one['finished'], one['paths'], strict=True)
          for i, d in enumerate(path['d'])]


def _best_of_n(starts: Mapping[str, Any]) -> list[dict[str, Any]]:
  rows = []
  rewards = [key.split('/')[-1] for key in starts]
  for key, reward in zip(starts, rewards, strict=True):
    start = starts[key]
    curve = f', {reward}' if rewards.count(reward) == 1 else f', {key}'
    curve = 'best-of-n' + curve * (len(starts) > 1)
    some = start.get('best_of_n') or []
    for row in some:
      gain = {name: None if row.get(name) is None else row[name] - some[0][name]
              for name in ('gold', 'proxy')}
      rows.append({'curve': curve, 'point': f'n = {row["n"]}', 'd': row['kl']**0.5,
                   'gold': gain['gold'], 'proxy': gain['proxy'] * (start.get('gold_units') or 1.0)})
  return rows


def _points(told: Mapping[str, Any], table: Any) -> dict[str, dict[str, list[Any]]]:
  """Point -> the columns of TRAINING, its steps and the label of its variant."""
  labels = {point: one['label'] for one in told['variants'] for point in one['points']}
  known = [name for name in TRAINING if name in table.column_names]
  found: dict[str, dict[str, Any]] = {}
  for row in table.select(['point', 'step', *known]).to_pylist():
    if not row['step']:
      continue
    one = found.setdefault(row['point'], {'label': labels.get(row['point'], ''), 'step': [],
                                          **{name: [] for name in TRAINING}})
    one['step'].append(row['step'])
    for name in TRAINING:
      one[name].append(row.get(name))
  return found


def _start(told: Mapping[str, Any], variants: Sequence[Variant]) -> Mapping[str, Any]:
  """The start of the first variant; {} without one."""
  return (told['starts'].get(variants[0]['start']) or {}) if variants else {}


def _samples(workdir: pathlib.Path, told: Mapping[str, Any], variants: Sequence[Variant],
             left_out: list[str]) -> dict[str, Any]:
  """The smallest β, the recommended and the largest, of the family that is recommended or, where
  that has one β alone, of the one with most; where β does not vary, the smallest γ (or the first
  variant), the recommended and the largest (the last). Their first seed's last evaluation.
  """
  sorts = study_figures.families(variants)
  if not sorts:
    return {}
  told_best = told.get('recommended') or {}
  best = told_best.get('family', '')
  family = best if len(sorts.get(best, ())) > 1 else max(sorts, key=lambda name: len(sorts[name]))
  some, wanted = sorts[family], told_best.get('by_family', {}).get(family, {}).get('label')
  if len(some) == 1:
    some, wanted = sorted(variants, key=lambda one: one['gamma']), told_best.get('label')
  middle = next((one for one in some if one['label'] == wanted), some[len(some) // 2])
  chosen = list({one['label']: one for one in (some[0], middle, some[-1])}.values())
  columns = {}
  for one in chosen:
    point = one['finished'][0]
    step = max(told['points'][point]['evaluated'])
    columns[one['label']] = contents.read_jsonl(
      workdir / point / 'evaluations' / f'{step}.jsonl', left_out)
  rows = [list(row) for row in zip(*columns.values(), strict=False)]
  return {'names': list(columns), 'rows': rows[:SAMPLES], 'highest': {
    name: sorted((row for row in answers if row['proxy'] is not None),
                 key=lambda row: -row['proxy'])[:HIGHEST]
    for name, answers in columns.items()}}
