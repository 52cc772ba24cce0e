"""An experiment file as a checked table of runs, and the order in which they must be made.

Enter: the path of a Python file that sets `runs: dict[str, config]`, or defines `runs(…)` that
returns one; its parameters are options of the command line. Leave: an `Experiment`; every mistake
of the file is a `BadInput` that names file, line and field. Plain Python, no jax: `list` answers
at once.
Left out: anything but `runs` and `sweep` in the file; whether values go together, which those tell
who use them.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.runtime import ranges

KINDS = (configs.Language, configs.Collect, configs.Reward, configs.PPO, configs.Evaluate)
RESERVED = ('data',)  # DIR/data is the data room's

# Field that names a run -> the kinds of run it may name. Evaluate names more, in `models`.
ROLES: Mapping[type, Mapping[str, tuple[type, ...]]] = {
  configs.Language: {
    'init_from': (configs.Language, configs.PPO), 'reward': (configs.Reward,)},
  configs.Collect: {
    'policy': (configs.Language, configs.PPO), 'calibration': (configs.Collect,)},
  configs.Reward: {
    'init_from': (configs.Language, configs.PPO), 'data': (configs.Collect,),
    'heldout_data': (configs.Collect,), 'demonstrations': (configs.Language,)},
  configs.PPO: {
    'policy': (configs.Language, configs.PPO), 'reward': (configs.Reward,),
    'value': (configs.Reward, configs.Language, configs.PPO)},
  configs.Evaluate: {
    'reward': (configs.Reward,), 'rankings': (configs.Collect,)},
}
SAMPLED = (configs.Language, configs.PPO)
OPTIONS = {'str': str, 'int': int, 'float': float}  # what the parameters of `runs` may be


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The runs of a file, and where in the file each of them and of its fields stands."""
  file: Path
  runs: dict[str, configs.Run]
  lines: Mapping[tuple[str, ...], int]  # ('sft',) and ('sft', 'batch') -> line
  sweep: configs.Sweep | None = None  # of a sweep file; grid.py checks it

  def where(self, run: str, field: str = '') -> str:
    """FILE:LINE: runs['RUN'].field, as precisely as the file's own text tells."""
    line = self.lines.get((run, field.split('.')[0]), self.lines.get((run,)))
    place = f'{self.file}:{line}' if line else str(self.file)
    return f"{place}: runs['{run}']" + (f'.{field}' if field else '')


@dataclasses.dataclass(frozen=True)
class Parameter:
  """An option that an experiment file takes: a parameter of its function `runs`."""
  name: str
  kind: type  # str, int or float
  required: bool
  doc: str

  @property
  def option(self) -> str:
    return '--' + self.name.replace('_', '-')


