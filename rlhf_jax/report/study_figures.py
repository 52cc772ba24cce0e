"""The figures of a sweep's page: what the KL coefficient does, against √KL, against β, over steps.

In: summary.json as a dict, columns of sweep.parquet. Out: <svg> strings, as figures.py makes them.
Colours run from blue (the smallest β) to red (the largest). Left out: captions (study.html says of
every figure what n and band are).
"""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.axes
import matplotlib.colors
import matplotlib.figure
import numpy as np

from rlhf_jax.report.figures import COLOURS, INK, blank, legend_below, styled

COLUMNS = 4  # small multiples in a row
Variant = Mapping[str, Any]


def ramp(count: int) -> list[str]:
  """Colours of one lightness, blue to red, that read on light and dark."""
  hues = np.linspace(0.6, 0.0, max(count, 2))
  return [matplotlib.colors.to_hex(colorsys.hls_to_rgb(hue, 0.5, 0.65)) for hue in hues[:count]]


def families(variants: Sequence[Variant]) -> dict[str, list[Variant]]:
  """Variants that differ by β alone, together, smallest β first."""
  found: dict[str, list[Variant]] = {}
  for one in variants:
    found.setdefault(one['family'], []).append(one)
  return {name: sorted(some, key=lambda one: one['beta']) for name, some in found.items()}


def colours(variants: Sequence[Variant]) -> dict[str, str]:
  """Label -> colour: by β where it varies, else one each."""
  betas = sorted({one['beta'] for one in variants})
  if len(betas) > 1:
    shades = dict(zip(betas, ramp(len(betas)), strict=True))
    return {one['label']: shades[one['beta']] for one in variants}
  shades = COLOURS if len(variants) <= len(COLOURS) else ramp(len(variants))
  return {one['label']: shade for one, shade in zip(variants, shades, strict=False)}


@styled
def overoptimization(variants: Sequence[Variant], starts: Mapping[str, Any], units: str
                     ) -> tuple[matplotlib.figure.Figure, str]:
  """Judge's and reward model's gain over √KL, a row for each family, with best-of-n (in the colour
  of its variant where that has a reward model of its own).

  Args:
    units: what the vertical axis counts.
  """
  rows = families(variants) if len({one['beta'] for one in variants}) > 1 else {
    '': list(variants)}
  shades = colours(variants)
  columns = [name for name in ('gold', 'proxy') if any(name in one['curves'] for one in variants)]
  figure = blank(4.4 * len(columns) + 0.2, 3.1 * len(rows) + 0.5)
  grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
  for axes_row, (family, some) in zip(grid, rows.items(), strict=True):
    for axes, name in zip(axes_row, columns, strict=True):
      for one in some:
        told = f"β {one['beta']:g}" if family else one['label']
        _path(axes, one, name, shades[one['label']], told)
      for key in dict.fromkeys(one['start'] for one in some):
        own = [shades[one['label']] for one in some if one['start'] == key]
        alone = len(own) == 1 < len(some)
        _best_of_n(axes, starts.get(key), name, own[0] if alone else INK)
      axes.axhline(0, color=INK, linewidth=0.6)
      title = {'gold': 'the judge', 'proxy': 'the reward model'}[name]
      axes.set_title(f'{title}{f": {family}" * bool(family)}', loc='left')
      axes.set_xlabel('√KL from the start, √nats')
    axes_row[0].set_ylabel(f'gain over the start, {units}')
  _legend(figure, grid)
  return figure, 'Gain over the start against the square root of KL'


def _path(axes: matplotlib.axes.Axes, one: Variant, name: str, colour: str, label: str) -> None:
  curve = one['curves'].get(name)
  if curve is None or None in curve['mean']:
    return
  d = one['curves']['d']
  axes.plot(d, curve['mean'], color=colour, linewidth=1.5, label=label)
  axes.fill_between(d, curve['low'], curve['high'], color=colour, alpha=0.18, linewidth=0)
  for path in one['paths']:
    axes.plot(path['d'], path[name], '.', color=colour, markersize=3, alpha=0.6)
  fit = one.get('fit')
  if name == 'gold' and fit:
    axes.plot(fit['curve']['d'], fit['curve']['score'], color=colour, linewidth=0.9,
              linestyle=(0, (4, 2)))


def _best_of_n(axes: matplotlib.axes.Axes, start: Mapping[str, Any] | None, name: str, colour: str
               ) -> None:
  rows = (start or {}).get('best_of_n') or []
  if not rows or rows[0].get(name) is None:
    return
  scale = max(start.get('gold_units') or 0.0, 0.0) or 1.0 if name == 'proxy' else 1.0
  d = np.sqrt([row['kl'] for row in rows])
  middle = scale * np.array([row[name] - rows[0][name] for row in rows])
  bars = None
  # Of one prompt there are none, nor in a sweep of before 2026-11-30.
  if rows[0].get(f'{name}_gain_low') is not None:
    low, high = (scale * np.array([row[f'{name}_gain_{end}'] for row in rows])
                 for end in ('low', 'high'))
    bars = np.maximum([middle - low, high - middle], 0)
  axes.errorbar(d, middle, yerr=bars, color=colour, fmt='o', markersize=3, linewidth=0.8,
                label='best-of-n')
  if name == 'gold' and start.get('fit'):
    curve = start['fit']['curve']
    axes.plot(curve['d'], curve['score'], color=colour, linewidth=0.9,
              linestyle=(0, (4, 2)))


