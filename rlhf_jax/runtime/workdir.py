"""The small files of a run's folder: config.json, finished.json, seconds.json, and how a full disk
is told.

Enter: configs and dicts. Leave: files that are whole or absent, and configs read back from them.
Left out: checkpoints (checkpoint.py) and metrics (metrics.py).
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import platform
import shutil
import subprocess
import tempfile
import threading
import time
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.data import processes, store

KINDS = {kind.__name__: kind for kind in typing.get_args(configs.Run)}
# A folder with nothing else holds no work that another configuration could spoil.
NO_WORK = ('config.json', 'inputs.json', 'seconds.json', 'metrics.jsonl', 'samples.jsonl',
           'tensorboard', '.lock', 'failed.json')
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
_TICK = {True: 2.0, False: 30.0}  # seconds between two writes; a put into a store costs money
_LOCK_SECONDS = 2.0  # between two looks whether another process is done
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without locks say
logger = logging.getLogger('rlhf_jax')


# ---------------------------------------------------------------- files that are whole or absent


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON, whole or not at all, without NaN or infinity: they become null."""
  store.write(path, json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + '\n')


def read_json(path: Path) -> dict[str, Any] | None:
  """The object in a file, None if there is no file. Raises BadInput if it is no JSON object."""
  try:
    value = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise BadInput(f'{path}: is not JSON ({error}); put back a copy, or delete {path.parent} to '
                   'make that run again') from error
  if not isinstance(value, dict):
    raise BadInput(f'{path}: holds {type(value).__name__}, expected an object')
  return value


def finite(value: Any) -> Any:
  """A JSON-able copy: numpy scalars and arrays as numbers and lists, NaN and infinity as None."""
  if isinstance(value, Mapping):
    return {str(key): finite(item) for key, item in value.items()}
  if hasattr(value, 'tolist'):
    return finite(value.tolist())
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  if isinstance(value, float) and value - value != 0:
    return None
  return value


# ---------------------------------------------------------------- config.json


def describe(config: configs.Run, parents: Mapping[str, tuple[str, str]],
             folder: Path | None = None) -> dict[str, Any]:
  """What config.json says of a run.

  Args:
    parents: role -> (run, its hash), so that a run is bound to the configuration of all it rests
      on.
    folder: of the run. If it holds this very configuration its hash is taken over, since what
      rests on it is bound to that: the hash is of the text, in which 1 is not 1.0.

  Returns:
    {'kind', 'config', 'parents', 'hash', 'versions', 'commit'}; the last two do not count for the
    hash, nor do the mesh and a device's kernels: a run may go on upon other devices.

  Raises: BadInput for a config.json in `folder` that is no JSON object.
  """
  described = {'kind': type(config).__name__, 'config': json.loads(json.dumps(
    dataclasses.asdict(config))), 'parents': {role: list(of) for role, of in parents.items()}}
  counted = json.dumps(_counted(described), sort_keys=True)
  there = None if folder is None else read_json(folder / 'config.json')
  return described | {
    'hash': there['hash'] if there is not None and 'hash' in there and _same(there, described)
            else hashlib.sha256(counted.encode()).hexdigest()[:16],
    'versions': _versions(), 'commit': _commit()}


def check_same(folder: Path, described: Mapping[str, Any], option: str = '',
               grid: Collection[str] = ()) -> bool:
  """Whether the folder already holds this very configuration; False if it holds no work.

  Args:
    option: the run whose fields options set; '': the folder's name. That of a sweep's point is the
      base run.
    grid: fields that the sweep's file sets instead.

  Raises:
    BadInput: it holds another one; the message names what differs and the fix.
  """
  there = read_json(folder / 'config.json')
  if there is None:
    return False
  if there.get('hash') == described['hash'] or _same(there, described):
    return True
  if not holds_work(folder):
    return False
  old, new = _flat(there.get('config', {})), _flat(described['config'])
  differing = [key for key in old | new if key.split('.')[0] != 'mesh' and key != 'model.fused'
               and old.get(key) != new.get(key)]
  if there.get('kind') != described['kind']:
    differs, options = f"it is a {there.get('kind')}, not a {described['kind']}", ''
  elif differing:
    differs = ', '.join(
      f'{key} is {json.dumps(old.get(key))} there and {json.dumps(new.get(key))} now'
      for key in differing[:8])
    options = _back(differing, old, option or folder.name, grid)
  else:
    changed = [run for role, (run, _) in described['parents'].items()
               if there.get('parents', {}).get(role) != described['parents'][role]]
    differs = f"{', '.join(changed) or 'a run it rests on'} had another configuration then"
    options = f' or delete {folder} to make it again'
  raise BadInput(f'{folder} was made with another configuration: {differs}; '
                 f'take another --workdir{options}')