def parameters(file: Path) -> list[Parameter]:
  """The options that an experiment file takes, read from its text; none where `runs` is a dict.

  A parameter reads `name: str = '',  # what it is`, each on a line of its own.

  Raises: BadInput for one that no word gives: bool('false') is true.
  """
  try:
    text = file.read_text('utf-8-sig')
    found = [node for node in ast.parse(text).body
             if isinstance(node, ast.FunctionDef) and node.name == 'runs']
  except (OSError, SyntaxError, UnicodeDecodeError):  # `load` tells it with its line
    return []
  lines, taken = text.splitlines(), []
  for node in found:
    arguments = node.args.posonlyargs + node.args.args
    missing = [None] * (len(arguments) - len(node.args.defaults))
    given = [*zip(arguments, missing + node.args.defaults, strict=True),
             *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    for argument, default in given:
      comment = re.search(r'  # (.*)$', lines[argument.end_lineno - 1])
      word = _type_of(argument.annotation, default)
      if word not in OPTIONS:
        raise BadInput(f'{file}:{argument.lineno}: parameter {argument.arg} of runs() is {word}; '
                       f'expected {type_name(str | int | float)}')
      taken.append(Parameter(argument.arg, OPTIONS[word], default is None,
                             comment[1] if comment else ''))
  return taken


def _type_of(annotation: ast.expr | None, default: ast.expr | None) -> str:
  """The type of a parameter as its file writes it, `X | None` as X; without one its default's."""
  if annotation is not None:
    return ast.unparse(annotation).strip("'").removesuffix(' | None')
  with contextlib.suppress(ValueError):  # no literal
    value = ast.literal_eval(default) if default is not None else None
    return 'str' if value is None else type(value).__name__
  return 'str'


def load(file: Path, given: Mapping[str, Any] = types.MappingProxyType({}),
         placeholders: bool = False) -> Experiment:
  """Executes an experiment file and checks every run of it.

  Args:
    given: values of the file's own options by parameter name; None counts as not given.
    placeholders: name what is required and was not given after its option, and take 1 for a
      number, to list and explain.

  Raises:
    BadInput: no such file, not Python, no `runs`, a value of the wrong type, an unknown run, a
      cycle, an option that is required and missing.
  """
  module = _execute(file)
  runs, found = getattr(module, 'runs', None), 'sets no `runs`'
  if isinstance(runs, types.FunctionType):
    values = {name: value for name, value in given.items() if value is not None}
    missing = [one for one in parameters(file) if one.required and one.name not in values]
    if missing and not placeholders:
      raise BadInput(f'{file}: needs ' + ' and '.join(
        f'{one.option} {one.name.upper()}' for one in missing)
        + f' (`run {file} --help` explains)')
    with _told(file):
      runs = runs(**values | {one.name: one.name.upper() if one.kind is str else one.kind(1)
                              for one in missing})
    found = f'runs() returns {_shown(runs)}'
  if not isinstance(runs, dict) or not runs:
    raise BadInput(f"{file}: {found}; expected runs = {{'name': Language(…), …}}")
  sweep = getattr(module, 'sweep', None)
  if sweep is not None:
    of_sweep = lambda field: f'{file}: sweep' + f'.{field}' * bool(field)
    check_value(of_sweep, '', sweep, configs.Sweep)
    ranges.check(of_sweep, sweep)
  experiment = Experiment(file, runs, _lines(file), sweep)
  check(experiment)
  return experiment


def check(experiment: Experiment) -> None:
  """Types and references of every run, and that no run needs itself. Raises BadInput."""
  for name, config in experiment.runs.items():
    if not isinstance(name, str) or name in RESERVED or not re.fullmatch(
        r'[A-Za-z0-9][A-Za-z0-9_-]*', name):
      raise BadInput(f'{experiment.file}: {name!r} cannot name a run: letters, digits, _ and -, '
                     f"and not {', '.join(RESERVED)}")
    if type(config) not in KINDS:  # of a subclass nothing says how it is made
      raise BadInput(f'{experiment.where(name)} is {_shown(config)}; expected '
                     f"{', '.join(k.__name__ for k in KINDS[:-1])} or {KINDS[-1].__name__}")
    check_value(functools.partial(experiment.where, name), '', config, type(config))
    ranges.check(functools.partial(experiment.where, name), config)
    try:
      configs.check_run(config)
    except BadInput as error:
      raise BadInput(f'{experiment.where(name)}: {error}') from error
    if isinstance(config, configs.Language) and not config.init_from:
      model = config.model  # an own tokenizer's ids are not counted yet
      try:
        configs.check_model(dataclasses.replace(model, vocabulary=model.vocabulary or 1))
      except BadInput as error:
        where = experiment.where(name, 'model').removesuffix('.model')  # the message names it
        raise BadInput(f'{where}: {error}') from error
  for name in experiment.runs:
    _check_references(experiment, name)
  order(experiment, experiment.runs)


def references(config: configs.Run) -> dict[str, str]:
  """Role -> run it names; the entries of an Evaluate have the roles 'models.NAME'."""
  return {role: name for role, name in _named(config).items() if '/' not in name}


def folders(config: configs.Run) -> dict[str, str]:
  """Role -> model folder it names in the place of a run: a name with a slash is a folder."""
  return {role: name for role, name in _named(config).items() if '/' in name}


def kinds_of(config: configs.Run, role: str) -> tuple[type, ...]:
  """The kinds of run that a role may name."""
  return SAMPLED if role.startswith('models.') else ROLES[type(config)][role]


def _named(config: configs.Run) -> dict[str, str]:
  named = {role: getattr(config, role) for role in ROLES[type(config)]}
  if isinstance(config, configs.Evaluate):
    named |= {f'models.{name}': sampled.run for name, sampled in config.models.items()}
  # 'module:function' is a reward of the user's own, a tuple is files: neither is a model.
  return {
    role: run
    for role, run in named.items() if isinstance(run, str) and run and ':' not in run
  }


def order(experiment: Experiment, names: Iterable[str]) -> list[str]:
  """The named runs with everything they need, each after what it needs. Raises BadInput: unknown
  run, cycle.
  """
  done: list[str] = []

  def visit(name: str, path: tuple[str, ...]) -> None:
    if name in path:
      raise BadInput(
        f"{experiment.where(name)} needs itself: {' → '.join((*path[path.index(name):], name))}")
    if name not in done:
      for needed in references(experiment.runs[name]).values():
        visit(needed, (*path, name))
      done.append(name)

  for name in names:
    if name not in experiment.runs:
      raise BadInput(f'{experiment.file} has no run {name!r}{near(name, experiment.runs)}')
    visit(name, ())
  return done


def near(word: str, known: Iterable[str]) -> str:
  """'; did you mean a or b?', or what there is when nothing is near."""
  known = list(known)
  close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
  if close:
    return f"; did you mean {' or '.join(close)}?"
  listed = ', '.join(known) or 'none'
  return f'; there are: {listed}' if len(known) <= 30 else ''


def type_name(annotation: Any) -> str:
  """How a type is said to a user: 'int', 'int,int', 'str,…', 'true|false'."""
  if annotation is bool:
    return 'true|false'
  if typing.get_origin(annotation) is tuple:
    inner = typing.get_args(annotation)
    return f'{type_name(inner[0])},…' if inner[-1] is ... else ','.join(map(type_name, inner))
  if is_union(annotation):
    return ' or '.join(map(type_name, typing.get_args(annotation)))
  if typing.get_origin(annotation) is dict:
    return f'{{name: {type_name(typing.get_args(annotation)[1])}}}'
  return getattr(annotation, '__name__', str(annotation))


def is_union(annotation: Any) -> bool:
  """Whether a type is `A | B`."""
  return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _execute(file: Path) -> types.ModuleType:
  if not file.is_file():
    siblings = [str(p) for p in sorted(file.parent.glob('*.py'))] if file.parent.is_dir() else []
    raise BadInput(
      f'{file}: no such experiment file{near(str(file), siblings) if siblings else ""}')
  # Experiment files may import each other, by folder or as a sibling.
  for folder in (file.resolve().parent.parent, file.resolve().parent):
    if str(folder) not in sys.path:
      sys.path.append(str(folder))
  spec = importlib.util.spec_from_file_location(f'experiment_{file.stem}', file)
  if spec is None or spec.loader is None:
    raise BadInput(f'{file}: an experiment is a Python file, *.py')
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  with _told(file):
    spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
  """What goes wrong in an experiment file becomes a BadInput with its line."""
  try:
    yield
  except SyntaxError as error:
    raise BadInput(f'{error.filename or file}:{error.lineno}: {error.msg}') from error
  except UnicodeDecodeError as error:
    raise BadInput(f'{file}: is not UTF-8 text ({error.reason} at byte {error.start})') from error
  except BadInput as error:
    raise BadInput(f'{file}:{_line_of(error, file)}: {error}') from error
  except (Exception, SystemExit) as error:  # exit code 0 would say that all is made
    message = f'{type(error).__name__}: {error}'
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'",
                        message)
    kind = getattr(configs, unknown[1], None) if unknown else None
    if dataclasses.is_dataclass(kind):
      message = f'{unknown[1]} has no field {unknown[2]!r}' + near(
        unknown[2], [f.name for f in dataclasses.fields(kind)])
    raise BadInput(f'{file}:{_line_of(error, file)}: {message}') from error


