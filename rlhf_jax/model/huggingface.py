"""Hugging Face folders in and out: config.json and *.safetensors ↔ configs.Model and parameters.

Enter: a folder, or a model and its parameters. Leave: the same model in the other form, every
number unchanged. The tables below say which tensor of theirs is which of ours and how it lies.
Known: GPT-2, GPT-NeoX (Pythia), Llama 2/3, Qwen2/2.5, Qwen3, each as a language model or, with one
label, as a reward model (…ForSequenceClassification).
Left out: tokenizers (data/tokenizer.py), pickled weights, quantised weights, adapters.

Memory: one stacked tensor is on the host at a time, read in pieces of at most 64 MiB; files are
opened anew for each piece, since pages that were looked at count as resident while one is open.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.model import families, sharding, transformer

PIECE_BYTES = 64 << 20  # read at a time
SHARD_BYTES = 4 << 30  # of a written file
DTYPES = ('float32', 'float16', 'bfloat16')
_INDEX = 'model.safetensors.index.json'
_NAMES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}


@dataclass(frozen=True)
class Description:
  """What config.json says: the shape, 'policy' or 'reward', the family, the bias of the scores."""
  model: configs.Model
  kind: str
  family: families.Family
  score_bias: float = 0.0


def is_model(folder: Path) -> bool:
  """Whether a folder has a config.json, and so may be a model."""
  return (folder / 'config.json').is_file()


def describe(folder: Path) -> Description:
  """Reads config.json.

  Raises:
    BadInput: no such file, an architecture or a rope type that is not known, a setting that the
      decoder has not.
  """
  file = folder / 'config.json'
  if not file.is_file():
    raise BadInput(f'{file}: expected the config.json of a model folder, found no such file')
  try:
    config = json.loads(file.read_text(encoding='utf-8'))
    architecture = (config.get('architectures') or ['none'])[0]
  except (ValueError, AttributeError, UnicodeDecodeError) as error:
    raise BadInput(f'{file}: expected a JSON object, found {error}') from error
  for family in families.FAMILIES:
    if architecture in (family.language, family.reward):
      model = family.read(families.Settings(file, config))
      configs.check_model(model)
      kind = 'policy' if architecture == family.language else 'reward'
      return Description(model, kind, family, float(config.get('score_bias', 0.0)))
  known = ', '.join(name for family in families.FAMILIES
                    for name in (family.language, family.reward))
  raise BadInput(f"{file}: field 'architectures': {architecture} is not known; known are: {known}")


# ----- reading


def load(folder: Path, described: Description, mesh: jax.sharding.Mesh | None = None) -> Any:
  """The parameters, float32, each laid out on `mesh` as it is read (None: the default device).

  A value head is made of a language model elsewhere (transformer.with_scalar_head).

  Raises:
    BadInput: tensors that are missing, left over, of another shape, or of a type that is no float.
  """
  model, kind = described.model, described.kind
  names = transformer.axes(model, scalar=kind == 'reward')
  shapes = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0), kind == 'reward'))
  rows = _rows(described, shapes)
  files = _files(folder)
  prefix = _prefix(described.family, files)
  _check_names(folder, described, rows, files, prefix)
  if model.tied and kind == 'policy' and described.family.unembedding in files:
    _check_tied(files, next(_theirs(rows['embed/tokens'], 0, prefix))[1],
                described.family.unembedding)

  def one(path, shape, axes):
    ours = '/'.join(key.key for key in path)
    sharding_ = None if mesh is None else jax.sharding.NamedSharding(mesh, sharding.spec(axes))
    if ours == 'head/bias':
      return _placed(np.float32(described.score_bias), sharding_)
    row = rows[ours]
    host = np.zeros(shape.shape, np.float32)
    for index, name in _theirs(row, model.layers, prefix):
      _fill(host if index is None else host[index], files, name, row, folder, model)
    return _placed(host, sharding_)

  paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
  flat = tree.flatten_up_to(names)
  return jax.tree.unflatten(tree, [one(path, shape, axes) for (path, shape), axes
                                   in zip(paths, flat, strict=True)])


def _placed(host: np.ndarray, at: Any) -> jax.Array:
  if at is None:  # jnp.asarray would copy twice
    return jax.block_until_ready(jax.device_put(host))
  return jax.block_until_ready(
    jax.make_array_from_callback(host.shape, at, lambda index: host[index]))


def _rows(described: Description, shapes: Any) -> dict[str, families.Row]:
  """Our path -> row of the table, for the parameters that this model has."""
  table = {row.ours: row for row in described.family.table}
  flat = jax.tree_util.tree_flatten_with_path(shapes)[0]
  paths = ['/'.join(key.key for key in path) for path, _ in flat]
  return {path: table[path] for path in paths if path != 'head/bias'}


def _theirs(row: families.Row, layers: int, prefix: str) -> Iterator[tuple[int | None, str]]:
  """(layer, name) of each tensor of theirs that a row stands for."""
  name = row.theirs.removeprefix('~') if row.theirs.startswith('~') else prefix + row.theirs
  if '{}' in name:
    yield from ((i, name.format(i)) for i in range(layers))
  else:
    yield None, name


def _files(folder: Path) -> dict[str, Path]:
  """Name of every tensor -> the file that holds it."""
  index = folder / _INDEX
  if (folder / 'model.safetensors').is_file():  # of both transformers reads this one
    with _open(folder / 'model.safetensors') as file:
      listed = dict.fromkeys(file.keys(), folder / 'model.safetensors')
  elif index.is_file():
    try:
      listed = {name: folder / file for name, file
                in json.loads(index.read_text(encoding='utf-8'))['weight_map'].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise BadInput(f"{index}: expected an object with 'weight_map', the file of each tensor; "
                     f'found {error!r}') from error
  else:
    raise BadInput(f'{folder}: expected model.safetensors or model.safetensors.index.json, found '
                   'neither; pickled weights (*.bin) are not read: save them as safetensors')
  absent = sorted({str(file) for file in listed.values() if not file.is_file()})
  if absent:
    raise BadInput(f'{index}: names {absent[0]}, which is not there')
  return listed


def _open(file: Path) -> Any:
  try:
    return safetensors.safe_open(file, framework='np')
  except Exception as error:  # the Rust side raises its own
    raise BadInput(f'{file}: expected a whole safetensors file, found {error}') from error


def _prefix(family: families.Family, names: Mapping[str, Path]) -> str:
  """The family's prefix, or none where the trunk was saved by itself (GPT-2 as published)."""
  return family.prefix if any(name.startswith(family.prefix) for name in names) else ''


