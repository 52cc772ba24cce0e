"""What a run reads: checked before the first step of any, and the same from its first to its last.

Enter: configs, a Place. Leave: BadInput for files and functions that are not there;
DIR/RUN/inputs.json, hashes of the content of all that a run reads, what its parents read and the
code of its reward and its judge included; and BadInput for training that would go on with other
content: file names, which are what config.json knows, stay the same under another --data. A run
that trains nothing begins anew instead. A finished run is left as it is, and a warning says that
its data is another now; so does one of a judge that only measures, while a run goes on.
Left out: the weights of parents and model folders (config.json).
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import configs
from rlhf_jax.data import builders, functions, processes, readers, sources, store
from rlhf_jax.data.builders import Place
from rlhf_jax.runtime import experiment as experiments
from rlhf_jax.runtime import workdir

JUDGE = 'judge'  # the field of a function that measures, and trains nothing
# What a parent's folder holds that this run reads, and that config.json knows nothing of.
OF_PARENTS = ('model/tokenizer.json', 'rankings.jsonl')
KEPT = ('config.json', 'inputs.json', 'seconds.json')  # of a run that begins anew
NEEDED = {configs.Language: ('data',), configs.Collect: ('prompts',),
          configs.Reward: ('data',), configs.PPO: ('prompts',), configs.Evaluate: ('prompts',)}
SHARED = (('pretraining', 'pretraining_share'), ('pretraining', 'ptx_ratio'))  # field, if this is
logger = logging.getLogger('rlhf_jax')


class Changed(configs.BadInput):
  """A run was begun with other data."""


def check(runs: Mapping[str, configs.Run], place: Place) -> None:
  """BadInput for fields that name no data, for missing files and for names of functions that lead
  nowhere: before the first step of any run, not when its turn comes.
  """
  found = []
  for name, config in runs.items():
    for field in NEEDED[type(config)]:
      if not getattr(config, field):
        raise configs.BadInput(f"runs['{name}'].{field}: names no data, expected a Source")
    for field, share in SHARED:
      if getattr(config, share, 0) and not getattr(config, field):
        raise configs.BadInput(f"runs['{name}'].{field}: names no data, expected a Source, since "
                               f'{share} is {getattr(config, share)}')
    found += [source for _, source in _read(config, place)]
    for field, value in _functions(config):
      functions.load(value, f"runs['{name}'].{field}")
  builders.require(found, place)


def _functions(config: configs.Run) -> Iterator[tuple[str, str]]:
  """(field, its value) of what names a function of the user's."""
  judge, reward = (getattr(config, field, '') for field in ('judge', 'reward'))
  if judge or isinstance(config, configs.Collect):
    yield JUDGE, judge
  if ':' in reward:
    yield 'reward', reward


def settle(folder: Path, config: configs.Run, place: Place) -> None:
  """Writes down what a run trains on, or compares it with what it was begun with.

  All processes call it; a run whose folder holds no work, or no such file yet, may take any data.

  Raises: Changed for other content than the run was begun with.
  """
  _settle(folder, config, place, _read(config, place), trains=True)


def _settle(folder: Path, config: configs.Run, place: Place,
            read: Iterable[tuple[str, configs.Source]], trains: bool) -> None:
  """See _settled."""
  refused = processes.share(
    _settled(folder, config, place, read, trains) if processes.first() else '')
  if refused:
    raise Changed(refused)


def settle_pieces(folder: Path, config: configs.Run, place: Place) -> None:
  """Writes down what a run reads that trains nothing; what it made of other content is removed.

  All processes call it. What a judge of other code made knows that by itself, and samples stay.
  """
  if processes.first():
    now = _hashes(config, place, _read(config, place))
    found = {name: hashed for name, (_, hashed) in now.items()}
    changed = _changed({name: of for name, of in now.items() if name != JUDGE},
                       workdir.read_json(folder / 'inputs.json') or {})
    for path in list(folder.iterdir()) if changed and workdir.holds_work(folder) else ():
      if path.is_file() and path.name not in KEPT and not path.name.startswith('.'):
        path.unlink()
      elif not path.is_file():
        store.remove(path)
    if changed:
      logger.warning('%s begins anew: the content of %s differs', folder, ', '.join(changed))
    workdir.write_json(folder / 'inputs.json', {'data': _data(place), 'sha256': found})
  processes.barrier()


def settle_measures(folder: Path, config: configs.PPO, text: Iterable[configs.Source],
                    place: Place) -> None:
  """`settle` for what the points of a sweep that start from one model are measured with.

  Args:
    folder: of the start's samples.
    text: held-out text of the sweep.

  Raises: Changed for other content than the first point was measured with.
  """
  measured = dataclasses.replace(config, prompts=(), pretraining=(), reward='', value='')
  read = [*_sources(measured), *((f'text.{i}', source) for i, source in enumerate(text))]
  _settle(folder, measured, place, read, trains=False)