def _line_of(error: BaseException, file: Path) -> int:
  """The last line of `file` that an exception went through."""
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if frame.lineno and Path(frame.filename).resolve() == file.resolve()]
  return lines[-1] if lines else 1


def _lines(file: Path) -> dict[tuple[str, ...], int]:
  """Lines of the entries of `runs = {…}` and of their keyword arguments, where written out; an
  entry of a run's `models` stands deeper in the file and may have the name of a run.
  """
  lines: dict[tuple[str, ...], int] = {}
  for node in ast.walk(ast.parse(file.read_text('utf-8-sig'))):
    entries = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
    for key, value in entries:
      named = isinstance(key, ast.Constant) and isinstance(value, ast.Call)
      if named and (key.value,) not in lines:
        lines[key.value,] = key.lineno
        lines |= {(key.value, k.arg): k.lineno for k in value.keywords if k.arg}
  return lines


def check_value(where: Callable[[str], str], field: str, value: Any, kind: Any) -> None:
  """Raises BadInput if a value, or one inside it, is not of the annotated type.

  Args:
    where: field -> the place in the file that the message names.
  """
  for inside, item, of in _parts(value, kind):
    check_value(where, f'{field}.{inside}' if field else inside, item, of)
  if not _fits(value, kind):
    one = '' if isinstance(value, tuple) or typing.get_origin(kind) is not tuple else (
      ', a tuple; of one it is (…,)')
    raise BadInput(f'{where(field)} is {_shown(value)}; expected {type_name(kind)}{one}')


