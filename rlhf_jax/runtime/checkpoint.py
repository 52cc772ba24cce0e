"""Checkpoints of a training state, and the exported model of a finished run.

Enter: a state (any tree of arrays) and its step. Leave: the newest state on disk that is whole, on
any mesh and any number of processes; the parents that later runs start from. All processes write
arrays, each its own; process 0 lists, looks for damage and removes.
A checkpoint counts once checkpoints.json lists each of its files with size and CRC: orbax renames a
finished save into place, but cannot tell that a file was cut or lost afterwards. In an object
store, which has checksums of its own, sizes are enough.
Left out: the input pipeline, which is a function of (seed, step) and has no state; the best-of-run
choice, which is part of the state.
"""

import concurrent.futures
import dataclasses
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.data import processes, store
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model import sharding, transformer
from rlhf_jax.runtime import meshes, workdir
from rlhf_jax.stages.stage import Parent

KEEP = 2
logger = logging.getLogger('rlhf_jax')


class Checkpoints:
  """DIR/RUN/checkpoints/STEP/, written in the background, the last two kept."""

  def __init__(self, folder: Path):
    self._folder = store.absolute(folder) / 'checkpoints'
    self._listing = self._folder.with_suffix('.json')
    self._writer = ocp.StandardCheckpointer()
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'checkpoints')
    self._under_way: concurrent.futures.Future | None = None

  @property
  def last(self) -> int:
    """Step of the newest listed checkpoint, 0 if there is none."""
    return max(self._listed(), default=0)

  @property
  def missing(self) -> int:
    """How many more will lie on the disk at a time: the kept ones, and the one being written."""
    return KEEP + 1 - len(self._listed())

  def save(self, step: int, state: Any) -> None:
    """Starts a save; returns when the state has left the device, so that it may be donated.

    Raises:
      whatever the save before this one failed with.
    """
    self.wait()
    if processes.first():
      store.remove(self._folder / str(step))
    self._writer.save(self._folder / str(step), state)
    self._under_way = self._thread.submit(self._list_and_prune, step)

  def wait(self) -> None:
    """Until the save under way is on disk; raises what it failed with."""
    if self._under_way is not None:
      self._under_way.result()

  def restore(self, shapes: Any) -> tuple[int, Any] | None:
    """The newest whole checkpoint.

    Args:
      shapes: tree of ShapeDtypeStructs with shardings; the state is laid out so.

    Returns:
      (step, state); None if no save was ever finished.

    Raises:
      BadInput: checkpoints were finished, and each of them is damaged or of another shape.
    """
    step = processes.share(self._newest() if processes.first() else None)
    return None if step is None else (step, self._read(step, shapes))

  def _newest(self) -> int | None:
    """Step of the newest whole checkpoint; None if no save was ever finished."""
    listed = self._listed()
    present = {int(p.name): p for p in self._folder.glob('*') if p.name.isdigit()} if (
      self._folder.exists()) else {}
    damage: dict[int, str] = {}
    for step in sorted(set(listed) | set(present), reverse=True):
      damage[step] = self._damage(step, listed)
      if not damage[step]:
        return step
      older = [s for s in set(listed) | set(present) if s < step]
      logger.warning(
        'checkpoint %s is damaged (%s): %s', self._folder / str(step), damage[step],
        f'trying the one before it, {max(older)}' if older else 'there is none before it')
    if listed:
      raise BadInput(f'{self._folder}: no checkpoint is whole ('
                     + '; '.join(f'{step}: {why}' for step, why in damage.items())
                     + f'); put back a copy, or delete {self._folder.parent} to train it again')
    return None

  def forget_after(self, step: int) -> None:
    """Removes checkpoints above a step: torn ones, which stand in the way of new ones."""
    if not processes.first():
      return
    for path in self._folder.glob('*') if self._folder.exists() else ():
      if not path.name.isdigit() or int(path.name) > step:
        store.remove(path)
    listed = {s: files for s, files in self._listed().items() if s <= step}
    if self._listing.exists():
      workdir.write_json(self._listing, listed)

  def close(self) -> None:
    """Waits for what is under way."""
    self._thread.shutdown()
    self._writer.close()

  def _read(self, step: int, shapes: Any) -> Any:
    try:
      return self._writer.restore(self._folder / str(step), shapes)
    except Exception as error:
      if workdir.is_no_space(error):
        raise
      raise BadInput(f'{self._folder / str(step)}: is whole, but does not fit this run '
                     f'({_first_line(error)}); was it written by another version of the program? '
                     f'delete {self._folder.parent} to train it again') from error

  def _listed(self) -> dict[int, dict[str, list[int]]]:
    return {int(step): files for step, files in (workdir.read_json(self._listing) or {}).items()}

  def _list_and_prune(self, step: int) -> None:
    """Waits until a save has its final name, then lists its files and removes what is too old."""
    self._writer.wait_until_finished()
    if not processes.first():
      return
    listed = self._listed() | {step: _files(self._folder / str(step))}
    kept = sorted(listed)[-KEEP:]
    workdir.write_json(self._listing, {s: listed[s] for s in kept})
    for path in self._folder.glob('*'):  # a kill may have left some that are listed no more
      if path.name.isdigit() and int(path.name) < step and int(path.name) not in kept:
        store.remove(path)

  def _damage(self, step: int, listed: Mapping[int, Mapping[str, list[int]]]) -> str:
    """What is wrong with a checkpoint; '' if its files are those that were written."""
    if step not in listed:
      return 'it was never finished'
    return _differs(self._folder / str(step), listed[step])


