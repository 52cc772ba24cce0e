"""What a sweep found: from its points' rows to summary.json.

In: `Made` points, measured as evaluation/along.py does, and their starts (start.py). Out: plain
numbers: a variant (all that differs by seed alone) with intervals, fitted curves, a recommended
KL coefficient, what no KL coefficient gives back, points that look unhealthy and why. Left out:
files (runtime/tables.py) and figures (report/).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation import compared, judged, overoptimization
from rlhf_jax.evaluation.intervals import of_shares, two_way

LAST = 0.25  # share of a run's updates that health is judged by
# What a healthy run keeps. The first minibatch's ratio is 1 but for rounding, bfloat16's included;
# a value model below 0 is worse than a constant; the other two are where a look is worth while.
RATIO, CLIPPED, EXPLAINED, ENDED = 0.01, 0.2, 0.0, 0.1
NOT_A_VARIANT, NOT_A_FAMILY = ('seed',), ('seed', 'kl_coef')
# Means over prompts: measure -> its value in a row of an evaluation.
BY_PROMPT = {
  'win_rate': lambda row: (row['judgement'] or {}).get('win'),
  'gold': lambda row: (row['judgement'] or {}).get('score'),
  'proxy': lambda row: row['proxy'],
  'kl': lambda row: row['kl'],
  'kl_k3': lambda row: row['kl_k3'],
  'response_length': lambda row: row['length'],
  'eos_rate': lambda row: float(row['ended']),
}
# One number an evaluation: measure -> its name in the metrics.
WHOLE = ('pretraining_loss', 'distinct_1', 'distinct_2', 'distinct_3', 'repetition', 'words',
         'reward_accuracy', 'reward_ece')


@dataclasses.dataclass(frozen=True)
class Made:
  """A point as it lies in its folder, finished or not."""
  name: str
  values: Mapping[str, Any]  # the sweep's fields
  config: Mapping[str, Any]  # all fields of the run
  start: str  # key of its start in `starts`
  status: str  # 'finished', 'failed' or 'unfinished'
  reason: str  # why it failed
  seconds: float | None
  metrics: Sequence[Mapping[str, Any]]  # one row an update
  evaluations: Mapping[int, Sequence[Mapping[str, Any]]]  # step -> one row a prompt

  @property
  def last(self) -> Mapping[str, Any]:
    """The metrics of the last step that was evaluated; {} if none was."""
    steps = {row['step']: row for row in self.metrics}
    return steps.get(max(self.evaluations, default=0), {})


def summary(points: Sequence[Made], starts: Mapping[str, Mapping[str, Any]],
            draw_of: Mapping[str, str] | None = None) -> dict[str, Any]:
  """summary.json without what the runtime adds.

  Args:
    starts: key -> what evaluation/start.py found of it.
    draw_of: run -> the run of which it is another draw, as the sweep file has it.
  """
  groups = _groups([_drawn(point, draw_of or {}) for point in points])
  variants = [variant(group, starts) for group in groups]
  best = recommended(variants)
  return {
    'points': {point.name: _point(point) for point in points},
    'variants': variants,
    'starts': {key: {name: value for name, value in start.items() if name != 'baseline'}
               for key, start in starts.items()},
    'recommended': best,
    'alone': alone(variants),
    'paired': paired(groups, variants, best, starts),
    'same_kl': same_kl(groups, variants, starts),
    'same_distance': same_distance(groups, variants, starts),
  }


def _drawn(point: Made, draw_of: Mapping[str, str]) -> Made:
  """A point whose runs are called by the name of which they are draws."""
  named = lambda values: {field: draw_of.get(value, value) if isinstance(value, str) else value
                          for field, value in values.items()}
  return dataclasses.replace(point, values=named(point.values), config=named(point.config))


def variant(points: Sequence[Made], starts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """What the finished points that differ by seed alone say together, at their last step."""
  values = {field: value for field, value in points[0].values.items()
            if field not in NOT_A_VARIANT}
  config = points[0].config
  done = [point for point in points if point.status == 'finished' and point.evaluations]
  gamma = config['ptx_coef'] if config['ptx_ratio'] else 0.0
  entry: dict[str, Any] = {
    'label': label(values), 'family': label(
      {field: value for field, value in values.items() if field not in NOT_A_FAMILY}),
    'values': values, 'beta': config['kl_coef'], 'gamma': gamma, 'reward': config['reward'],
    'start': (done or points)[0].start, 'points': [point.name for point in points],
    'finished': [point.name for point in done], 'measures': {}, 'fit': None, 'curves': {}}
  if done:
    entry['measures'] = _measures(done, starts[done[0].start])
    entry['prompts'] = len(done[0].evaluations[max(done[0].evaluations)])
    entry |= _overoptimized(done, [starts[point.start] for point in done])
  return entry


def label(values: Mapping[str, Any]) -> str:
  """'β 0.02, no ptx'."""
  parts = []
  for field, value in values.items():
    told = f'{value:g}' if isinstance(value, float | int) else str(value)
    if field == 'ptx_ratio':
      parts.append('ptx' if value == 1 else f'ptx ratio {told}' if value else 'no ptx')
    else:
      named = {'kl_coef': 'β', 'ptx_coef': 'γ', 'reward': ''}.get(field, field)
      parts.append(f'{named} {told}'.strip())
  return ', '.join(parts)


def unhealthy(point: Made) -> list[str]:
  """What looks wrong with a run, in words; [] if nothing does."""
  if point.status == 'failed':
    return [point.reason]
  rows = point.metrics[-max(1, round(LAST * len(point.metrics))):]
  mean = lambda name: np.mean([row[name] for row in rows if row.get(name) is not None] or [np.nan])
  ratios = [row['ratio_first'] for row in point.metrics if row.get('ratio_first') is not None]
  worst = max(ratios, key=lambda ratio: abs(ratio - 1), default=1.0)
  found = []
  if abs(worst - 1) > RATIO:
    found.append(f'the first minibatch’s ratio is {worst:.3f}, not 1: old and new '
                 'log-probabilities are not of one policy')
  if mean('clip_fraction') > CLIPPED:
    found.append(f'clipping decides {mean("clip_fraction"):.0%} of the tokens: steps are too '
                 'large')
  if mean('explained_variance') < EXPLAINED:
    found.append(f'explained variance is {mean("explained_variance"):.2f}: the value model is '
                 'worse than a constant')
  before = point.metrics[0].get('eos_rate') if point.metrics else None
  if before is not None and mean('eos_rate') < before - ENDED:
    found.append(f'responses that end fell from {before:.0%} to {mean("eos_rate"):.0%}')
  return found


def recommended(variants: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
  """The variant whose win rate has the highest lower bound, and that of every family; of those with
  the most finished seeds, since an interval of one seed knows nothing of others.
  """
  told = [one for one in variants if 'win_rate' in one['measures']]
  if not told:
    return None

  def best(some):
    most = max(len(one['finished']) for one in some)
    top = max((one for one in some if len(one['finished']) == most),
              key=lambda one: one['measures']['win_rate']['low'])
    return {key: top[key] for key in ('label', 'family', 'beta')} | {
      'win_rate': top['measures']['win_rate']}

  families = dict.fromkeys(one['family'] for one in told)
  return best(told) | {'by_family': {family: best(
    [one for one in told if one['family'] == family]) for family in families}}


def alone(variants: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """For each variant with ptx: which β without it has as little alignment tax as any of its seeds.

  Compared are variants that differ in β, γ and ptx_ratio alone.
  """
  others = lambda one: {field: value for field, value in one['values'].items()
                        if field not in ('kl_coef', 'ptx_coef', 'ptx_ratio')}
  taxed = [one for one in variants if 'tax' in one['measures']]
  entries = []
  for one in taxed:
    rivals = [other for other in taxed if other['gamma'] == 0 and others(other) == others(one)]
    if one['gamma'] > 0 and rivals:
      allowed = one['measures']['tax']['high']
      entries.append({
        'label': one['label'], 'tax': one['measures']['tax'],
        'win_rate': one['measures'].get('win_rate'),
        'without': [{'label': other['label'], 'beta': other['beta'],
                     'tax': other['measures']['tax'],
                     'win_rate': other['measures'].get('win_rate'),
                     'gives_back': other['measures']['tax']['mean'] <= allowed}
                    for other in sorted(rivals, key=lambda other: other['beta'])]})
  return entries


def paired(groups: Sequence[Sequence[Made]], variants: Sequence[Mapping[str, Any]],
           best: Mapping[str, Any] | None, starts: Mapping[str, Mapping[str, Any]]
           ) -> list[dict[str, Any]]:
  """What the recommended variant has more than all others at their last steps, and what the best
  of each family has more than the rest of it.
  """
  found = []
  for one, group in zip(variants, groups, strict=True):
    top = best is not None and one['label'] == best['label']
    if not top and one['label'] not in [told['label'] for told in (best or {}).get(
        'by_family', {}).values()]:
      continue
    for other, rival in zip(variants, groups, strict=True):
      own, theirs = _seeds(group, starts), _seeds(rival, starts)
      told = {name: compared.at_the_end(own, theirs, BY_PROMPT[name], interval)
              for name, interval in (('gold', two_way), ('win_rate', of_shares))}
      if other is not one and (top or other['family'] == one['family']) and any(told.values()):
        found.append({'label': one['label'], 'against': other['label']} | told)
  return found


def same_kl(groups: Sequence[Sequence[Made]], variants: Sequence[Mapping[str, Any]],
            starts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Each KL coefficient against the least of its family, where that was as far from the start.

  'gold' is what it has more there; 'gap' how much more the reward model exceeds the judge, in the
  judge's units. A penalty that only stops early has 0 of both (Gao et al. 2022, §3.6).
  """
  found = []
  for one, group in zip(variants, groups, strict=True):
    rivals = [(other['beta'], other['label'], rival) for other, rival in
              zip(variants, groups, strict=True)
              if other['finished'] and other['family'] == one['family']]
    least, label_, rival = min(rivals, default=(one['beta'], '', group), key=lambda some: some[0])
    if one['beta'] <= least or not one['finished']:
      continue
    own, other_ = _seeds(group, starts), _seeds(rival, starts)
    values = {'gold': BY_PROMPT['gold'], 'gap': lambda row: (
      None if None in (row['judgement'], row['proxy'])
      else row['proxy'] - row['judgement']['score'])}
    told = {name: compared.at_the_same_kl(own, other_, BY_PROMPT['kl'], value, two_way)
            for name, value in values.items()}
    if told['gold']:
      found.append({'label': one['label'], 'beta': one['beta'], 'against': label_} | told)
  return found