def warn(name: str, config: configs.Run, place: Place) -> None:
  """Says of a finished run that what it was made of is not what is there now: runs that are made
  from it would rest on the old data beside the new. Nothing if its files are gone; what a function
  makes is not made for this.
  """
  folder, changed = place.workdir / name, []
  if not (processes.first() and (folder / 'inputs.json').exists()):
    return
  with contextlib.suppress(configs.BadInput, OSError):
    read = [item for item in _read(config, place) if not item[1].make]
    now = _hashes(config, place, read)
    if isinstance(config, configs.PPO):  # its model is none of the judge's
      now.pop(JUDGE, None)
    changed = _changed(now, workdir.read_json(folder / 'inputs.json'))
  if changed:
    logger.warning('%s is finished, and was made of other data: the content of %s differs. What is '
                   'made from it now rests on the old; for the new, delete %s and what was made '
                   'from it, or take another --workdir', name, ', '.join(changed), folder)


def _data(place: Place) -> str:
  return '' if place.data is None else str(store.absolute(place.data))


def _settled(folder: Path, config: configs.Run, place: Place,
             read: Iterable[tuple[str, configs.Source]], trains: bool) -> str:
  """Why the run cannot go on with this data; '' if it can, and then it is written down.

  Args:
    trains: its judge only measures, and a change of it is told and refuses nothing.
  """
  file, data = folder / 'inputs.json', _data(place)
  now = _hashes(config, place, read)
  found = {name: hashed for name, (_, hashed) in now.items()}
  there = workdir.read_json(file) if workdir.holds_work(folder) else None
  if there is None:
    workdir.write_json(file, {'data': data, 'sha256': found})
    return ''
  judged = {JUDGE: now.pop(JUDGE)} if trains and JUDGE in now else {}
  changed = _changed(now, there)
  if not changed:
    if _changed(judged, there):
      logger.warning('%s: the code of its judge, %s, is another than before: what it measured '
                     'until now does not compare with what follows', folder, judged[JUDGE][0])
      workdir.write_json(file, {**there, 'sha256': {**there['sha256'], JUDGE: found[JUDGE]}})
    return ''
  before = there.get('data', '')
  back = f' with --data {before}' if before not in ('', data) else ''
  return (f'{folder} was begun with other data: the content of {", ".join(changed)} differs; give '
          f'the old content back{back}, or take another --workdir; if the records are the same '
          f'after all, remove {file}')


def _changed(now: Mapping[str, tuple[str, str]], there: Mapping[str, Any]) -> list[str]:
  """What of `now` differs from what inputs.json says; what it does not know counts as the same."""
  known = there.get('sha256', {})
  return [f'{name} ({of})' for name, (of, hashed) in now.items()
          if known.get(name, hashed) != hashed]


def _hashes(config: configs.Run, place: Place,
            read: Iterable[tuple[str, configs.Source]]) -> dict[str, tuple[str, str]]:
  """What the run trains on, of its sources those of `read`: field -> (the files or the function, a
  hash of the content).
  """
  found = {}
  for name, source in read:
    files = sources.files(source, place)
    of, code = source.make or ', '.join(source.files), b''
    if not source.make:
      files += [other for main in files for other in readers.beside(main, source.reader)]
      if readers.own(source.reader):
        code = sources.code(source.reader.rpartition(':')[0])
        of += f', read by {source.reader}'
    found[name] = (of, _hash(files, code))
  for field, function in _functions(config):
    found[field] = (function, sources.digest(function)[:16])
  given = getattr(config, 'tokenizer', None)
  if given is not None and given.file and not config.init_from:
    file = sources.locate(given.file, place)
    if file.is_file():  # else the stage tells
      found['tokenizer.file'] = (given.file, _hash([file]))
  for role, run in (experiments.references(config) | experiments.folders(config)).items():
    parent = _parent(run, place)
    for name in OF_PARENTS:
      path = parent / name
      if path.exists():
        found[f'{role}: {name}'] = (f'{run}/{name}', _hash([path]))
    there = (workdir.read_json(parent / 'inputs.json') or {}).get('sha256', {})
    if trained := {name: hashed for name, hashed in there.items() if name != JUDGE}:
      found[f'{role}: inputs.json'] = (
        f'what {run} was made of', _hash([], json.dumps(trained, sort_keys=True).encode()))
  return found


def _sources(config: configs.Run) -> Iterator[tuple[str, configs.Source]]:
  """Every source of a run, by its field."""
  for field in dataclasses.fields(config):
    value: Any = getattr(config, field.name)
    for number, item in enumerate(value if isinstance(value, tuple) else ()):
      if isinstance(item, configs.Source):
        yield f'{field.name}.{number}', item


def _read(config: configs.Run, place: Place) -> Iterator[tuple[str, configs.Source]]:
  """Every source that a run reads: its own, and of a reward model those of the run whose
  demonstrations it scores 0.
  """
  yield from _sources(config)
  if not isinstance(config, configs.Reward):
    return
  role = 'demonstrations' if config.demonstrations else 'init_from'
  run = getattr(config, role)
  parent = _parent(run, place)
  if not (parent / 'finished.json').exists() or not isinstance(
      language := workdir.config_of(parent), configs.Language):
    return  # its config may change yet; or a model of others
  read = dict(_sources(language))
  if any(source.kind == 'demonstrations' for source in read.values()):
    yield from ((f'{role}: {name}', source) for name, source in read.items())


def _parent(run: str, place: Place) -> Path:
  """The folder of a run of this workdir, or of another, or of a model of others."""
  return builders.locate(run, place) if '/' in run else place.workdir / run


def _hash(files: Iterable[Path], code: bytes = b'') -> str:
  digest = hashlib.sha256(code)
  for path in files:
    with path.open('rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()[:16]
