"""Several processes that run as one: how they find each other, stop together and decide together.

Enter: what launch/local_processes.sh, Slurm or a TPU pod puts into the environment; signals.
Leave: jax.distributed; the same decision on every process at the same step.
Every process calls the same compiled programs in the same order. What depends on a clock or on a
signal would part them, so each says what it wants and all do the most that any of them wants.
Left out: going on with fewer processes; a job is started again on what machines there are.
"""

import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.configs import BadInput
from rlhf_jax.data import processes

# Without a sign of life, after which a process counts as dead: within the minute. A machine that
# stands still for some 25 seconds, as virtual ones do while they are copied or moved, lives on.
HEARTBEAT_SECONDS = 50
SAVE = 1  # what a process may want besides a signal, which is above it


def start() -> None:
  """Joins this process to the others; before anything else touches a device.

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are; without them jax
  asks Slurm, a TPU pod or another cluster that it knows.

  Raises: BadInput where nothing says who the others are.
  """
  number = lambda name: int(os.environ[name]) if name in os.environ else None
  told = all(name in os.environ for name in (
    'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'))
  jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM for itself
  try:
    jax.distributed.initialize(
      num_processes=number('JAX_NUM_PROCESSES'), process_id=number('JAX_PROCESS_ID'),
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      # else Slurm would be asked which device is this task's, though a host may be one process
      cluster_detection_method='deactivate' if told else None)
  except ValueError as error:
    raise BadInput(
      f'--multihost: who the other processes are is not known ({error}); start all of them with '
      'launch/local_processes.sh, srun or on every host of a TPU pod, or set '
      'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID') from error


def fail(code: int, error: BaseException | None = None) -> NoReturn:
  """Ends one of several processes at once, so that the others hear of it and end too.

  An ordinary exit would first wait for them, who wait for this one.
  """
  if error is not None:
    traceback.print_exception(error)
    print(f'process {processes.index()} of {processes.count()} ends; above is why. If that is a '
          'lost connection, another process ended before: see what it said', file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def check_mesh(mesh: jax.sharding.Mesh) -> None:
  """Raises BadInput where a process has no device in the mesh of a run."""
  idle = set(range(processes.count())) - {device.process_index for device in mesh.devices.flat}
  if idle:
    shape = ' '.join(f'{name}={size}' for name, size in mesh.shape.items())
    raise BadInput(
      f'mesh {shape} leaves {len(idle)} of {processes.count()} processes without a device: take '
      f'all {jax.device_count()} devices, such as --mesh {jax.device_count()},1,1')


class Stopping:
  """SIGTERM and SIGINT: while a step is under way the loop is asked to save; at other times, and at
  a second SIGINT, the process ends at once.
  """

  def __init__(self) -> None:
    self.signal = 0
    self.deferred = False
    self._interrupted = False  # by SIGINT before

  def install(self) -> None:
    """From now on this object hears of both signals."""
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._handle)

  def _handle(self, number: int, frame: Any) -> None:
    again = self._interrupted and number == signal.SIGINT  # a launcher may send SIGTERM besides
    self._interrupted |= number == signal.SIGINT
    # Kept too where it is raised: what is raised in a callback of the garbage collector is lost.
    self.signal = number
    if not self.deferred or again:
      if processes.count() > 1:
        fail(128 + number)
      raise SystemExit(128 + number)


class Wishes:
  """What the processes want after a step: 0, SAVE or a signal; all get the largest.

  With several processes the answer is that of the step before, which is known without waiting.
  """

  def __init__(self, mesh: jax.sharding.Mesh):
    self._several = processes.count() > 1
    self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    self._before: Any = 0
    self._saved = False  # at the step before, since the answer was SAVE

  def exchange(self, wish: int) -> int:
    """Says what this process wants; returns what all do.

    A wish to save that was said before the save for the one before it is fulfilled: it counts as 0.
    """
    if not self._several:
      return wish
    said, self._before = self._before, self._asked(wish)
    said = 0 if self._saved and int(said) == SAVE else int(said)
    self._saved = said == SAVE
    return said

  def settle(self, wish: int) -> int:
    """As `exchange`, but waits for the others: the answer is that of now."""
    return int(self._asked(wish)) if self._several else wish

  def _asked(self, wish: int) -> Any:
    mine = np.full(1, wish, np.int32)  # each device holds the wish of its process
    return self._largest(jax.make_array_from_callback(
      (self._each.mesh.size,), self._each, lambda index: mine))
