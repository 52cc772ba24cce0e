"""Work that outlives a kill: JSON objects in a folder, one a file, each there before the next is
begun.

In: objects in the order in which they are made, the same in every process. Out: after a restart,
those that were whole. Left out: when the folder is no longer needed (its owner removes it).
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_jax.data import processes, store
from rlhf_jax.model import responses


class Pieces:
  """The pieces in `folder`: `done` holds what is there.

  Args:
    of: what the pieces are pieces of, see `fingerprint`; those of something else are not looked at.
  """

  def __init__(self, folder: Any, of: str):
    self.folder, self._of = folder, of
    self.done: list[dict[str, Any]] = []
    whole = processes.share(self._whole() if processes.first() else None)
    for number in range(len(self.done), whole):  # the other processes
      self.done.append(json.loads(self._path(number).read_text(encoding='utf-8')))
    processes.barrier()  # all have read before one is added

  def append(self, piece: Mapping[str, Any]) -> None:
    """Adds a piece; after return it survives a kill."""
    if processes.first():
      store.write(self._path(len(self.done)), json.dumps(piece))
    self.done.append(dict(piece))

  def remove(self) -> None:
    """Removes the folder."""
    if processes.first():
      store.remove(self.folder)

  def _path(self, number: int) -> Any:
    return self.folder / self._of / f'{number:06d}.json'

  def _whole(self) -> int:
    """Reads what is there up to the first gap or damage; how many pieces that are."""
    while self._path(len(self.done)).exists():
      try:
        self.done.append(json.loads(self._path(len(self.done)).read_text(encoding='utf-8')))
      except ValueError:  # a disk lost it
        break
    return len(self.done)


def fingerprint(value: Any) -> str:
  """A hash of a JSON-able value."""
  return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def packed(found: Iterable[responses.Response]) -> list[dict[str, Any]]:
  """Responses as JSON-able rows: `unpacked` gives them back to the bit."""
  return [dataclasses.asdict(response) for response in found]


def unpacked(rows: Sequence[Mapping[str, Any]]) -> list[responses.Response]:
  """What `packed` was given."""
  return [responses.Response(**{**row, 'tokens': tuple(row['tokens'])}) for row in rows]
