"""What several processes decide after a step, without the processes."""

import signal

import pytest

from rlhf_jax.configs import Mesh
from rlhf_jax.runtime import meshes, processes
from rlhf_jax.runtime.processes import SAVE, Stopping, Wishes


@pytest.fixture
def wishes(monkeypatch):
  """As of two processes that want the same."""
  monkeypatch.setattr(processes.processes, 'count', lambda: 2)
  return Wishes(meshes.make_mesh(Mesh()))


def test_one_interval_is_one_save(wishes):
  """The answer comes a step late, and so a second wish is on its way when the first is granted."""
  saved, due = [], 3
  for step in range(20):
    if wishes.exchange(SAVE * (step >= due)):
      saved.append(step)
      due = step + 5
  assert saved == [4, 10, 16]


def test_a_signal_behind_a_save_counts(wishes):
  said = [wishes.exchange(wish) for wish in (SAVE, signal.SIGTERM, 0, 0)]
  assert said == [0, SAVE, signal.SIGTERM, 0]


def test_only_a_second_sigint_ends_a_process_at_once():
  """Under launch/local_processes.sh Ctrl-C is a SIGINT of the terminal and a SIGTERM."""
  stopping = Stopping()
  stopping.deferred = True
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
    stopping._handle(number, None)
    assert stopping.signal == number
  with pytest.raises(SystemExit) as ended:
    stopping._handle(signal.SIGINT, None)
  assert ended.value.code == 130


def test_a_signal_whose_exit_is_lost_is_obeyed_at_the_first_step():
  """Python ignores what is raised in a callback of its garbage collector."""
  stopping = Stopping()
  with pytest.raises(SystemExit):
    stopping._handle(signal.SIGTERM, None)
  assert stopping.signal == signal.SIGTERM