def _check_names(folder: Path, described: Description, rows: Mapping[str, families.Row],
                 files: Mapping[str, Path], prefix: str) -> None:
  wanted = {name for row in rows.values()
            for _, name in _theirs(row, described.model.layers, prefix)}
  if missing := sorted(wanted - set(files)):
    raise BadInput(f'{folder}: {len(missing)} parameters are missing: {_some(missing)}')
  ignored = described.family.buffers
  if described.model.tied or described.kind == 'reward':
    ignored += (re.escape(described.family.unembedding),)
  left = sorted(name for name in set(files) - wanted
                if not any(re.fullmatch(f'(.*\\.)?{pattern}', name) for pattern in ignored))
  if left:
    raise BadInput(f'{folder}: {len(left)} parameters are left over, the model that config.json '
                   f'describes has none such: {_some(left)}')


def _check_tied(files: Mapping[str, Path], embedding: str, unembedding: str) -> None:
  """Refuses a tied model with an output table of its own: transformers 4 drops it, 5 uses it."""
  def size(name):
    with _open(files[name]) as opened:
      return opened.get_slice(name).get_shape()

  def piece(name, start, stop):
    with _open(files[name]) as opened:
      return opened.get_slice(name)[start:stop]

  rows, width = size(embedding)
  step = max(1, PIECE_BYTES // max(4 * width, 1))
  if size(unembedding) != [rows, width] or not all(
      np.array_equal(*(piece(name, start, min(start + step, rows))
                       for name in (embedding, unembedding)))
      for start in range(0, rows, step)):
    raise BadInput(f"{files[unembedding]}: {unembedding} is another table than {embedding}, though "
                   "'tie_word_embeddings' is true in config.json; set it to false, or remove the "
                   'tensor')


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def _fill(host: np.ndarray, files: Mapping[str, Path], name: str, row: families.Row, folder: Path,
          model: configs.Model) -> None:
  """Reads one tensor of theirs into its place."""
  file = files[name]
  with _open(file) as opened:
    found = opened.get_slice(name)
    shape, dtype = tuple(found.get_shape()), found.get_dtype()
  if dtype not in _NAMES:
    raise BadInput(f'{file}: {name} has type {dtype}; known are {", ".join(_NAMES)}')
  if row.ours in ('embed/tokens', 'unembed/tokens'):
    host = host[:model.vocabulary]
  expected = row.layout.shape(host.shape)
  if shape != expected:
    raise BadInput(f'{file}: {name} has shape {list(shape)}; config.json asks for '
                   f'{list(expected)}')
  if row.layout is families.SAME and shape:
    step = max(1, PIECE_BYTES // max(4 * math.prod(shape[1:]), 1))
    for start in range(0, shape[0], step):
      stop = min(start + step, shape[0])
      with _open(file) as opened:
        host[start:stop] = opened.get_slice(name)[start:stop]
    return
  with _open(file) as opened:
    tensor = opened.get_tensor(name)
  host[...] = row.layout.read(tensor, host.shape, row.part)


# ----- writing


def save(folder: Path, model: configs.Model, params: Any, kind: str, *, dtype: str = 'float32',
         settings: Mapping[str, Any] | None = None, shard_bytes: int = SHARD_BYTES) -> str:
  """Writes config.json and model.safetensors (several with an index above `shard_bytes`), in the
  place of those of a model that is there.

  Args:
    params: tree of arrays as transformer.init gives it, `kind` 'reward' with the scalar head.
    dtype: one of DTYPES; a float that it cannot hold is rounded.
    settings: added to config.json, for example ids of special tokens.

  Returns:
    the name of the architecture.

  Raises:
    BadInput: no family has a model of this shape.
  """
  if dtype not in DTYPES:
    raise BadInput(f'dtype {dtype!r}: expected one of {", ".join(DTYPES)}')
  family = _family_of(model)
  described = Description(model, kind, family)
  architecture = family.reward if kind == 'reward' else family.language
  config = {'architectures': [architecture], 'model_type': family.name,
            **family.write(model), 'dtype': dtype, 'torch_dtype': dtype, 'use_cache': True}
  if kind == 'reward':
    # Theirs has no bias; a constant changes no ranking, and `load` puts it back.
    config |= {'num_labels': 1, 'id2label': {'0': 'reward'}, 'label2id': {'reward': 0},
               'score_bias': float(params['head']['bias'])}
  folder.mkdir(parents=True, exist_ok=True)
  if is_model(folder):  # an index or shards that stay would be read with ours, or before them
    for old in (*folder.glob('*.safetensors'), folder / _INDEX):
      old.unlink(missing_ok=True)
  _write_json(folder / 'config.json', config | dict(settings or {}))
  _write_tensors(folder, described, params, np.dtype(jnp.dtype(dtype)), shard_bytes)
  return architecture


def _family_of(model: configs.Model) -> families.Family:
  reasons = []
  for family in families.FAMILIES:
    reason = family.differs(model)
    if not reason:
      return family
    reasons.append(f'{family.name}: {reason}')
  raise BadInput('no architecture of transformers has this shape (' + '; '.join(reasons) + ')')


def _write_tensors(folder: Path, described: Description, params: Any, dtype: np.dtype,
                   shard_bytes: int) -> None:
  model, flat = described.model, _by_path(params)
  parts: dict[str, list[tuple[families.Row, int | None]]] = {}
  for row in _rows(described, params).values():
    for index, name in _theirs(row, model.layers, described.family.prefix):
      parts.setdefault(name, []).append((row, index))

  def sized(name):
    return sum(_shaped(flat, row, index, model).size for row, index in parts[name]) * dtype.itemsize

  shards, room = [[]], shard_bytes
  for name in parts:
    size = sized(name)
    if size > room and shards[-1]:
      shards, room = [*shards, []], shard_bytes
    shards[-1].append(name)
    room -= size
  names = ['model.safetensors'] if len(shards) == 1 else [
    f'model-{i + 1:05}-of-{len(shards):05}.safetensors' for i in range(len(shards))]
  for file, shard in zip(names, shards, strict=True):
    tensors = {}
    for name in shard:
      pieces = sorted(parts[name], key=lambda piece: piece[0].part)
      own = [np.asarray(_array(flat, row, index, model)) for row, index in pieces]
      tensors[name] = np.ascontiguousarray(pieces[0][0].layout.write(own)).astype(dtype)
    temporary = folder / f'.{file}.{os.getpid()}'
    safetensors.numpy.save_file(tensors, temporary, metadata={'format': 'pt'})
    shutil.copymode(folder / 'config.json', temporary)  # theirs is for its owner alone
    os.replace(temporary, folder / file)
  if len(shards) > 1:
    _write_json(folder / _INDEX, {
      'metadata': {'total_size': sum(map(sized, parts))},
      'weight_map': {name: file for file, shard in zip(names, shards, strict=True)
                     for name in shard}})


def _by_path(params: Any) -> dict[str, Any]:
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  return {'/'.join(key.key for key in path): leaf for path, leaf in flat}


def _array(flat: Mapping[str, Any], row: families.Row, index: int | None,
           model: configs.Model) -> Any:
  """Our tensor of one row: a layer of the stack, or the rows of the table that are ids."""
  array = flat[row.ours] if index is None else flat[row.ours][index]
  return array[:model.vocabulary] if row.ours in ('embed/tokens', 'unembed/tokens') else array


def _shaped(flat, row, index, model) -> jax.ShapeDtypeStruct:
  return jax.eval_shape(lambda: _array(
    {row.ours: jnp.zeros(flat[row.ours].shape)}, row, index, model))


def _write_json(file: Path, value: Any) -> None:
  temporary = file.with_name(f'.{file.name}.{os.getpid()}')
  temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
  os.replace(temporary, file)