def _files(folder: Path) -> dict[str, list[int | None]]:
  """Path inside `folder` -> [size, CRC-32]; in a store, which has checksums of its own, null."""
  crc = lambda file: zlib.crc32(file.read_bytes()) if store.is_local(file) else None
  return {name: [size, crc(folder / name)] for name, size in store.files(folder).items()}


def _differs(folder: Path, listed: Mapping[str, list[int | None]]) -> str:
  """The first file that is not as it was listed, and how; '' if all are."""
  found = store.files(folder)
  for name, (size, crc) in listed.items():
    if name not in found:
      return f'{name} is missing'
    if found[name] != size:
      return f'{name} has {found[name]} bytes, not {size}'
    known = crc is not None and store.is_local(folder)
    if known and zlib.crc32((folder / name).read_bytes()) != crc:
      return f'{name} has other bytes than were written'
  return ''


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# ---------------------------------------------------------------- the model of a finished run


def export(folder: Path, kind: str, model: configs.Model, tokenizer: Tokenizer,
           trees: Mapping[str, Any]) -> None:
  """Writes DIR/RUN/model/{params/, ema/ if there is one, model.json, tokenizer.json}, whole or not
  at all; in a store, where no folder can be renamed, it counts once finished.json is there.
  """
  target = folder / 'model'
  temporary = folder / '.model' if store.is_local(folder) else target
  if processes.first():
    store.remove(temporary)
    store.make(temporary)
    tokenizer.save(temporary / 'tokenizer.json')
  processes.barrier()
  with ocp.StandardCheckpointer() as writer:
    for name, tree in trees.items():
      if tree is not None:
        writer.save(store.absolute(temporary) / name, tree)
        writer.wait_until_finished()
  if not processes.first():
    return
  workdir.write_json(temporary / 'model.json', {'kind': kind, 'model': dataclasses.asdict(model)})
  workdir.write_json(folder / 'model.files.json', _files(temporary))
  if temporary != target:
    store.remove(target)
    temporary.rename(target)


def load_parent(folder: Path, weights: str = 'params',
                mesh: jax.sharding.Mesh | None = None) -> Parent:
  """The run in `folder`, which must be finished.

  Args:
    weights: 'params', or 'ema' for the average of the weights where the run kept one.
    mesh: where its parameters are laid out as they are read; None: numpy arrays.

  Raises:
    BadInput: not finished, its model is damaged, or the mesh does not divide it.
  """
  if not processes.first():  # it has seen the file; other hosts may not yet
    processes.wait_for(folder / 'finished.json', 300)
  config = workdir.config_of(folder)
  if not (folder / 'finished.json').exists():
    raise BadInput(f'{folder}: is not finished; start the same `run` command again to go on')
  if not isinstance(config, configs.Language | configs.Reward | configs.PPO):
    return Parent(None, None, None, config, folder)
  again = f'put back a copy, or delete {folder} to train it again'
  if processes.first():
    _check_model(folder, again)
  described = workdir.read_json(folder / 'model' / 'model.json')
  if described is None or not (folder / 'model' / weights).exists():
    if weights == 'ema' and not getattr(config, 'ema', 0.0):
      raise BadInput(f'{folder}: kept no average of its weights (ema is 0); take the raw ones')
    raise BadInput(f'{folder}/model: has no {weights}; {again}')
  model = workdir.from_json(configs.Model, described['model'])
  with ocp.StandardCheckpointer() as reader:
    path = store.absolute(folder) / 'model' / weights
    shapes = jax.tree.map(_on_host, reader.metadata(path).item_metadata.tree)
    if mesh is not None:
      meshes.check_divides(mesh, transformer.sizes(model), str(folder))
      axes = transformer.axes(model, scalar=described['kind'] == 'reward')
      shapes = jax.tree.map(
        lambda shape, at: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=at), shapes,
        sharding.state_shardings(mesh, shapes, {'model': axes}))
    params = reader.restore(path, shapes)
  return Parent(model, Tokenizer.from_file(folder / 'model' / 'tokenizer.json'), params, config,
                folder, language_below(folder, config))


def language_below(folder: Path, config: configs.Run) -> configs.Language | None:
  """The Language run that a policy began as; None where that is a model folder or gone."""
  while isinstance(config, configs.PPO):
    folder = store.path(config.policy) if '/' in config.policy else folder.parent / config.policy
    if workdir.read_json(folder / 'finished.json') is None:
      return None
    config = workdir.config_of(folder)
  return config if isinstance(config, configs.Language) else None


def _check_model(folder: Path, again: str) -> None:
  """BadInput if a file of the model is not as it was written."""
  damage = _differs(folder / 'model', workdir.read_json(folder / 'model.files.json') or {})
  if damage:
    raise BadInput(f'{folder}/model: is damaged ({damage}); {again}')


def _on_host(leaf: Any) -> np.ndarray:
  """What tells orbax to restore an array to the host, not to the devices it was saved from."""
  return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def size(tree: Any) -> int:
  """Bytes of a tree of arrays or ShapeDtypeStructs."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
