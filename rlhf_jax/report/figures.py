"""Figures as inline SVG: text in the page's own colour and font, readable on light and dark.

In: plain numbers. Out: strings that start with <svg, without any address of another host. Left out:
captions (page.html says of every figure what n and band are).
"""

import functools
import hashlib
import html
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np

INK = '#010203'  # stands for the page's text colour, put in place in `_svg`
COLOURS = ('#3f7fbf', '#d9822b', '#2f9e6e', '#c8485a', '#8a6bbf', '#8c7a4f', '#3aa6b0', '#b0679a')
BINS = 80  # points a curve: a run of 100,000 steps must not make a page of 100 MB
_STYLE = {
  'svg.fonttype': 'none',
  'svg.hashsalt': 'report',
  'font.family': 'sans-serif',
  'font.size': 9,
  'text.color': INK,
  'axes.edgecolor': INK,
  'axes.labelcolor': INK,
  'axes.titlecolor': INK,
  'axes.titlesize': 9,
  'xtick.color': INK,
  'ytick.color': INK,
  'axes.linewidth': 0.6,
  'xtick.major.width': 0.6,
  'ytick.major.width': 0.6,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.facecolor': 'none',
  'figure.facecolor': 'none',
  'savefig.facecolor': 'none',
  'legend.frameon': False,
  'legend.labelcolor': INK,
  'axes.grid': True,
  'grid.color': INK,
  'grid.alpha': 0.12,
  'grid.linewidth': 0.6,
  'axes.axisbelow': True,
  'text.parse_math': False,  # a model may be called $x$
}


def styled(function: Any) -> Any:
  """Runs `function` (-> Figure, label) under the report's style and returns its SVG."""
  @functools.wraps(function)
  def drawn(*args: Any, **kwargs: Any) -> str:
    with matplotlib.rc_context(_STYLE):
      return _svg(*function(*args, **kwargs))
  return drawn


@styled
def win_rates(entries: Mapping[str, Mapping[str, Any]], against: str) -> str:
  """Horizontal bars of win rates with their 95 % intervals.

  Args:
    entries: model -> {'mean', 'low', 'high', 'n'}.
  """
  names = [name for name, entry in entries.items() if entry.get('mean') is not None][::-1]
  longest = max(map(len, names), default=0)
  figure = blank(7.2 + max(0, longest - 30) * 0.075, 0.42 * len(names) + 0.8)
  axes = figure.subplots()
  for row, name in enumerate(names):
    entry = entries[name]
    mean, low, high = (100 * entry[key] for key in ('mean', 'low', 'high'))
    axes.barh(
      row, mean, height=0.62, color=COLOURS[0] if name != against else '#8f8f8f', alpha=0.85
    )
    axes.errorbar(
      mean, row, xerr=[[mean - low], [high - mean]], color=INK, capsize=3, linewidth=1.2
    )
    axes.text(max(high, mean) + 1.5, row, f'{mean:.0f} %  (n = {entry["n"]})', va='center')
  axes.axvline(50, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
  axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 115), xticks=range(0, 101, 10),
           xlabel=f'wins against {against}, %')
  axes.spines['bottom'].set_bounds(0, 100)
  axes.grid(axis='y', visible=False)
  return figure, f'Win rates against {against}'


