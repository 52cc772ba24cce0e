"""Files of a workdir that are whole or absent, and are never appended to.

In: paths. Out: files. Left out: arrays (orbax writes those); object stores.
"""

import os
import shutil
from pathlib import Path


def write(path: Path, content: str) -> None:
  """Writes a text file so that a reader, or a kill, meets the old one or the new one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with open(temporary, 'w', encoding='utf-8') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def remove(path: Path) -> None:
  """Removes a folder with all in it; nothing where there is none."""
  shutil.rmtree(path, ignore_errors=True)
