"""Tokenised rows on disk: tensorflow-datasets builders in array_record files, without TensorFlow.

In: fixed-size numpy arrays per split. Out: `Rows`, random access to them. Left out: downloading
(files are the user's own), shuffling at build time (batches.py shuffles), names and reuse
(builders.py). Importing this takes half a second, so it is imported when a dataset is.
"""

import contextlib
import io
import logging
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format

from rlhf_jax.configs import BadInput

Arrays = Mapping[str, np.ndarray]  # name -> [rows, ...]
# What is raised where a small file of a dataset is cut or gone.
LOST = (FileNotFoundError, ValueError, tfds.core.dataset_info.DatasetInfoFileError,
        json_format.ParseError)
_MEMORY = 256 * 2**20  # bytes of decoded rows that are kept: decoding takes 30 µs a row


class _Info(tfds.core.DatasetInfo):
  """Without a look at what tfds' own datasets have on the web, which leaves a folder in /tmp."""

  def initialize_from_bucket(self) -> None:
    """Nothing: these rows are nowhere else."""


class _Builder(tfds.core.GeneratorBasedBuilder):
  """Writes arrays as they are, one example a row, in order."""
  VERSION = tfds.core.Version('1.0.0')
  DESCRIPTION = ''
  # tfds looks beside the code for checksums of downloads, by a package that it does not require.
  # Nothing is downloaded here.
  code_path = None

  def __init__(self, splits: Mapping[str, Arrays], data_dir: pathlib.Path):
    self._splits = splits
    super().__init__(data_dir=str(data_dir), file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    arrays = next(iter(self._splits.values()))
    features = {name: tfds.features.Tensor(shape=array.shape[1:], dtype=array.dtype)
                for name, array in arrays.items()}
    return _Info(builder=self, features=tfds.features.FeaturesDict(features),
                 description=self.DESCRIPTION, disable_shuffling=True)

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    return {name: self._generate_examples(arrays) for name, arrays in self._splits.items()}

  def _generate_examples(self, arrays: Arrays) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for index in range(len(next(iter(arrays.values())))):
      yield index, {name: array[index] for name, array in arrays.items()}


class Text(_Builder):
  """tokens int32 [T], valid bool [T], mask bool [T]: packed documents."""
  DESCRIPTION = 'Documents, each <bos> text <eos>, packed into rows.'


class Demonstrations(_Builder):
  """tokens int32 [P+R], valid bool [P+R], mask bool [P+R] (true on the response, eos included)."""
  DESCRIPTION = 'Prompts, left-padded, with the responses of labelers, right-padded.'


class Rankings(_Builder):
  """tokens int32 [K, P+R], valid, mask bool [K, P+R], ranks int32 [K], present bool [K]."""
  DESCRIPTION = 'Prompts with K ranked completions, an element of the reward loss each.'


class Prompts(_Builder):
  """tokens int32 [P], valid bool [P]: left-padded prompts."""
  DESCRIPTION = 'Prompts, left-padded, to roll out from.'


BUILDERS: Mapping[str, type[_Builder]] = {
  'text': Text, 'demonstrations': Demonstrations, 'rankings': Rankings, 'prompts': Prompts}


class Rows:
  """Random access: len(rows), rows[i] → dict of read-only numpy arrays, in memory where small."""

  def __init__(self, source: Any, count: int, folder: pathlib.Path | None = None):
    self._source, self._count, self._folder = source, count, folder
    self._kept: dict[str, np.ndarray] | None = None
    self._filled = np.zeros(count, bool)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    index = int(index)
    if not -self._count <= index < self._count:
      raise IndexError(f'row {index} of {self._count}')
    index %= self._count
    if not self._filled[index]:
      row = self._read(index)
      if self._kept is None:
        size = self._count * sum(value.nbytes for value in row.values())
        self._kept = {} if size > _MEMORY else {
          name: np.empty((self._count, *value.shape), value.dtype) for name, value in row.items()}
      if not self._kept:
        return row
      for name, value in row.items():
        self._kept[name][index] = value
      self._filled[index] = True
    row = {name: array[index] for name, array in self._kept.items()}
    for value in row.values():
      value.flags.writeable = False  # a view of what later epochs read
    return row

  def _read(self, index: int) -> dict[str, np.ndarray]:
    try:
      return self._source[index]
    except RuntimeError as error:  # of array_record, for a file that is cut or gone
      raise damaged(self._folder, str(error)) from error

  @property
  def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each field of a row."""
    return {name: (feature.shape, np.dtype(feature.np_dtype))
            for name, feature in self._source.dataset_info.features.items()} if self._count else {}


def damaged(folder: pathlib.Path | None, why: str) -> BadInput:
  """What is said of a dataset of which something was lost since it was built."""
  return BadInput(f'{folder}: is damaged ({why}); delete it, and the same command builds it anew')


def write(kind: str, splits: Mapping[str, Arrays], folder: pathlib.Path) -> None:
  """Writes the splits below `folder`; splits without rows are left out."""
  filled = {name: arrays for name, arrays in splits.items() if len(next(iter(arrays.values())))}
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  with _quiet():
    BUILDERS[kind](filled, folder).download_and_prepare(download_config=config)
  shutil.rmtree(folder / 'downloads', ignore_errors=True)  # made by tfds, empty


def open_rows(kind: str, folder: pathlib.Path, split: str) -> Rows:
  """The rows of a split that `write` wrote; none where it had none."""
  with _quiet():
    builder = tfds.builder_from_directory(folder / BUILDERS[kind].name / '1.0.0')
    if split not in builder.info.splits:
      return Rows(None, 0)
    source = builder.as_data_source(split=split)
  return Rows(source, len(source), folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without the progress bars and notices of tfds."""
  tfds.disable_progress_bar()
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.WARNING)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logger.setLevel(level)
