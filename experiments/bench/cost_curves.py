"""What a PPO update costs against episodes, response length and model size, and what the rollout
saves where responses end early.

  python experiments/bench/cost_curves.py [--sizes tiny,small] [--updates N] [--out DIR] [--quick]

Each point is a process of its own (cost_point.py): seconds are the median of the timed updates,
memory is the process's peak resident size less that of an idle one that has imported the same; the
compiler's work is part of the peak, `program` is what the update itself needs by XLA's account.
Early exit: the decoding loop stops when all rows have ended; `full`, `uniform` in 1 … R and
geometric lengths of mean R/2, R/4, R/8 (cut at R) on the very same executable.
Writes cost_curves.csv, early_exit.csv and cost_curves.svg, and prints tables in Markdown; points
that failed are named, left out, and make the exit code 1. Last line: RESULT {json}.
Left out: accelerators (gpu.py).
"""

import argparse
import csv
import json
import pathlib
import sys
from typing import Any

import work

BASE = {'episodes': 64, 'response': 48}
EPISODES, RESPONSES = (16, 32, 64, 128, 256), (16, 32, 48, 64, 96, 128)
MODELS = ('tiny', 'little', 'middle', 'small')
LENGTHS = ('full', 'uniform', 'geometric/2', 'geometric/4', 'geometric/8')
COLUMNS = ('size', 'parameters', 'episodes', 'response', 'sec_per_update', 'sec_min', 'peak_mb',
           'program_mb', 'gflop_per_update', 'compile_seconds')
EXITS = ('size', 'episodes', 'response', 'name', 'mean', 'longest', 'rollout_seconds',
         'rollout_share', 'sec_per_update', 'update_share')


def plan(sizes: list[str], quick: bool) -> list[dict[str, Any]]:
  """All points, each once; those with `lengths` compare distributions."""
  if quick:
    base = {'size': 'toy', 'episodes': 16, 'response': 8}
    return [base, base | {'episodes': 32}, base | {'response': 16, 'lengths': ['full',
                                                                               'geometric/4']}]
  points = [{'size': size} | BASE for size in MODELS]
  for size in sizes:
    points += [{'size': size} | BASE | {'episodes': count} for count in EPISODES]
    points += [{'size': size} | BASE | {'response': length} for length in RESPONSES]
  points = [point for i, point in enumerate(points) if point not in points[:i]]
  longest = {'episodes': BASE['episodes'], 'response': RESPONSES[-1], 'lengths': list(LENGTHS)}
  return points + [{'size': size} | longest for size in sizes]


def weight(point: dict[str, Any], updates: int) -> float:
  """About how long a point takes, in any unit: compiling, and FLOPs."""
  shape = work.SIZES[point['size']]
  weights = 12 * shape['layers'] * shape['width']**2 + shape['width'] * shape['vocabulary']
  flops = 2 * weights * point['episodes'] * (32 + point['response']) * 10
  return 15 + flops * (1 + updates) * len(point.get('lengths', [0])) / 1e11


def measured(points: list[dict[str, Any]], updates: int) -> tuple[list, list, list]:
  """(rows of the curves, rows of early exit, what failed)."""
  program = [sys.executable, str(work.HERE / 'cost_point.py')]
  idle = work.measured([*program, '{}'])['peak_rss_mb']
  left, whole, done = work.Left(len(points)), sum(weight(p, updates) for p in points), 0.0
  curves, exits, failed = [], [], []
  for point in points:
    try:
      row = work.measured([*program, json.dumps(point | {'updates': updates})])
    except work.Failed as error:
      failed.append(str(error))
      print(error, file=sys.stderr)
      row = {}
    if 'lengths' in row:
      full = row['lengths'][0]
      exits += [
        {key: row[key] for key in ('size', 'episodes', 'response')} | one | {
          'rollout_share': round(one['rollout_seconds'] / full['rollout_seconds'], 4),
          'update_share': round(one['sec_per_update'] / full['sec_per_update'], 4)}
        for one in row['lengths']]
    elif row:
      peak = round(row['peak_rss_mb'] - idle, 1)
      curves.append({name: row.get(name, peak) for name in COLUMNS})
    done += weight(point, updates)
    left.step(' '.join(str(value) for value in point.values() if not isinstance(value, list)),
              done / whole)
  return curves, exits, failed


# ----- files and tables