def holds_work(folder: Path) -> bool:
  """Whether anything lies in a run's folder that another configuration, or other data, spoils."""
  return folder.exists() and any(path.name not in NO_WORK for path in folder.iterdir())


def _back(differing: Sequence[str], old: Mapping[str, Any], name: str,
          grid: Collection[str]) -> str:
  """What of the old configuration to give again: options, and fields of a sweep's grid."""
  if len(differing) > 8 or any(key not in old for key in differing):
    return ''
  fixed = [key for key in differing if any(f'{key}.'.startswith(f'{field}.') for field in grid)]
  told = ' '.join(f'--{name}.{key} {_word(old[key])}' for key in differing if key not in fixed)
  told = f' or add {told}' if told else ''
  if fixed:
    told += f' or put back {", ".join(f"{key} {_word(old[key])}" for key in fixed)} in sweep.grid'
  return told


def config_of(folder: Path) -> configs.Run:
  """The config in a run's folder, as it was. Raises BadInput if there is none or it is not ours."""
  there = read_json(folder / 'config.json')
  if there is None:
    raise BadInput(f'{folder}: holds no run (no config.json)')
  try:
    return from_json(KINDS[there['kind']], there['config'])
  except (KeyError, TypeError, ValueError) as error:
    raise BadInput(f'{folder}/config.json: is not a config of this version '
                   f'({type(error).__name__}: {error})') from error


def from_json(kind: Any, value: Any) -> Any:
  """A value of an annotated type from its JSON form: dataclasses from dicts, tuples from lists."""
  inner = typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    hints = typing.get_type_hints(kind)
    return kind(**{name: from_json(hints[name], item) for name, item in value.items()})
  if isinstance(value, dict):
    return {key: from_json(inner[1], item) for key, item in value.items()}
  if isinstance(value, list):
    of = next((a for a in inner if typing.get_origin(a) is tuple), kind)
    item = typing.get_args(of)
    return tuple(from_json(item[0] if item[-1] is ... else item[i], v) for i, v in enumerate(value))
  return value


def _same(there: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
  """Whether what counts is equal, 1 and 1.0 too: which of them a field holds its type decides."""
  return {'kind', 'config', 'parents'} <= there.keys() and _counted(there) == _counted(described)


def _counted(described: Mapping[str, Any]) -> dict[str, Any]:
  config = {key: value if key != 'model' else {k: v for k, v in value.items() if k != 'fused'}
            for key, value in described['config'].items() if key != 'mesh'}
  return {'kind': described['kind'], 'config': config, 'parents': described['parents']}


def _flat(value: Any, prefix: str = '') -> dict[str, Any]:
  """Nested dicts and lists of dicts as {'a.0.b': leaf}."""
  if isinstance(value, list) and any(isinstance(item, dict) for item in value):
    value = dict(enumerate(value))
  if not isinstance(value, dict):
    return {prefix: value}
  joined = (_flat(item, f'{prefix}.{key}' if prefix else str(key)) for key, item in value.items())
  return {key: leaf for part in joined for key, leaf in part.items()}


def _word(value: Any) -> str:
  text = ','.join(map(str, value)) if isinstance(value, list) else (
    json.dumps(value) if isinstance(value, bool) else str(value))
  return text if text and ' ' not in text else f"'{text}'"


def _versions() -> dict[str, str]:
  found = {'python': platform.python_version(), 'rlhf_jax': '0.1.0'}
  for package in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def _commit() -> str | None:
  """Git commit of the program, '+' behind it if files differ from it; None outside a checkout."""
  def git(*words: str) -> str:
    return subprocess.run(['git', *words], cwd=Path(__file__).parent, check=True, timeout=5,
                          capture_output=True, text=True).stdout.strip()
  try:
    return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
  except (OSError, subprocess.SubprocessError):
    return None


# ---------------------------------------------------------------- one process, time over restarts


class Busy(BadInput):
  """Another process is at work in a folder."""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
  """Holds DIR/.lock, which ends with process 0 however it ends. Raises Busy if another has it.

  An object store has no locks: there nothing keeps a second command from working in DIR.
  """
  if not (processes.first() and store.is_local(folder)):
    yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / '.lock', 'a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise Busy(f'another process is at work in {folder}; wait for it, or take another '
                 '--workdir') from None
    except OSError as error:
      if error.errno not in NO_LOCKS:
        raise
      logger.warning('%s: its file system has no locks (%s): nothing keeps a second process from '
                     'working in it', folder, error.strerror)
    yield


