"""What is measured, and the processes that measure it: sizes, RESULT lines, rounds, time left.

Enter: a command that measures something. Leave: the object behind the last `RESULT ` it printed.
Plain Python without jax or numpy, so that a process that only starts others weighs little: Linux
counts what a process weighed when it started another into the peak of that other one.
Left out: the measuring itself (measure.py).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # before anybody imports jax
HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIZES = {
  'toy': {'layers': 2, 'width': 32, 'heads': 2, 'vocabulary': 128, 'context': 128},  # tests
  'tiny': {'layers': 4, 'width': 128, 'heads': 4, 'vocabulary': 512, 'context': 128},
  'little': {'layers': 4, 'width': 192, 'heads': 4, 'vocabulary': 2048, 'context': 256},
  'middle': {'layers': 6, 'width': 256, 'heads': 4, 'vocabulary': 4096, 'context': 256},
  'small': {'layers': 6, 'width': 384, 'heads': 6, 'vocabulary': 8192, 'context': 256}}
MARK = 'RESULT '


class Failed(Exception):
  """A measuring process that ended without a result; says how."""


def tell(told: Mapping[str, Any]) -> None:
  """Prints the line that other programs read."""
  print(MARK + json.dumps(told, allow_nan=False), flush=True)


def refuse(message: str) -> None:
  """Ends the program with exit code 2, the message on the last line of stderr."""
  print(message, file=sys.stderr)
  raise SystemExit(2)


def wish(about: str) -> dict[str, Any]:
  """The JSON that a measuring process is started with: its only word; `about` is for --help."""
  parser = argparse.ArgumentParser(description=about.splitlines()[0])
  parser.add_argument('wish', type=json.loads, metavar='JSON',
                      help='the work; its keys stand at the head of this file')
  return parser.parse_args().wish


def last_result(output: str) -> dict[str, Any] | None:
  """The object of the last RESULT line; None without one."""
  lines = [line for line in output.splitlines() if line.startswith(MARK)]
  return json.loads(lines[-1][len(MARK):]) if lines else None


def measured(command: Sequence[str], changes: Mapping[str, str] | None = None,
             timeout: float | None = None) -> dict[str, Any]:
  """Runs a measuring command from the project's root and returns its result.

  Args:
    command: the program and its words.
    changes: environment variables to set.
    timeout: seconds after which it is ended.

  Raises:
    Failed: it took too long, failed, or printed no result.
  """
  try:
    done = subprocess.run(list(command), cwd=ROOT, env=os.environ | dict(changes or {}), text=True,
                          capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL)
  except subprocess.TimeoutExpired as error:
    raise Failed(f'{_shown(command)}: not done after {timeout:.0f} s') from error
  found = last_result(done.stdout)
  if done.returncode or found is None:
    end = ' | '.join(done.stderr.strip().splitlines()[-3:])
    raise Failed(f'{_shown(command)}: exit code {done.returncode}, {end or "no RESULT line"}')
  return found


def _shown(command: Sequence[str]) -> str:
  return ' '.join(pathlib.Path(word).name if os.sep in word else word for word in command)


def rounds(commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], count: int
           ) -> dict[str, list[dict[str, Any]]]:
  """Every command `count` times, in turns; every other round in reverse, since what runs second
  meets a warmer machine.

  Args:
    commands: name -> (command, environment variables to set).

  Returns:
    name -> its results, in the order of the rounds.
  """
  found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
  left = Left(count * len(commands))
  for number in range(count):
    for name in list(commands)[::-1 if number % 2 else 1]:
      found[name].append(measured(*commands[name]))
      left.step(f'round {number + 1}, {name}')
  return found


class Left:
  """A line to stderr after each of so many steps, with the time that is left."""

  def __init__(self, count: int):
    self._count, self._done, self._started = count, 0, time.monotonic()

  def step(self, what: str, share: float | None = None) -> None:
    """Tells a step; `share` is what of the whole work is done, where steps differ in length."""
    self._done += 1
    taken = time.monotonic() - self._started
    done = self._done / self._count if share is None else share
    left = taken * (1 - done) / max(done, 1e-9)
    print(f'{self._done}/{self._count}  {what}  {left // 60:.0f}:{left % 60:02.0f} left',
          file=sys.stderr, flush=True)


def begin() -> None:
  """Starts this program with the huge pages that the command line asks for (runtime/pages.py)."""
  sys.path.insert(0, str(ROOT))
  from rlhf_jax.runtime import pages
  pages.ask()


def median(values: Sequence[float]) -> float:
  """The middle value, or the mean of the two in the middle."""
  ordered = sorted(values)
  half = len(ordered) // 2
  return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
