"""Compiled programs, kept beside the runs, so that a restart compiles nothing.

Enter: a workdir. Leave: jax's persistent cache in DIR/.jax_cache, without half-written entries.
Left out: sharing between workdirs, unless JAX_COMPILATION_CACHE_DIR asks for it.
"""

import os
import zlib
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


def keep(folder: Path) -> None:
  """Keeps every executable in DIR/.jax_cache, or where JAX_COMPILATION_CACHE_DIR says: a restart
  compiles nothing.
  """
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    drop_torn(folder / '.jax_cache')
    jax.config.update('jax_compilation_cache_dir', str(folder.resolve() / '.jax_cache'))
    compilation_cache.reset_cache()  # else the folder of this process's first compilation stays
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def drop_torn(folder: Path) -> None:
  """Removes what a kill or a full disk left half-written: jax would compile it at every start anew,
  since it never writes over an entry.
  """
  for path in folder.glob('*-cache') if folder.exists() else ():
    data = path.read_bytes()
    stream = zlib.decompressobj()
    try:
      stream.decompress(data)
      torn = not stream.eof
    except zlib.error:
      torn = False  # another compression: zstandard is installed
    if torn:
      path.unlink()