@contextlib.contextmanager
def waiting(folder: Path) -> Iterator[None]:
  """Holds the lock of a folder, after whoever has it now."""
  told = False
  while True:
    with contextlib.ExitStack() as held:
      try:
        held.enter_context(lock(folder))
      except Busy:
        told = wait(folder, told)
        continue
      yield
      return


def wait(folder: Path, told: bool = False) -> bool:
  """Sleeps until the next look at a lock, and says on whom it waits unless that was told; True."""
  if not told:
    logger.info('waiting for the process at work in %s', folder)
  time.sleep(_LOCK_SECONDS)
  return True


class Stopwatch:
  """Seconds a run has worked, over all the processes that worked on it; DIR/RUN/seconds.json."""

  def __init__(self, folder: Path):
    self._file = folder / 'seconds.json'
    try:
      self._before = float((read_json(self._file) or {}).get('seconds', 0.0))
    except BadInput as error:  # a clock is not worth stopping for
      logger.warning('%s: the time before this start is not counted (%s)', folder, error)
      self._before = 0.0
    self._start = time.monotonic()
    self._told = False  # that it cannot be written

  @property
  def seconds(self) -> float:
    return self._before + time.monotonic() - self._start

  @contextlib.contextmanager
  def ticking(self) -> Iterator['Stopwatch']:
    """Writes the file from a thread, so that a kill loses `_TICK` seconds of the sum at most."""
    if not processes.first():
      yield self
      return
    every = _TICK[store.is_local(self._file)]
    stop = threading.Event()

    def tick() -> None:
      while not stop.wait(every):
        self._write()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
      yield self
    finally:
      stop.set()
      thread.join()
      self._write()

  def _write(self) -> None:
    try:
      write_json(self._file, {'seconds': round(self.seconds, 3)})
    except Exception as error:  # not worth stopping for; if the disk is full, others will
      if not self._told:
        logger.warning('%s: not written (%s)', self._file, getattr(error, 'strerror', '') or error)
      self._told = True


# ---------------------------------------------------------------- a full disk


def check_space(folder: Path, needed: int) -> None:
  """Raises BadInput if the disk of `folder` has less than `needed` bytes left; a store has room."""
  asked = processes.first() and store.is_local(folder)
  free = shutil.disk_usage(folder).free if asked else needed
  if free < needed:
    raise BadInput(no_space(folder, needed))


def no_space(folder: Path, needed: int = 0, option: str = '--workdir') -> str:
  """The message for a disk without space; `needed` is what the work at hand would take, in
  bytes, `option` what names the folder.
  """
  if not store.is_local(folder):
    folder = Path(tempfile.gettempdir())  # what is on the way to a store
  while not folder.exists():
    folder = folder.parent
  free = shutil.disk_usage(folder).free
  missing = max(needed - free, 64 << 20)
  return (f'no space left on the disk of {folder} ({_size(free)} free); free {_size(missing)} or '
          f'choose another {option}, then start the same command again to go on: nothing is lost')


def is_no_space(error: BaseException | None) -> bool:
  """Whether an exception, or one it came from, is a full disk; orbax and tensorstore only say so in
  words.
  """
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if 'No space left on device' in str(error) or 'Disk quota exceeded' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _size(count: float) -> str:
  """12345678 → '12 MB'."""
  unit = 'B'
  for larger in ('kB', 'MB', 'GB', 'TB'):
    if count < 1000:
      break
    count, unit = count / 1000, larger
  return f'{count:.0f} {unit}' if count >= 10 or unit == 'B' else f'{count:.1f} {unit}'


def room(folder: Path | None) -> int:
  """Bytes that a workdir's next saves may take: three of its largest checkpoints."""
  largest = 0
  for listing in folder.glob('*/checkpoints.json') if folder and store.is_local(folder) else ():
    for files in json.loads(listing.read_text('utf-8')).values():
      largest = max(largest, sum(length for length, _ in files.values()))
  return 3 * largest
