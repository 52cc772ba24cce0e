"""A model wherever it lies: a finished run of a workdir, or a Hugging Face folder.

Enter: a path. Leave: a Parent; configuration and tokenizer come with it.
Left out: what training needs of a run besides its model (checkpoint.py).
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.configs import BadInput
from rlhf_jax.data import store
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model import huggingface, transformer
from rlhf_jax.runtime import checkpoint, meshes, workdir
from rlhf_jax.stages.stage import Parent


def load(path: Path, mesh: Any = None, weights: str = 'params') -> Parent:
  """The model at `path`: DIR/RUN of a workdir, or a folder with config.json, *.safetensors and
  tokenizer.json.

  Args:
    mesh: where the parameters are laid out as they are read; None: those of a folder on one
      device, those of a run as numpy arrays.
    weights: 'params' or 'ema'; a folder has no averages.

  Raises:
    BadInput: there is no model, it is damaged or not known, or its tokenizer has more ids than its
      embedding has rows, or the mesh does not divide it.
  """
  if _is_run(path):
    return checkpoint.load_parent(path, weights, mesh)
  described = _described(path)
  tokenizer = Tokenizer.from_file(path / 'tokenizer.json')
  if tokenizer.vocabulary > described.model.vocabulary:
    raise BadInput(f'{path}: tokenizer.json has {tokenizer.vocabulary} ids, the embedding of '
                   f'config.json {described.model.vocabulary}; they are not of one model')
  if mesh is not None:
    meshes.check_divides(mesh, transformer.sizes(described.model), str(path))
  return Parent(described.model, tokenizer, huggingface.load(path, described, mesh), None, path)


def kind(path: Path) -> str:
  """'policy' or 'reward', from the small files alone. Raises BadInput where there is no model."""
  if _is_run(path):
    there = workdir.read_json(path / 'model' / 'model.json')
    if there is None:
      raise BadInput(f'{path}: holds no finished model; finish that run, or name another folder')
    return there['kind']
  return _described(path).kind


def fingerprint(path: Path) -> str:
  """A hash that changes with the model: of a run its own, of a folder one of its small files, and
  of the size and pieces of each file of weights. At most 1 MiB of a file is read.
  """
  if _is_run(path):
    return (workdir.read_json(path / 'config.json') or {}).get('hash', '')
  digest = hashlib.sha256()
  for file in sorted(path.glob('*')):
    if file.suffix in ('.json', '.safetensors', '.jinja'):
      digest.update(f'{file.name} {file.stat().st_size}'.encode())
      for piece in _sampled(file):
        digest.update(piece)
  return digest.hexdigest()[:16]


def _sampled(file: Path) -> Iterator[bytes]:
  """A small file; of a large one pieces evenly spread from its start to its end."""
  size, count, length = file.stat().st_size, 16, 1 << 16
  with file.open('rb') as opened:
    if size <= count * length:
      yield opened.read()
      return
    for index in range(count):
      opened.seek(index * (size - length) // (count - 1))
      yield opened.read(length)


def _is_run(path: Path) -> bool:
  if not path.is_dir():
    raise BadInput(f'{path}: expected the folder of a model or of a finished run, found '
                   f'{"a file" if path.exists() else "nothing there"}')
  there = workdir.read_json(path / 'config.json') if huggingface.is_model(path) else None
  return there is not None and there.get('kind') in workdir.KINDS


def _described(path: Path) -> huggingface.Description:
  if not huggingface.is_model(path):
    runs = sorted(p.parent.name for p in path.glob('*/finished.json'))
    hint = f'; its runs are {", ".join(f"{path}/{run}" for run in runs)}' if runs else ''
    raise BadInput(f'{path}: expected config.json of a model, found none{hint}')
  if not store.is_local(path):
    raise BadInput(f'{path}: weights in this layout are read from local files: copy the folder '
                   'here first (gcloud storage cp -r)')
  return huggingface.describe(path)

