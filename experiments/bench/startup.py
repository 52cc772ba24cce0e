"""How long one waits: for `list`, and for the first step of PPO, cold and with compiled programs.

  python experiments/bench/startup.py [--workdir DIR] [--file FILE] [--run RUN] [--starts N]

DIR is a workdir in which the runs that RUN needs are finished (the quickstart's, say). They are
copied to a scratch folder, without checkpoints, and RUN is started there from nothing, from outside
as a user starts it; the clock stops when the first row of its metrics.jsonl is there, and the run
is ended. A first start, which is not timed, builds the run's data if DIR has none. Cold: no
compilation cache. Cached: what the cold start left. Without --workdir only
`list` is timed. Words that are not known go to `run` (--seed 1). Last line: RESULT {json}.
Left out: the operating system's own caches, which are warm.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import work

sys.path.insert(0, str(work.ROOT))

from rlhf_jax import configs
from rlhf_jax.runtime import experiment as experiments

NOT_COPIED = ('.jax_cache', 'checkpoints', 'evaluations', 'pieces', 'profile', 'tensorboard',
              '.lock')
PROGRAM = [sys.executable, '-m', 'rlhf_jax']


def list_seconds(file: pathlib.Path, repeats: int) -> list[float]:
  """Seconds of `python -m rlhf_jax list FILE`, each time."""
  walls = []
  for _ in range(repeats):
    started = time.perf_counter()
    done = subprocess.run([*PROGRAM, 'list', str(file)], cwd=work.ROOT, capture_output=True,
                          text=True)
    walls.append(time.perf_counter() - started)
    if done.returncode:
      raise work.Failed(f'list {file}: {done.stderr.strip()[-300:]}')
  return walls


def needed(file: pathlib.Path, run: str, workdir: pathlib.Path) -> list[str]:
  """The runs that `run` rests on; refuses where one of them is not finished in the workdir."""
  try:
    experiment = experiments.load(file)
    if run not in experiment.runs:
      work.refuse(f'--run {run}: {file} has {", ".join(experiment.runs)}')
    names = [name for name in experiments.order(experiment, [run]) if name != run]
  except configs.BadInput as error:
    work.refuse(str(error))
  missing = [name for name in names if not (workdir / name / 'finished.json').exists()]
  if missing:
    work.refuse(f'--workdir {workdir}: {", ".join(missing)} is not finished there; make it with '
                f'`python -m rlhf_jax run {file} {" ".join(names)} --workdir {workdir}`')
  return names


def first_step(command: list[str], folder: pathlib.Path, run: str, limit: float) -> dict[str, Any]:
  """Starts a run and ends it when its first step is told; raises Failed if it never is."""
  rows, log = folder / run / 'metrics.jsonl', folder / 'log.txt'
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
  with log.open('w', encoding='utf-8') as output:
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=work.ROOT, env=environment, stdout=output,
                               stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
      while not (rows.exists() and b'\n' in rows.read_bytes()):
        if process.poll() is not None or time.perf_counter() - started > limit:
          raise work.Failed(f'{run}: no first step (exit code {process.returncode}): '
                            f'{log.read_text("utf-8")[-500:]}')
        time.sleep(0.01)
      seconds = time.perf_counter() - started
    finally:
      if process.poll() is None:
        process.send_signal(signal.SIGTERM)  # it saves and leaves
        try:
          process.wait(60)
        except subprocess.TimeoutExpired:
          process.kill()
          process.wait()
  compiled = re.findall(rf'{re.escape(run)}: compiled in ([\d.]+) s', log.read_text('utf-8'))
  return {'seconds': round(seconds, 3), 'compiled': float(compiled[-1]) if compiled else None}


def starts(options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
  """Cold and cached starts in a scratch folder."""
  found: dict[str, list] = {'cold': [], 'cached': []}
  names = needed(options.file, options.run, options.workdir)
  with tempfile.TemporaryDirectory(prefix='startup-') as scratch:
    folder = pathlib.Path(scratch)
    for name in ('data', *names):
      if (options.workdir / name).exists():
        shutil.copytree(options.workdir / name, folder / name,
                        ignore=shutil.ignore_patterns(*NOT_COPIED))
    command = [*PROGRAM, 'run', str(options.file), options.run, '--workdir', scratch, *words]
    left = work.Left(1 + 2 * options.starts)
    first_step(command, folder, options.run, options.limit)  # builds the run's data if need be
    left.step('a start that is not timed')
    for number in range(options.starts):
      for kind in found:
        shutil.rmtree(folder / options.run, ignore_errors=True)
        if kind == 'cold':
          shutil.rmtree(folder / '.jax_cache', ignore_errors=True)
        found[kind].append(first_step(command, folder, options.run, options.limit))
        left.step(f'{kind} start {number + 1}')
  told: dict[str, Any] = {'run': options.run, 'starts': options.starts}
  for kind, rows in found.items():
    told[f'first_step_{kind}_seconds'] = work.median([row['seconds'] for row in rows])
    told[f'{kind}_seconds'] = [row['seconds'] for row in rows]
    told[f'{kind}_compile_seconds'] = [row['compiled'] for row in rows]
  return told


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                   allow_abbrev=False)
  parser.add_argument('--file', type=pathlib.Path,
                      default=work.ROOT / 'experiments' / 'quickstart.py')
  parser.add_argument('--run', default='ppo_ptx', help='the run whose first step is timed')
  parser.add_argument('--workdir', type=pathlib.Path, help='where its parents are finished')
  parser.add_argument('--starts', type=int, default=2, help='cold ones, and as many cached')
  parser.add_argument('--repeats', type=int, default=5, help='times that list is asked')
  parser.add_argument('--limit', type=float, default=600, help='seconds to wait for a first step')
  options, words = parser.parse_known_args()
  options.file = options.file.resolve() if options.file.exists() else options.file
  try:
    walls = list_seconds(options.file, options.repeats)
    told = {'impl': 'rlhf_jax', 'task': 'startup', 'list_seconds': round(work.median(walls), 3),
            'list_seconds_min': round(min(walls), 3)}
    if options.workdir:
      told |= starts(options, words)
  except work.Failed as error:
    print(error, file=sys.stderr)
    raise SystemExit(1) from error
  for name, value in told.items():
    if name.endswith('_seconds') and isinstance(value, float):
      print(f'{name:28s} {value:8.2f}')
  work.tell(told | {'python': sys.version.split()[0],
                    'loadavg': [round(x, 2) for x in os.getloadavg()]})


if __name__ == '__main__':
  main()
