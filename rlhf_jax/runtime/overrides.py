"""`--RUN.field value` on the command line, typed from the annotations of configs.py; and the text
of `run FILE --help`.

Enter: the words of the command line. Leave: an Experiment with the fields replaced, or a BadInput
naming near misses.
Left out: making runs, or Source objects whole: an experiment file is a page of Python, write
another.
"""

import ast
import dataclasses
import functools
import inspect
import math
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_jax.configs import BadInput, Mesh
from rlhf_jax.runtime import experiment as experiments
from rlhf_jax.runtime import ranges
from rlhf_jax.runtime.experiment import Experiment, near, type_name


def split(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Takes `--a.b value` and `--a.b=value` out of a command line.

  Returns:
    The words that are left, and the overrides (path, value as text) in order.
  """
  left: list[str] = []
  found: list[tuple[str, str]] = []
  pending = iter(words)
  for word in pending:
    # An entry of Evaluate's models may have blanks in its name.
    match = re.fullmatch(r'--([^=.\s]+\.[^=]*[^=\s])(?:=(.*))?', word, re.DOTALL)
    if not match:
      left.append(word)
      continue
    value = match[2] if match[2] is not None else next(pending, None)
    if value is None or (match[2] is None and value.startswith('--')):
      raise BadInput(f'--{match[1]} needs a value')
    found.append((match[1], value))
  return left, found


def apply(experiment: Experiment,
          overrides: Sequence[tuple[str, str]],
          seed: int | None = None, mesh: str | None = None) -> Experiment:
  """The experiment with `seed` and `mesh` ('2,1,1') in every run and then the overrides, checked
  again as a whole; of a sweep file --sweep.field too.
  """
  runs, sweep = dict(experiment.runs), experiment.sweep
  if mesh is not None:
    shape = _read(mesh, tuple[int, int, int], '--mesh', 'D,F,T: three numbers, such as 2,1,1')
    runs = {name: dataclasses.replace(config, mesh=Mesh(*shape)) for name, config in runs.items()}
  if seed is not None:
    runs = {name: dataclasses.replace(config, seed=seed) for name, config in runs.items()}
  for path, text in overrides:
    run, _, field = path.partition('.')
    if run == 'sweep' and sweep is not None:
      sweep = _replaced(sweep, type(sweep), field.split('.'), text, f'--{path}')
      continue
    if run not in runs:
      raise BadInput(f'--{path}: {experiment.file} has no run {run!r}{near(run, runs)}')
    runs[run] = _replaced(runs[run], type(runs[run]), field.split('.'), text, f'--{path}')
  changed = dataclasses.replace(experiment, runs=runs, sweep=sweep)
  experiments.check(changed)
  if sweep is not None:  # as it stands in the file it was checked
    ranges.check(lambda field: f'--sweep.{field}', sweep)
  return changed


def fields(config: Any, prefix: str = '', kind: Any = None) -> Iterator[tuple[str, Any, Any, str]]:
  """(path, type, value, doc) of every field that an override can set, depth first in the order of
  configs.py.
  """
  kind = type(config) if kind is None else kind
  for name, annotation in typing.get_type_hints(kind).items():
    value, doc = getattr(config, name), docs(kind).get(name, '')
    path = f'{prefix}{name}'
    if dataclasses.is_dataclass(annotation):
      yield from fields(value, f'{path}.', annotation)
      continue
    if not _holds_configs(annotation) or isinstance(value, str):
      yield path, annotation, value, doc
      continue
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
      yield from fields(item, f'{path}.{key}.')


@functools.cache
def docs(kind: type) -> dict[str, str]:
  """The comment behind each field of a config class, read from its source."""
  source = inspect.getsource(kind)
  lines = source.splitlines()
  body = ast.parse(source).body[0].body
  comments = {node.target.id: re.search(r'  # (.*)$', lines[node.end_lineno - 1])
              for node in body if isinstance(node, ast.AnnAssign)}
  return {name: comment[1] for name, comment in comments.items() if comment}


def explain(experiment: Experiment) -> str:
  """Every field of every run, and of a sweep: path, type, present value and documentation, one a
  line.
  """
  parts = []
  of_all = experiment.runs | ({'sweep': experiment.sweep} if experiment.sweep is not None else {})
  for name, config in of_all.items():
    rows = [(f'--{name}.{path}', type_name(kind), _written(value), doc)
            for path, kind, value, doc in fields(config) if 'dict[' not in str(kind)]
    width = max(len(path) for path, *_ in rows)
    first = ' '.join((inspect.getdoc(type(config)) or '').split()).split('. ')[0]
    parts.append(f'\n{name}: {type(config).__name__}. {first.removesuffix(".")}.')
    parts += [f'  {path:<{width}}  {kind} = {value}' + (f'  # {doc}' if doc else '')
              for path, kind, value, doc in rows]
  return '\n'.join(parts)


def _replaced(config: Any, kind: Any, path: list[str], text: str, option: str) -> Any:
  """`config`, of the annotated `kind`, with the value at `path` read from `text`."""
  if not path:
    return _read(text, kind, option)
  head, rest = path[0], path[1:]
  if isinstance(config, dict):  # names of its own, which may have dots in them
    for length in range(len(path), 1, -1):
      if '.'.join(path[:length]) in config:
        head, rest = '.'.join(path[:length]), path[length:]
        break
  inside: dict[str, tuple[Any, Any]] = {}  # name -> (value, annotation)
  if dataclasses.is_dataclass(config):
    hints = typing.get_type_hints(type(config))
    inside = {name: (getattr(config, name), of) for name, of in hints.items()}
  elif isinstance(config, dict):
    inside = {name: (item, typing.get_args(kind)[1]) for name, item in config.items()}
  elif isinstance(config, tuple) and _holds_configs(kind):
    inside = {str(i): (item, type(item)) for i, item in enumerate(config)}
  if head not in inside:
    above = option.removesuffix('.'.join(path)).removesuffix('.')
    above += f' ({type(config).__name__})' if dataclasses.is_dataclass(config) else ''
    raise BadInput(f'{option}: {above} has no field {head!r}'
                   f'{near(head, inside) if inside else ""} (`run FILE --help` lists every field)')
  item = _replaced(*inside[head], rest, text, option)
  if isinstance(config, dict):
    return config | {head: item}
  if isinstance(config, tuple):
    return (*config[:int(head)], item, *config[int(head) + 1:])
  return dataclasses.replace(config, **{head: item})


def _read(text: str, kind: Any, option: str, expected: str = '') -> Any:
  """A value of an annotated type from a word. Raises BadInput that says what was expected."""
  if dataclasses.is_dataclass(kind) or (_holds_configs(kind) and not experiments.is_union(kind)):
    raise BadInput(f'{option}: name a field inside it, such as {option}.{_example(kind)} '
                   f'(`run FILE --help` lists every field)')
  if 'dict[' in str(kind):
    raise BadInput(f'{option}: is no word; set it in the experiment file')
  try:
    return _parsed(text, kind)
  except ValueError:
    raise BadInput(f'{option}: {text!r} is not {expected or type_name(kind)}') from None


def _parsed(text: str, kind: Any) -> Any:
  if experiments.is_union(kind):
    return _parsed(text, typing.get_args(kind)[0])
  if typing.get_origin(kind) is tuple:
    inner = typing.get_args(kind)
    whole = re.fullmatch(r'\((.*)\)|\[(.*)\]', text.strip(), re.DOTALL)
    listed = text if whole is None else whole[1] or whole[2] or ''
    items = [item.strip(' \'"') for item in listed.split(',') if item.strip()]
    of = inner[:1] * len(items) if inner[-1] is ... else inner
    if len(of) != len(items):
      raise ValueError(text)
    return tuple(_parsed(item, one) for item, one in zip(items, of, strict=True))
  if kind is str:
    return text
  if kind is bool:
    if text.lower() not in ('true', 'false'):
      raise ValueError(text)
    return text.lower() == 'true'
  number = float(text)
  if not math.isfinite(number) or (kind is int and not number.is_integer()):
    raise ValueError(text)
  return kind(number)  # 1e6 is a number of steps too


def _holds_configs(kind: Any) -> bool:
  """Whether a type is a tuple or dict of configs (Sources, Sampled), whose entries have fields of
  their own.
  """
  return any(dataclasses.is_dataclass(a) or _holds_configs(a) for a in typing.get_args(kind))


def _example(kind: Any) -> str:
  """A field inside a type of configs: 'layers', '0.kind', 'NAME.run'."""
  if dataclasses.is_dataclass(kind):
    return dataclasses.fields(kind)[0].name
  inside = next(a for a in typing.get_args(kind) if dataclasses.is_dataclass(a))
  return f"{'NAME' if typing.get_origin(kind) is dict else '0'}.{_example(inside)}"


def _written(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, tuple):
    return ','.join(map(_written, value)) or '()'
  return repr(value) if value == '' or not isinstance(value, str) else value
