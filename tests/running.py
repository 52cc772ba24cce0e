"""Processes that tests start: each in a group of its own, none left at work by a test that fails.

In: a Popen with its own session. Out: it and all that it started, killed. tests/runtime/conftest.py
ends what is in `started` after every test.
"""

import os
import signal
import subprocess

# For processes that compile more than they compute: a quarter less of their time.
QUICK = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
started: list[subprocess.Popen] = []


def end(process: subprocess.Popen) -> None:
  """Kills a process with those it started, as a machine that is switched off does."""
  if process.poll() is None:
    os.killpg(process.pid, signal.SIGKILL)
  if not process.stdout.closed:
    process.communicate()