def markdown(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
  """A table of `columns`, name -> heading."""
  lines = ['| ' + ' | '.join(columns.values()) + ' |', '|' + '---|' * len(columns)]
  lines += ['| ' + ' | '.join(f'{row[name]:,}' if isinstance(row[name], int) else str(row[name])
                              for name in columns) + ' |' for row in rows]
  return '\n'.join(lines) + '\n'


def write_csv(path: pathlib.Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
  """Rows as a file with a heading."""
  with path.open('w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)


def along(rows: list[dict[str, Any]], axis: str, base: dict[str, int]) -> dict[str, list]:
  """Rows by model that differ from the base in `axis` alone; by parameters all sizes are one
  line.
  """
  fixed = {name: value for name, value in base.items() if name != axis}
  found: dict[str, list] = {}
  for row in sorted(rows, key=lambda row: row[axis]):
    if all(row[name] == value for name, value in fixed.items()):
      found.setdefault('' if axis == 'parameters' else row['size'], []).append(row)
  return {name: lines for name, lines in found.items() if len(lines) > 1}


def draw(path: pathlib.Path, curves: list, exits: list, base: dict[str, int]) -> None:
  """Seconds above memory, along each axis; early exit on the right."""
  import matplotlib  # here: a process that starts others should weigh little
  from matplotlib.figure import Figure
  matplotlib.rcParams.update({'svg.hashsalt': 'rlhf_jax', 'font.size': 9})
  figure = Figure(figsize=(14, 6), layout='constrained')
  panels = figure.subplots(2, 4)
  headings = {'episodes': 'episodes an update', 'response': 'response length, tokens',
              'parameters': 'parameters of one model'}
  for column, (axis, heading) in enumerate(headings.items()):
    for row, (name, label) in enumerate((('sec_per_update', 'seconds an update'),
                                         ('peak_mb', 'peak memory above idle, MB'))):
      panel = panels[row][column]
      for size, lines in along(curves, axis, base).items():
        panel.plot([line[axis] for line in lines], [line[name] for line in lines], 'o-', label=size)
      seconds = name == 'sec_per_update'
      panel.set(xlabel=heading, ylabel=label, xscale='log', yscale='log' if seconds else 'linear')
      if seconds:
        panel.yaxis.set_major_formatter('{x:g}')
        panel.yaxis.set_minor_formatter('')
      else:
        panel.set_ylim(bottom=0)
      if axis != 'parameters':
        shown = sorted({line[axis] for line in curves})
        panel.set_xticks(shown, map(str, shown))
        panel.set_xticks([], minor=True)
      panel.grid(alpha=0.3)
      if axis != 'parameters' and panel.lines:
        panel.legend(frameon=False)
  for row, (name, label) in enumerate((('rollout_share', 'rollout'), ('update_share', 'update'))):
    panel, sizes = panels[row][3], list(dict.fromkeys(line['size'] for line in exits))
    for number, size in enumerate(sizes):
      lines = [line for line in exits if line['size'] == size]
      panel.bar([i + 0.4 * number for i in range(len(lines))], [line[name] for line in lines],
                0.38, label=size)
      panel.set_xticks(range(len(lines)), [line['name'] for line in lines], rotation=30)
    panel.set(ylabel=f'seconds of the {label} / full length', ylim=(0, 1.3))
    if sizes:
      panel.legend(frameon=False, ncols=2)
  figure.savefig(path, metadata={'Date': None})


def main() -> None:
  """Measures, writes and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--sizes', default='tiny,small', help='models of the curves')
  parser.add_argument('--updates', type=int, default=3, help='timed ones a point')
  parser.add_argument('--out', type=pathlib.Path, help='folder; default: beside this file')
  parser.add_argument('--quick', action='store_true',
                      help='three points of a toy, into runs/bench: does it run?')
  options = parser.parse_args()
  sizes = options.sizes.split(',')
  if unknown := set(sizes) - set(work.SIZES):
    work.refuse(f'--sizes {options.sizes}: {", ".join(sorted(unknown))} is none of '
                f'{", ".join(work.SIZES)}')
  out = options.out or (work.ROOT / 'runs' / 'bench' if options.quick else work.HERE)
  out.mkdir(parents=True, exist_ok=True)
  points = plan(sizes, options.quick)
  curves, exits, failed = measured(points, 1 if options.quick else options.updates)
  write_csv(out / 'cost_curves.csv', curves, COLUMNS)
  write_csv(out / 'early_exit.csv', exits, EXITS)
  base = {name: points[0][name] for name in BASE}
  draw(out / 'cost_curves.svg', curves, exits, base)
  print(markdown(curves, {
    'size': 'model', 'parameters': 'parameters', 'episodes': 'episodes', 'response': 'response',
    'sec_per_update': 's an update', 'sec_min': 'least', 'peak_mb': 'peak MB above idle',
    'program_mb': 'program MB'}))
  print(markdown(exits, {
    'size': 'model', 'name': 'lengths', 'mean': 'mean', 'longest': 'decoding steps',
    'response': 'of', 'rollout_seconds': 'rollout s', 'rollout_share': 'of full',
    'sec_per_update': 'update s', 'update_share': 'of full'}))
  work.tell({'impl': 'rlhf_jax', 'task': 'cost_curves', 'points': len(points), 'failed': failed,
             'curves': curves, 'early_exit': exits})
  raise SystemExit(bool(failed))


if __name__ == '__main__':
  main()
