"""The program of a training run, and compiled programs kept beside the runs.

Enter: a stage; a workdir. Leave: its update as the loop runs it and preflight measures it; jax's
persistent cache in DIR/.jax_cache without half-written entries: a restart compiles nothing; and
inside one process the executable of a program that was compiled before.
Left out: sharing between workdirs, unless JAX_COMPILATION_CACHE_DIR asks for it.
"""

import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from rlhf_jax.data import processes, store

# What callbacks leave in a program's text: CPUs and GPUs are given a call, TPUs a transfer.
CALLS_HOST = ('_callback', '_xla_host_transfer')
KEPT = 2  # a sweep goes to and fro between the runs with ptx and those without
_held: dict[bytes, Any] = {}


def update(stage: Any, state_shardings: Any, metrics: Any = None) -> Any:
  """The jitted step of a stage: (state, frozen, batch, key, step) -> (state, metrics).

  The state is donated and lies where it lay: unpinned, gradients and state would be whole on every
  device. `metrics` says where those lie; None: where they come out.
  """
  def one(state, frozen, batch, key, step):
    return stage.update(state, frozen, batch, jax.random.fold_in(key, step))

  return jax.jit(one, donate_argnums=0, out_shardings=(state_shardings, metrics))


def keep(folder: Path) -> None:
  """Keeps every executable in DIR/.jax_cache, or where JAX_COMPILATION_CACHE_DIR says: a restart
  compiles nothing.
  """
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    if processes.first() and store.is_local(folder):
      drop_torn(folder / '.jax_cache')
    processes.barrier()
    jax.config.update('jax_compilation_cache_dir', str(store.absolute(folder) / '.jax_cache'))
    if not store.is_local(folder):  # XLA itself opens local files only
      jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
    compilation_cache.reset_cache()  # else the folder of this process's first compilation stays
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def drop_torn(folder: Path) -> None:
  """Removes what a kill or a full disk left half-written: jax would compile it at every start anew,
  since it never writes over an entry.
  """
  for path in folder.glob('*-cache') if folder.exists() else ():
    stream = zlib.decompressobj()
    try:
      stream.decompress(path.read_bytes())
      torn = not stream.eof
    except FileNotFoundError:  # another job on this workdir was faster
      continue
    except zlib.error:
      torn = False  # another compression: zstandard is installed
    if torn:
      path.unlink(missing_ok=True)


def compiled(lowered: Any) -> Any:
  """A lowered program compiled, or what the very same one was compiled to in this process.

  A sweep's points lower to the same text, since coefficients and learning rates are data. As many
  as KEPT are held, those used last. A program that calls the host (a reward of one's own may) is
  compiled each time: its text does not tell one Python function from another.
  """
  text = lowered.as_text()
  if any(word in text for word in CALLS_HOST):
    return lowered.compile()
  found = hashlib.sha256(text.encode())
  for part in (lowered.in_tree, lowered.out_tree, jax.devices()):
    found.update(str(part).encode())
  key = found.digest()
  _held[key] = _held.pop(key, None) or lowered.compile()
  while len(_held) > KEPT:
    _held.pop(next(iter(_held)))
  return _held[key]
