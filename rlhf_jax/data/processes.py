"""Several processes of one program: which this is, and what process 0 tells the others.

In: what process 0 found, built or decided. Out: the same everywhere. Every process runs the same
program over one mesh; process 0 alone asks judges, builds data and writes files, but for
checkpoints. With one process nothing here does anything.
Left out: how processes start and stop together (runtime/processes.py).
"""

import itertools
import json
import sys
import time
from typing import Any

from rlhf_jax.configs import OutOfReach

_PATIENCE = 86400  # seconds that others wait: process 0 may ask a slow judge or build much data
_numbers = itertools.count()


def count() -> int:
  """How many processes there are; 1 where jax.distributed is not in use."""
  jax = sys.modules.get('jax')
  return jax.process_count() if jax and jax.distributed.is_initialized() else 1


def index() -> int:
  """Which of them this is."""
  jax = sys.modules.get('jax')
  return jax.process_index() if jax and jax.distributed.is_initialized() else 0


def first() -> bool:
  """Whether this is process 0, which alone writes."""
  return index() == 0


def barrier() -> None:
  """Returns when every process has come here: all call it equally often, from their main thread.

  The host waits, not a device: a collective that waits too long is an error of its own.
  """
  if count() > 1:
    from orbax.checkpoint import multihost
    multihost.get_barrier_sync_fn()(key=f'rlhf_jax {next(_numbers)}', timeout_ms=_PATIENCE * 1000)


def share(value: Any) -> Any:
  """What process 0 has for `value`, on every process; it must be JSON-able where there are several.

  All processes call it, from their main thread.
  """
  if count() == 1:
    return value
  import numpy as np
  from jax.experimental import multihost_utils
  barrier()
  data = np.frombuffer(json.dumps(value).encode() if first() else b'', np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  data = multihost_utils.broadcast_one_to_all(data if first() else np.zeros(size, np.uint8))
  return json.loads(data.tobytes())


def wait_for(path: Any, seconds: float = _PATIENCE) -> None:
  """Returns when another process has put `path` there. Raises: OutOfReach after `seconds`."""
  until = time.monotonic() + seconds
  while not path.exists():
    if time.monotonic() > until:
      raise OutOfReach(f'{path}: process 0 has not built it within {seconds:.0f} s')
    time.sleep(0.5)