def same_distance(groups: Sequence[Sequence[Made]], variants: Sequence[Mapping[str, Any]],
                  starts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Families where all of them were equally far from the start, at the least KL coefficient that
  each of them has; [] where they share none.

  So reward models are compared, or coefficients of the pretraining gradient. The distances are the
  farthest that every seed of all reached, and half of it. Gains are over the start and in the
  judge's units; 'gap' is what the reward model's has above the judge's. 'more' and 'wider' are what
  the judge's gain and the gap have above the first's, None where that met other prompts.
  """
  betas: dict[str, dict[float, tuple[Mapping[str, Any], Sequence[Made]]]] = {}
  for one, group in zip(variants, groups, strict=True):
    if 'gold' in one['curves']:
      betas.setdefault(one['family'], {}).setdefault(one['beta'], (one, group))
  common = set.intersection(*map(set, betas.values())) if len(betas) > 1 else set()
  if not common:
    return []
  told = [(one, _seeds(group, starts), _begun(group, starts))
          for one, group in (some[min(common)] for some in betas.values())]
  farthest = min(compared.reach(seeds, BY_PROMPT['kl']) for _, seeds, _ in told)
  met = compared.prompts(told[0][1])
  found = []
  for distance in (farthest / 2, farthest):
    first: dict[str, dict[int, np.ndarray]] = {}
    for one, seeds, begun in told:
      gains: dict[str, dict[int, np.ndarray]] = {}
      for name in ('gold', 'proxy'):
        there = compared.at_a_distance(seeds, distance, BY_PROMPT['kl'], BY_PROMPT[name])
        gains[name] = {
          seed: values - (_unit(begun[seed]) if name == 'proxy' else 1.0) * np.asarray(
            begun[seed]['baseline'][name], float) for seed, values in there.items()}
      gains['gap'] = {seed: gains['proxy'][seed] - gold for seed, gold in gains['gold'].items()}
      above = {name: [values - first[name][seed] for seed, values in gains[name].items()
                      if seed in first[name]]
               for name in ('gold', 'gap') if first and compared.prompts(seeds) == met}
      first = first or gains
      right = [start['metrics']['reward_accuracy'] for start in begun.values()
               if start['metrics'].get('reward_accuracy') is not None]
      found.append({
        'label': one['label'], 'd': distance,
        'gold_units': float(np.mean([_unit(start) for start in begun.values()])),
        'accuracy': float(np.mean(right)) if right else None,
        **{name: compared.told(list(of.values()), two_way) for name, of in gains.items()},
        'more': compared.told(above.get('gold', []), two_way),
        'wider': compared.told(above.get('gap', []), two_way)})
  return found


def _unit(start: Mapping[str, Any]) -> float:
  """What one of its reward model's units is of the judge's; 1 where there is no such number."""
  return max(start.get('gold_units') or 0.0, 0.0) or 1.0  # before 2026-11-30 it might be negative


def _begun(points: Sequence[Made], starts: Mapping[str, Mapping[str, Any]]
           ) -> dict[int, Mapping[str, Any]]:
  """The start of each finished point, by its seed."""
  return {point.values.get('seed', 0): starts[point.start] for point in points
          if point.status == 'finished' and point.evaluations}


def _seeds(points: Sequence[Made], starts: Mapping[str, Mapping[str, Any]]
           ) -> dict[int, Mapping[int, Sequence[Mapping[str, Any]]]]:
  """Evaluations of the finished points by their seed, 'proxy' in the judge's units; step 0 is the
  start, at no distance from itself.
  """
  begun = _begun(points, starts)
  scaled = lambda seed, rows: [row | {
    'proxy': None if row['proxy'] is None else _unit(begun[seed]) * row['proxy']} for row in rows]
  return {seed: {step: scaled(seed, rows) for step, rows in (
    (0, _origin(point, begun[seed])), *point.evaluations.items())}
          for point in points if (seed := point.values.get('seed', 0)) in begun
          and point.status == 'finished' and point.evaluations}


def _origin(point: Made, start: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Rows of a point's prompts with the start's mean scores."""
  rows = next(iter(point.evaluations.values()))
  gold, proxy = (np.broadcast_to(np.asarray(start['baseline'].get(name), float), len(rows))
                 for name in ('gold', 'proxy'))
  return [row | {'kl': 0.0, 'proxy': float(proxy[index]), 'judgement': row['judgement'] and {
    'score': float(gold[index])}} for index, row in enumerate(rows)]


def _groups(points: Sequence[Made]) -> list[list[Made]]:
  """Points that differ by seed alone, together, in the order in which they first come."""
  groups: dict[tuple[Any, ...], list[Made]] = {}
  for point in points:
    key = tuple((field, value) for field, value in point.values.items()  # 1 is 1.0
                if field not in NOT_A_VARIANT)
    groups.setdefault(key, []).append(point)
  return list(groups.values())


def _point(point: Made) -> dict[str, Any]:
  return {
    'values': dict(point.values), 'status': point.status, 'reason': point.reason,
    'steps': len(point.metrics), 'seconds': point.seconds, 'start': point.start,
    'evaluated': sorted(point.evaluations), 'unhealthy': unhealthy(point), 'last': dict(point.last)}


def _measures(points: Sequence[Made], start: Mapping[str, Any]) -> dict[str, Any]:
  """Measure -> {'mean', 'low', 'high', 'n', 'over'} at the last step of the points."""
  rows = [point.evaluations[max(point.evaluations)] for point in points]
  taken = dict(BY_PROMPT)
  if len({point.start for point in points}) > 1:
    del taken['proxy']  # scores of several reward models have no common unit; curves have
  flags = {flag for some in rows for row in some for flag in (row['judgement'] or {}).get(
    'flags', {})}
  for flag in sorted(flags):
    taken[judged.rate_name(flag)] = lambda row, flag=flag: judged.flagged(row, flag)
  told: dict[str, Any] = {}
  for name, value in taken.items():
    found = _matrix(rows, value)
    mean, interval = two_way(found, share=name.endswith('_rate'))
    if mean is not None:
      low, high = interval or (None, None)
      told[name] = {'mean': mean, 'low': low, 'high': high,
                    'n': int(np.isfinite(found).sum()),
                    'over': 'seeds and prompts' if len(points) > 1 else 'prompts'}
  for name in WHOLE:
    values = [point.last[name] for point in points if point.last.get(name) is not None]
    if values:
      told[name] = {'mean': float(np.mean(values)), 'low': min(values), 'high': max(values),
                    'n': len(values), 'over': 'seeds'}
  base = start['metrics'].get('pretraining_loss')
  if base is not None and 'pretraining_loss' in told:
    told['tax'] = told['pretraining_loss'] | {
      key: told['pretraining_loss'][key] - base for key in ('mean', 'low', 'high')}
  return told


def _matrix(rows: Sequence[Sequence[Mapping[str, Any]]], value: Any) -> np.ndarray:
  """[seeds, prompts] of one number a row, NaN for None."""
  return np.array([compared.numbers(some, value) for some in rows])


def _overoptimized(points: Sequence[Made], starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """'fit' of the RL form, and 'curves' over √KL with bands over seeds."""
  stacked: dict[str, list[np.ndarray]] = {}
  seeds, paths = [], []
  for number, (point, start) in enumerate(zip(points, starts, strict=True)):
    path: dict[str, list[float]] = {'d': [0.0], 'gold': [0.0], 'proxy': [0.0]}
    for _, rows in sorted(point.evaluations.items()):
      told = {name: _matrix([rows], BY_PROMPT[name])[0] for name in ('kl', 'gold', 'proxy')}
      for name in ('gold', 'proxy'):
        told[name] = told[name] - np.asarray(start['baseline'].get(name, 0.0), float)
      told['proxy'] = told['proxy'] * _unit(start)
      for name, values in told.items():
        stacked.setdefault(name, []).append(values)
      seeds.append(number)
      path['d'].append(float(np.sqrt(max(told['kl'].mean(), 0.0))))
      path['gold'].append(float(told['gold'].mean()))
      path['proxy'].append(float(told['proxy'].mean()))
    paths.append(path)
  judged_all = np.isfinite(stacked['gold']).all()
  fit = overoptimization.fit('rl', np.array(stacked['kl']), np.array(stacked['gold']),
                             seeds) if judged_all else None
  if fit is not None:
    fit['curve'] = overoptimization.fitted(fit)
  names = ('gold', 'proxy') if judged_all else ('proxy',)
  return {'fit': fit, 'paths': paths, 'curves': overoptimization.bands(paths, names)}
