"""Paths as words of the command line.

Enter: a word. Leave: a path, or argparse's refusal in a line.
pathlib makes gs:/x of gs://x, a folder of this machine: a word that names a store is never given to
it. A `~` behind `=`, or in a list of commands, no shell has read: it is the home folder here.
Left out: whether anything is there (`store.check`, the commands).
"""

import argparse
import os
import pathlib
from typing import Any

from rlhf_jax.data import store


def local(word: str) -> pathlib.Path:
  """A file or folder of this machine. Raises: ArgumentTypeError: in a store, or empty."""
  _check_given(word)
  if not store.is_local(word):
    raise argparse.ArgumentTypeError(f'{word}: must be a local path, not in a store')
  return pathlib.Path(os.path.expanduser(word))  # leaves a ~user that is nobody


def local_folder(word: str) -> pathlib.Path:
  """A folder of this machine. Raises: ArgumentTypeError: in a store, or empty."""
  if not store.is_local(word):
    raise argparse.ArgumentTypeError(f'{word}: must be a local folder')
  return local(word)


def anywhere(word: str) -> Any:
  """A file or folder of this machine or gs://BUCKET/…; other stores are left to `store.check`.

  Raises: ArgumentTypeError: empty, or with a scheme that no path can have.
  """
  _check_given(word)
  try:
    return store.path(word)
  except KeyError as error:  # of etils, for a scheme that it does not know
    raise argparse.ArgumentTypeError(
      f'{word}: must be a local path, or gs://BUCKET/FOLDER') from error


def _check_given(word: str) -> None:
  """Refuses '', which pathlib takes for the current folder."""
  if not word.strip():
    raise argparse.ArgumentTypeError(
      'is empty, as of a shell variable that is not set; expected a path (. is the current folder)')
