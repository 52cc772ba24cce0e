"""Files of a workdir, on local disks and in Google Cloud Storage, by one code path.

In: paths, local ones or gs://BUCKET/DIR. Out: files that are whole or absent, and files that grow.
An object store keeps whole objects: a put is atomic, nothing can be appended to, renamed or locked,
and folders are but the start of names. So what grows there, and what only local files can hold, is
written on this machine and put up whole.
Left out: arrays (orbax and tensorstore write those); other stores (s3://).
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from rlhf_jax.configs import BadInput

_GS = 'gs://'
_DAY = 24 * 3600.0  # seconds
_growing: dict[str, pathlib.Path] = {}  # folder in a store -> where its files grow on this machine


# ---------------------------------------------------------------- paths


def path(text: Any) -> Any:
  """The etils path of a folder or file, wherever it lies; it is used as a pathlib.Path is. A `~`
  that no shell has read is the home folder here too; what is a path already stays as it is.
  """
  if isinstance(text, pathlib.PurePath):
    return text
  from etils import epath  # half a second, which `list` does not pay
  if text.startswith(_GS):
    import fsspec
    # Other processes write too: what a listing said before counts for nothing.
    fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  return epath.Path(os.path.expanduser(text))  # a gs:// has no ~ in front


def is_local(path: Any) -> bool:
  """Whether a path is on a disk of this machine, or on one that looks like it."""
  return '://' not in str(path)


def absolute(path: Any) -> Any:
  """A path that does not depend on where the program was started."""
  return path.resolve() if is_local(path) else path


def check(path: Any, what: str) -> None:
  """Raises BadInput where a path in a store cannot be reached, or a local one is below a file;
  `what` is the option it came from.
  """
  if is_local(path):
    above = next((folder for folder in path.parents if folder.exists()), None)
    if above is not None and not above.is_dir():
      raise BadInput(f'{what} {path}: {above} is a file, expected a folder')
    return
  if not str(path).startswith(_GS) or len(path.parts) < 3:
    raise BadInput(f'{what} {path}: expected a folder, or gs://BUCKET/FOLDER')
  if importlib.util.find_spec('gcsfs') is None:
    raise BadInput(f'{what} {path}: gs:// needs the package gcsfs; pip install -e .[gcs]')
  bucket = _GS + path.parts[2]
  try:
    found = _files().exists(bucket)
  except Exception as error:  # of credentials, of the network: each has a class of its own
    raise BadInput(f'{what} {path}: {bucket} cannot be reached ({type(error).__name__}: {error}); '
                   'are there credentials? (`gcloud auth application-default login`)') from error
  if not found:
    raise BadInput(f'{what} {path}: no bucket {bucket}, or none that these credentials may see')


def check_file(path: Any, what: str) -> None:
  """`check`, of a file that will be written. Raises BadInput where a folder has its name, too."""
  check(path, what)
  if path.is_dir():
    raise BadInput(f'{what} {path}: is a folder, expected a file')


@functools.cache
def _files() -> Any:
  """What moves whole files to and from Google Cloud Storage."""
  import fsspec
  return fsspec.filesystem('gcs')


# ---------------------------------------------------------------- whole files


def write(path: Any, content: str | bytes) -> None:
  """Writes a file so that a reader, or a kill, meets the old one or the new one."""
  if is_local(path):
    with writing(path, 'w' if isinstance(content, str) else 'wb') as file:
      file.write(content)
  else:
    _files().pipe_file(str(path), content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def writing(path: Any, mode: str = 'w') -> Iterator[Any]:
  """A file open for writing ('w' or 'wb'), which is at `path` once the block has ended well."""
  if is_local(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  else:
    handle, name = tempfile.mkstemp(prefix='rlhf_jax-')
    os.close(handle)
    temporary = pathlib.Path(name)
  try:
    with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as file:
      yield file
      file.flush()
      if is_local(path):
        os.fsync(file.fileno())
    if is_local(path):
      os.replace(temporary, path)
    else:
      put(temporary, path)
      temporary.unlink()
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def put(local: pathlib.Path, path: Any) -> None:
  """Puts a file of this machine up in a store, whole; one that is there is replaced."""
  _files().put_file(str(local), str(path))


def remove(path: Any) -> None:
  """Removes a folder with all in it; nothing where there is none."""
  if is_local(path):
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.rmtree(missing_ok=True)


def make(folder: Any) -> None:
  """Makes a local folder; in a store there are none to make."""
  if is_local(folder):
    folder.mkdir(parents=True, exist_ok=True)


def files(folder: Any) -> dict[str, int]:
  """Every file below a folder, by its name inside it, and its bytes; in order of names."""
  if is_local(folder):
    inside = (file for file in pathlib.Path(folder).rglob('*') if file.is_file())
    found = {file.relative_to(folder).as_posix(): file.stat().st_size for file in inside}
  else:
    top = str(folder).removeprefix(_GS).rstrip('/') + '/'
    found = {name.removeprefix(top): told['size']
             for name, told in _files().find(top, detail=True).items() if not name.endswith('/')}
  return dict(sorted(found.items()))


def size(path: Any) -> int:
  """Bytes of a file. Raises: FileNotFoundError."""
  return os.stat(path).st_size if is_local(path) else _files().size(str(path))


# ---------------------------------------------------------------- files that must be local


def cache(name: str) -> pathlib.Path:
  """A folder of this machine for what is fetched from stores; it may be deleted at any time."""
  home = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
  return home / 'rlhf_jax' / name


def fetched(folder: Any, name: str, last: str) -> pathlib.Path:
  """A folder on this machine with all files of `folder`: itself where it is local.

  Args:
    name: says what is in the folder, a hash included: what has the same name is fetched once.
    last: the file that was put up last; without it the folder is not whole.

  Raises: FileNotFoundError where `last` is not there.
  """
  if is_local(folder):
    return folder
  there = cache(name)
  if (there / last).is_file():
    return there
  own = half(there)
  try:
    for inside in files(folder):
      (own / inside).parent.mkdir(parents=True, exist_ok=True)
      _files().get_file(f'{folder}/{inside}', str(own / inside))
    if not (own / last).is_file():
      raise FileNotFoundError(f'{folder}/{last}')
    keep(own, there)
  finally:
    shutil.rmtree(own, ignore_errors=True)
  return there


def half(there: pathlib.Path) -> pathlib.Path:
  """An empty folder beside `there` that nobody else writes to, for what gets that name when it is
  whole (`keep`). Those that killed processes left, untouched for a day, are removed.
  """
  for old in there.parent.glob(f'.{there.name}.*half'):
    with contextlib.suppress(OSError):  # another process may remove it, too
      touched = max(file.stat().st_mtime for file in (old, *old.rglob('*')))
      if time.time() - touched > _DAY:
        shutil.rmtree(old)
  made = there.with_name(f'.{there.name}.{uuid.uuid4().hex[:12]}.half')
  made.mkdir(parents=True)
  return made


def keep(half: pathlib.Path, there: pathlib.Path) -> None:
  """Gives a folder its name; another process of this machine may have done so before."""
  try:
    half.rename(there)
  except OSError:
    if not there.is_dir():
      raise
    shutil.rmtree(half)


def put_folder(local: pathlib.Path, folder: Any, last: str) -> None:
  """Puts all files of a local folder up, the one named `last` after the others."""
  for name in sorted(files(local), key=lambda name: (name == last, name)):
    put(local / name, folder / name)


# ---------------------------------------------------------------- files that grow


class Growing:
  """Files of a run's folder that are appended to, at `here`.

  On a local disk `here` is the folder itself. In a store it is a folder of this machine: `sync`
  puts up whole what has grown since, once a checkpoint interval, so a kill loses what came after
  the checkpoint, and that is made again.
  """

  def __init__(self, folder: Any, names: Iterable[str] = ()):
    """Args: names: files that are fetched where they are there, to go on with them."""
    self._folder = folder
    self._put: dict[str, int] = {}  # file -> bytes that are up
    make(folder)
    if is_local(folder):
      self.here = pathlib.Path(folder)
      return
    self.here = pathlib.Path(tempfile.mkdtemp(prefix='rlhf_jax-'))
    _growing[str(folder)] = self.here
    for name in names:
      with contextlib.suppress(FileNotFoundError):
        (self.here / name).write_bytes((folder / name).read_bytes())
        self._put[name] = (self.here / name).stat().st_size

  def sync(self) -> None:
    """Puts up what has changed; whoever writes has flushed."""
    for name, bytes_now in () if is_local(self._folder) else files(self.here).items():
      if self._put.get(name) != bytes_now:
        put(self.here / name, self._folder / name)
        self._put[name] = bytes_now

  def close(self) -> None:
    """`sync`, and the end of what is kept on this machine."""
    if is_local(self._folder):
      return
    try:
      self.sync()
    finally:
      _growing.pop(str(self._folder), None)
      shutil.rmtree(self.here, ignore_errors=True)


def newest(path: Any) -> Any:
  """Where a file is read that this process may be appending to: its rows are not up yet."""
  here = _growing.get(str(path.parent))
  return path if here is None else here / path.name