@styled
def curves(steps: Sequence[int], panels: Mapping[str, Sequence[tuple[str, Sequence[Any]]]]) -> str:
  """Small multiples over steps.

  Args:
    panels: title -> [(label, one number or None a step)]; a line is the mean of each bin of steps,
      a band the bin's lowest to highest.
  """
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = blank(3.0 * columns + 0.2, 1.9 * rows + 0.2)
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes, (title, lines) in zip(grid, panels.items(), strict=False):
    for colour, (label, values) in zip(itertools.cycle(COLOURS), lines, strict=False):
      x, mean, low, high = binned(steps, values)
      dots = 'o' if len(x) < 25 else ''
      axes.plot(x, mean, color=colour, linewidth=1.4, marker=dots, markersize=2.5, label=label)
      axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_title(title, loc='left')
    axes.margins(x=0.02)
    axes.locator_params(nbins=5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1:
      axes.legend(fontsize=7.5, handlelength=1.2, borderpad=0.1)
  for axes in grid[len(panels):]:
    axes.set_visible(False)
  return figure, 'Learning curves: ' + ', '.join(panels)


def binned(steps: Sequence[int], values: Sequence[Any]) -> tuple[np.ndarray, ...]:
  """(step, mean, lowest, highest) of at most BINS bins of equally many of the values that are
  there."""
  found = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
  x, y = np.array(found, np.float64).reshape(-1, 2).T
  size = max(1, -(-len(x) // BINS))
  parts = [slice(start, start + size) for start in range(0, len(x), size)]
  return tuple(np.array([function(array[part]) for part in parts]) for function, array in
               ((np.mean, x), (np.mean, y), (np.min, y), (np.max, y)))


@styled
def reward_over_kl(runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
  """Each PPO run's path from its first update (hollow) to its last (full): reward-model score over
  KL.

  Args:
    runs: name -> (KL in nats a sequence, score), one an update.
  """
  figure = blank(5.6, 3.4)
  axes = figure.subplots()
  for colour, (name, (kl, score)) in zip(itertools.cycle(COLOURS), runs.items(), strict=False):
    steps = range(len(kl))
    (_, x, *_), (_, y, *_) = binned(steps, kl), binned(steps, score)
    axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.85, label=name)
    axes.plot(x[0], y[0], 'o', color=colour, markerfacecolor='none')
    axes.plot(x[-1], y[-1], 'o', color=colour)
  axes.set(xlabel='KL from the reference, nats a sequence', ylabel='reward-model score')
  axes.legend()
  return figure, 'Reward-model score over KL'


@styled
def gold_over_kl(entries: Mapping[str, Mapping[str, Any]]) -> str:
  """Judge's score (left) and reward-model score (right) of every model over its KL, with 95 %
  intervals both ways.

  Args:
    entries: model -> {'kl', 'kl_ci', 'gold', 'gold_ci', 'proxy', 'proxy_ci'}.
  """
  figure = blank(8.2, 3.4)
  found = {}  # handles by name: matplotlib's own legend leaves out names that begin with _
  for axes, key, title in zip(figure.subplots(1, 2), ('gold', 'proxy'),
                              ('judge’s score', 'reward-model score'), strict=True):
    for colour, (name, entry) in zip(itertools.cycle(COLOURS), entries.items(), strict=False):
      if entry.get('kl') is None or entry.get(key) is None:
        continue
      found[name] = axes.errorbar(
        entry['kl'], entry[key], xerr=_around(entry, 'kl'), yerr=_around(entry, key), fmt='o',
        color=colour, markersize=5, linewidth=1.1)
    axes.set(xlabel='KL from the reference, nats', title=title)
  if found:
    legend_below(figure, found)
  return figure, 'Scores over KL'


def legend_below(figure: matplotlib.figure.Figure, found: Mapping[str, Any]) -> None:
  """A legend of handles by name below all axes, of as many columns as there is room for."""
  size = 7.5
  column = 0.62 * size * max(map(len, found)) + 40  # points, with handle and gap
  room = int(72 * figure.get_figwidth() / column)
  figure.legend(found.values(), found.keys(), loc='outside lower center', fontsize=size,
                ncols=max(1, min(len(found), room, 5)))


@styled
def reliability(table: Sequence[Mapping[str, Any]]) -> str:
  """Share of pairs in which the first is better, over the probability the reward model gives it.

  Args:
    table: rows {'confidence', 'accuracy', 'n'}; bars are 95 % Wilson intervals.
  """
  figure = blank(4.2, 3.9)
  axes = figure.subplots()
  axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
  for row in table:
    low, high = wilson(row['accuracy'], row['n'])
    axes.errorbar(
      row['confidence'],
      row['accuracy'],
      fmt='o',
      color=COLOURS[0],
      linewidth=1.2,
      capsize=2,
      yerr=[[max(0.0, row['accuracy'] - low)], [max(0.0, high - row['accuracy'])]],
    )
    axes.annotate(str(row['n']), (row['confidence'], row['accuracy']), xytext=(6, -9),
                  textcoords='offset points', fontsize=7)
  axes.set(xlim=(0, 1), ylim=(0, 1), xlabel='probability given to the first of two',
           ylabel='share in which it is the better', aspect='equal')
  return figure, 'Reliability of the reward model'


def wilson(share: float, n: int) -> tuple[float, float]:
  """95 % interval of a share of n independent cases (Wilson 1927)."""
  z = 1.959964
  middle = (share + z * z / (2 * n)) / (1 + z * z / n)
  half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
  return float(middle - half), float(middle + half)


def _around(entry: Mapping[str, Any], key: str) -> list[list[float]] | None:
  """The interval of a number as matplotlib wants it: how far below and above."""
  interval = entry.get(f'{key}_ci')
  if not interval:
    return None
  return [[max(0.0, entry[key] - interval[0])], [max(0.0, interval[1] - entry[key])]]


def blank(width: float, height: float) -> matplotlib.figure.Figure:
  # Without pyplot there is no global state and no display to be asked for.
  return matplotlib.figure.Figure(figsize=(width, height), layout='constrained')


def _svg(figure: matplotlib.figure.Figure, label: str) -> str:
  """The figure as an <svg> element for a page: ids of its own, no metadata, colours that follow the
  page."""
  buffer = io.StringIO()
  figure.savefig(
    buffer, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None}
  )
  text = buffer.getvalue()
  text = text[text.index('<svg'):]
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.S)
  text = re.sub(r'\s(xmlns(:xlink)?|version)="[^"]*"', '', text).replace('xlink:href', 'href')
  prefix = f'f{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}-'
  text = re.sub(r'(\bid="|url\(#|href="#)', lambda found: found[0] + prefix, text)
  text = text.replace(INK, 'currentColor')
  text = re.sub(r"font: ([\d.]+px) [^;\"]*", r'font-size: \1', text)
  text = re.sub(r'font-family: [^;"]*; ?|<style.*?</style>', '', text, flags=re.S)
  # A hundredth of a point is finer than any screen, and nothing refers to a group.
  text = re.sub(r'<g id="[^"]*"', '<g', text)
  text = re.sub(r'\b(?:d|x|y|transform)="[^"]*"', lambda found: re.sub(
    r'-?\d+\.\d+', lambda number: f'{float(number[0]):.2f}'.rstrip('0').rstrip('.'),
    found[0]).replace('\n', ''), text)
  text = re.sub(r'>\s+<', '>\n<', text)
  # As wide as drawn, and no wider than the screen.
  width = float(re.search(r'\bwidth="([\d.]+)pt"', text)[1]) * 4 / 3
  text = re.sub(r'\s(width|height)="[\d.]+pt"', '', text)
  style = f'style="width: {width:.0f}px; max-width: 100%; height: auto"'
  return text.replace('<svg', f'<svg role="img" aria-label="{html.escape(label)}" {style}', 1)
