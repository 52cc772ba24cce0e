"""What a run reads: checked before the first step of any, and the same from its first to its last.

Enter: configs, a Place. Leave: BadInput for files and functions that are not there;
DIR/RUN/inputs.json, hashes of the content of all that a run trains on, and BadInput for a run that
would go on with other content: file names, which are what config.json knows, stay the same under
another --data.
Left out: runs that train nothing, whose pieces know what they are pieces of; the weights of parents
and model folders (config.json); demonstrations that a Reward run reads by its parent's config.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf_jax import configs
from rlhf_jax.data import builders, processes, readers, records, sources, store
from rlhf_jax.data.builders import Place
from rlhf_jax.runtime import experiment as experiments
from rlhf_jax.runtime import workdir

# What a parent's folder holds that this run reads, and that config.json knows nothing of.
OF_PARENTS = ('model/tokenizer.json', 'rankings.jsonl')


class Changed(configs.BadInput):
  """A run was begun with other data."""


def check(runs: Iterable[configs.Run], place: Place) -> None:
  """BadInput for missing files and for names of functions that lead nowhere: before the first step
  of any run, not when its turn comes.
  """
  runs, found = list(runs), []
  for config in runs:
    found += [source for _, source in _sources(config)]
    for field in dataclasses.fields(config):
      value = getattr(config, field.name)
      if field.name in ('judge', 'reward') and ':' in value:
        records.load(value, field.name)
  builders.require(found, place)


def settle(folder: Path, config: configs.Run, place: Place) -> None:
  """Writes down what a run trains on, or compares it with what it was begun with.

  All processes call it; a run whose folder holds no work, or no such file yet, may take any data.

  Raises: Changed for other content than the run was begun with.
  """
  refused = processes.share(_settled(folder, config, place) if processes.first() else '')
  if refused:
    raise Changed(refused)


def _settled(folder: Path, config: configs.Run, place: Place) -> str:
  """Why the run cannot go on with this data; '' if it can, and then it is written down."""
  file = folder / 'inputs.json'
  data = '' if place.data is None else str(store.absolute(place.data))
  now = _hashes(folder, config, place)
  found = {name: hashed for name, (_, hashed) in now.items()}
  there = workdir.read_json(file) if workdir.holds_work(folder) else None
  if there is None:
    workdir.write_json(file, {'data': data, 'sha256': found})
    return ''
  known = there.get('sha256', {})
  changed = [f'{name} ({of})' for name, (of, hashed) in now.items()
             if known.get(name, hashed) != hashed]
  if not changed:
    return ''
  before = there.get('data', '')
  back = f' with --data {before}' if before not in ('', data) else ''
  return (f'{folder} was begun with other data: the content of {", ".join(changed)} differs; give '
          f'the old content back{back}, or take another --workdir; if the records are the same '
          f'after all, remove {file}')


def _hashes(folder: Path, config: configs.Run, place: Place) -> dict[str, tuple[str, str]]:
  """What the run trains on: field -> (the files or the function, a hash of the content)."""
  found = {}
  for name, source in _sources(config):
    files = sources.files(source, place)
    of, code = source.make or ', '.join(source.files), b''
    if not source.make:
      files += [other for main in files for other in readers.beside(main, source.reader)]
      if readers.own(source.reader):
        code = sources.code(source.reader.rpartition(':')[0])
        of += f', read by {source.reader}'
    found[name] = (of, _hash(files, code))
  given = getattr(config, 'tokenizer', None)
  if given is not None and given.file and not config.init_from:
    file = sources.locate(given.file, place)
    if file.is_file():  # else the stage tells
      found['tokenizer.file'] = (given.file, _hash([file]))
  for role, run in experiments.references(config).items():
    for name in OF_PARENTS:
      path = folder.parent / run / name
      if path.exists():
        found[f'{role}: {name}'] = (f'{run}/{name}', _hash([path]))
  return found


def _sources(config: configs.Run) -> Iterator[tuple[str, configs.Source]]:
  """Every source of a run, by its field."""
  for field in dataclasses.fields(config):
    value: Any = getattr(config, field.name)
    for number, item in enumerate(value if isinstance(value, tuple) else ()):
      if isinstance(item, configs.Source):
        yield f'{field.name}.{number}', item


def _hash(files: Iterable[Path], code: bytes = b'') -> str:
  digest = hashlib.sha256(code)
  for path in files:
    with path.open('rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()[:16]