@styled
def against(variants: Sequence[Variant], field: str, panels: Mapping[str, str]
            ) -> tuple[matplotlib.figure.Figure, str]:
  """Small multiples of measures over β or γ, a line for each family.

  Args:
    field: 'beta' or 'gamma'.
    panels: measure -> title.
  """
  columns = min(COLUMNS, len(panels))
  rows = -(-len(panels) // columns)
  figure = blank(max(2.5 * columns + 0.3, 4.6), 2.1 * rows + 0.5)
  grid = figure.subplots(rows, columns, squeeze=False)
  sorts = _lines(variants, field)
  shades = COLOURS if len(sorts) <= len(COLOURS) else ramp(len(sorts))
  for axes, (measure, title) in zip(grid.ravel(), panels.items(), strict=False):
    for shade, (family, some) in zip(shades, sorts.items(), strict=False):
      told = [(one[field], one['measures'][measure]) for one in some if measure in one['measures']]
      if told:
        x, y = [value for value, _ in told], [m['mean'] for _, m in told]
        arms = np.hstack([_arms(m) for _, m in told])
        axes.errorbar(x, y, yerr=arms, color=shade, fmt='o-', markersize=3.5, linewidth=1.2,
                      capsize=2, label=family or 'all')
    _coefficient(axes, [one[field] for one in variants])
    axes.set_title(title, loc='left')
    axes.set_xlabel({'beta': 'β', 'gamma': 'γ'}[field])
  for axes in grid.ravel()[len(panels):]:
    axes.set_visible(False)
  _legend(figure, grid)
  return figure, f'Measures against {field}'


def _lines(variants: Sequence[Variant], field: str) -> dict[str, list[Variant]]:
  """What differs by the coefficient alone, in its order."""
  if field == 'beta':
    return families(variants)
  rest = lambda one: [f'{name} {value}' for name, value in one['values'].items()
                      if name not in ('kl_coef', 'ptx_coef', 'ptx_ratio')]
  varied = len({tuple(rest(one)) for one in variants}) > 1
  found: dict[str, list[Variant]] = {}
  for one in sorted(variants, key=lambda one: one['gamma']):
    told = ', '.join([f"β {one['beta']:g}", *(rest(one) if varied else [])])
    found.setdefault(told, []).append(one)
  return found


def _coefficient(axes: matplotlib.axes.Axes, values: Sequence[float]) -> None:
  """A logarithmic axis that has a place for 0."""
  known = sorted(set(values))
  positive = [value for value in known if value > 0]
  if positive and max(positive) > 3 * min(positive):
    axes.set_xscale('symlog', linthresh=min(positive), linscale=0.5)
  ticks = known if len(known) <= 6 else [v for v in known if v == 0 or v in known[::2]]
  axes.set_xticks(ticks, [f'{value:g}' for value in ticks], fontsize=7)
  axes.set_xticks([], minor=True)


@styled
def tax(variants: Sequence[Variant]) -> tuple[matplotlib.figure.Figure, str]:
  """What is won against what the pretraining loss pays for it: a point for each variant."""
  # The legend stands beside it and has a line for each.
  longest = max(len(one['label']) for one in variants)
  figure = blank(5.4 + max(0, longest - 20) * 0.06, max(3.5, 0.16 * len(variants) + 0.3))
  axes = figure.subplots()
  shades = colours(variants)
  for one in variants:
    loss, win = one['measures'].get('tax'), one['measures'].get('win_rate')
    if loss and win:
      axes.errorbar(
        loss['mean'], 100 * win['mean'], color=shades[one['label']],
        xerr=_arms(loss), yerr=100 * _arms(win),
        fmt='s' if one['gamma'] else 'o', markersize=5, linewidth=1, label=one['label'])
  axes.axvline(0, color=INK, linewidth=0.6)
  axes.set(xlabel='pretraining loss above the start’s, nats a token',
           ylabel='wins against the start, %')
  figure.legend(loc='outside right upper', fontsize=7.5)
  return figure, 'Win rate against alignment tax'


def _arms(one: Mapping[str, Any]) -> np.ndarray:
  """[2, 1]: how far the ends are from the mean; a mean of equal numbers may round past them. 0
  where there are none.
  """
  if one['low'] is None:
    return np.zeros((2, 1))
  return np.maximum([[one['mean'] - one['low']], [one['high'] - one['mean']]], 0.0)


@styled
def training(points: Mapping[str, Mapping[str, Sequence[Any]]], shades: Mapping[str, str],
             panels: Mapping[str, str]) -> tuple[matplotlib.figure.Figure, str]:
  """Every point over its updates.

  Args:
    points: point -> column -> one value a step or None; 'label' and 'step' too.
    shades: label -> colour.
    panels: column -> title.
  """
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = blank(3.3 * columns + 0.2, 2.4 * rows + 0.6)
  grid = figure.subplots(rows, columns, squeeze=False)
  for axes, (column, title) in zip(grid.ravel(), panels.items(), strict=False):
    seen = set()
    for told in points.values():
      pairs = [(s, v) for s, v in zip(told['step'], told[column], strict=True) if v is not None]
      if pairs:
        label = told['label'] if told['label'] not in seen else None
        seen.add(told['label'])
        axes.plot(*zip(*pairs, strict=True), color=shades.get(told['label'], COLOURS[0]),
                  linewidth=0.9, alpha=0.8, label=label)
    axes.set_title(title, loc='left')
    axes.set_xlabel('update')
  for axes in grid.ravel()[len(panels):]:
    axes.set_visible(False)
  _legend(figure, grid)
  return figure, 'Training of every point'


def _legend(figure: matplotlib.figure.Figure, grid: np.ndarray) -> None:
  """One legend of all axes' lines, below."""
  found: dict[str, Any] = {}
  for axes in grid.ravel():
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
      found.setdefault(label, handle)
  if len(found) > 1:
    legend_below(figure, found)