def _parts(value: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
  """(name, value, annotation) of what a config, tuple or dict holds."""
  inner = typing.get_args(kind)
  if is_union(kind):
    kinds = [one for one in inner if _fits(value, one)]
    yield from _parts(value, kinds[0]) if kinds else ()
  elif dataclasses.is_dataclass(kind) and isinstance(value, kind):
    for name, of in typing.get_type_hints(kind).items():
      yield name, getattr(value, name), of
  elif isinstance(value, dict) and typing.get_origin(kind) is dict:
    for name, item in value.items():
      yield str(name), item, inner[1]
  elif isinstance(value, tuple) and inner:
    for i, item in enumerate(value):
      yield str(i), item, inner[0 if inner[-1] is ... else min(i, len(inner) - 1)]


def _fits(value: Any, kind: Any) -> bool:
  """Whether a value is of a type, what it holds left aside; an int is a float, a bool is no int."""
  inner, origin = typing.get_args(kind), typing.get_origin(kind)
  if is_union(kind):
    return any(_fits(value, one) for one in inner)
  if origin is tuple and inner[-1] is not ...:
    return isinstance(value, tuple) and len(value) == len(inner)
  if isinstance(value, bool):
    return kind is bool
  return isinstance(value, (int, float) if kind is float else origin or kind)


def _check_references(experiment: Experiment, name: str) -> None:
  config = experiment.runs[name]
  for role, folder in folders(config).items():
    if not set(kinds_of(config, role)) & {*SAMPLED, configs.Reward}:
      raise BadInput(f'{experiment.where(name, role)} names the folder {folder!r}; expected a run')
  for role, needed in references(config).items():
    kinds = kinds_of(config, role)
    there = [other for other, of in experiment.runs.items() if isinstance(of, kinds)]
    where, hint = experiment.where(name, role), near(needed, there) if there else ''
    if needed not in experiment.runs:
      raise BadInput(f'{where} names the run {needed!r}, which the file has not{hint}')
    if not isinstance(experiment.runs[needed], kinds):
      raise BadInput(f'{where} names {needed!r}, a {type(experiment.runs[needed]).__name__}; '
                     f"expected {' or '.join(kind.__name__ for kind in kinds)}{hint}")
  if isinstance(config, configs.Evaluate):
    for entry, sampled in config.models.items():
      if not re.fullmatch(r'[^/.\\\s][^/\\]*', str(entry)):  # it names a file of the run
        raise BadInput(f'{experiment.where(name, "models")} has the entry {entry!r}; expected a '
                       'name without slashes that does not begin with a dot')
      if not sampled.run:
        raise BadInput(f'{experiment.where(name, "models")}.{entry} names no run')
    if config.against not in config.models:
      raise BadInput(f'{experiment.where(name, "against")} is {config.against!r}, not an entry of '
                     f'its models{near(config.against, config.models)}')


def _shown(value: Any) -> str:
  text = repr(value)
  return f'{text if len(text) <= 60 else text[:57] + "…"} ({type(value).__name__})'
