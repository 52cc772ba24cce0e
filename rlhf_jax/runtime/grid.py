"""A sweep file's grid as named points, each a checked PPO config.

Enter: an Experiment that holds a `sweep`. Leave: points by name, in the order of the grid. Plain
Python, no jax: `sweep FILE --list` answers at once.
Left out: the work (sweep.py); grids that are not products of lists of values.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.runtime import experiment as experiments
from rlhf_jax.runtime.experiment import Experiment, near

RESERVED = ('start', 'figures')  # folders of a sweep's workdir beside its points
LONGEST = 255  # bytes of a folder's name


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a sweep."""
  name: str  # of its folder
  values: Mapping[str, Any]  # every field that the sweep varies -> its value here
  config: configs.PPO


def points(experiment: Experiment) -> dict[str, Point]:
  """The points of a sweep file by name; equal ones once.

  Raises:
    BadInput: no sweep, an unknown base, field or stand-in, a value of the wrong type.
  """
  sweep, file = experiment.sweep, experiment.file
  if sweep is None:
    raise BadInput(f'{file}: sets no `sweep`; expected sweep = Sweep(base=…, grid=({{…}},))')
  ppo = [name for name, config in experiment.runs.items() if isinstance(config, configs.PPO)]
  if sweep.base not in ppo:
    raise BadInput(f'{file}: sweep.base is {sweep.base!r}, no PPO run of the file'
                   f'{near(sweep.base, ppo)}')
  _check(experiment)
  found: dict[str, Point] = {}
  fields = dict.fromkeys(field for grid in sweep.grid for field in grid)
  for grid in sweep.grid:
    for values in itertools.product(*grid.values()):
      chosen = dict(zip(grid, values, strict=True))
      config = experiment.runs[sweep.base]
      for field, value in chosen.items():
        config = _replaced(config, field.split('.'), value, f'{file}: sweep.grid: {field!r}')
      if any(config == other.config for other in found.values()):
        continue
      # The base run in its place tells what is wrong with it as of any run.
      experiments.check(dataclasses.replace(
        experiment, runs={**experiment.runs, sweep.base: config}))
      name = _name(chosen)
      if name in found or name in experiment.runs:
        raise BadInput(f'{file}: sweep.grid has two points named {name!r}')
      found[name] = Point(name, {field: _read(config, field) for field in fields}, config)
  _check_draws(sweep.draw_of, found, file)
  return found


def wanted(experiment: Experiment, points: Mapping[str, Point], only: str) -> dict[str, Point]:
  """The point of that name, all where it is ''. Raises BadInput: there is none."""
  if only and only not in points:
    raise BadInput(f'{experiment.file}: the sweep has no point {only!r}{near(only, points)}')
  return {only: points[only]} if only else dict(points)


def measured(sweep: configs.Sweep, config: configs.PPO, hashes: Mapping[str, str]) -> list[str]:
  """A hash of all that the samples of a point's start, and its evaluations, depend on: with whole
  numbers written as floats first, then in the other ways that a file may write them.

  Args:
    hashes: of the runs and model folders that a point names.
  """
  same = dataclasses.asdict(sweep)
  for field in ('base', 'grid', 'best_of', 'draw_of'):
    same.pop(field)
  found = []
  for spacing in _spellings(sweep.spacing):
    for temperature in _spellings(config.temperature):
      of = [same | {'spacing': spacing}, hashes.get(config.policy, config.policy),
            hashes.get(sweep.stand_in, ''), config.evaluation_size, config.judge,
            config.prompt_length, config.prompt_cut, config.response_length, config.text_length,
            temperature, [dataclasses.asdict(source) for source in config.evaluation_prompts]]
      text = json.dumps(of, sort_keys=True)
      found.append(hashlib.sha256(text.encode()).hexdigest()[:16])
  return found


def _spellings(number: float) -> list[float]:
  return [float(number), *([int(number)] if float(number).is_integer() else [])]


def check_overrides(experiment: Experiment, paths: Iterable[str]) -> None:
  """BadInput for a field of the base run that an option sets, and every grid again."""
  sweep = experiment.sweep
  for path in paths:
    run, _, field = path.partition('.')
    if run == sweep.base and sweep.grid and all(field in grid for grid in sweep.grid):
      raise BadInput(f'--{path}: has no effect, since sweep.grid in {experiment.file} sets {field} '
                     'at every point; change it there')


def _check_draws(draw_of: Mapping[str, str], points: Mapping[str, Point], file: Any) -> None:
  """BadInput for two draws of one thing that no seed tells apart."""
  known: dict[tuple[Any, ...], str] = {}
  for name, point in points.items():
    told = tuple(draw_of.get(value, value) if isinstance(value, str) else value
                 for value in point.values.values())
    if known.setdefault(told, name) != name:
      raise BadInput(f'{file}: sweep.draw_of: {known[told]!r} and {name!r} are draws of one thing '
                     'with one seed; expected a seed of its own for each draw')


def _check(experiment: Experiment) -> None:
  """BadInput for what is wrong with a sweep's own fields."""
  sweep, file = experiment.sweep, experiment.file
  if not sweep.grid:
    raise BadInput(f"{file}: sweep.grid is empty; expected ({{'kl_coef': (0.0, 0.02)}},)")
  for grid in sweep.grid:
    if not grid:
      raise BadInput(f'{file}: sweep.grid holds a grid without a field; leave it out')
    for field, values in grid.items():
      if not isinstance(field, str):
        raise BadInput(f'{file}: sweep.grid has the key {field!r}; expected a field of '
                       f'{sweep.base!r} in quotes')
      if not values:
        raise BadInput(f'{file}: sweep.grid: {field!r} has no values')
      odd = [value for value in values if not isinstance(value, str | bool | int | float)]
      if odd:
        raise BadInput(f'{file}: sweep.grid: {field!r} takes {type(odd[0]).__name__} values; '
                       "expected numbers or texts, of a field inside it such as 'mesh.fsdp'")
  for field, least in (('samples', 1), ('best_of', 0), ('batch', 1)):
    if getattr(sweep, field) < least:
      raise BadInput(f'{file}: sweep.{field} is {getattr(sweep, field)}; expected {least} or more')
  if sweep.spacing <= 0:
    raise BadInput(f'{file}: sweep.spacing is {sweep.spacing}; expected a positive number')
  rewards = [name for name, run in experiment.runs.items() if isinstance(run, configs.Reward)]
  if sweep.stand_in and sweep.stand_in not in rewards:
    raise BadInput(f'{file}: sweep.stand_in is {sweep.stand_in!r}, no Reward run of the file'
                   f'{near(sweep.stand_in, rewards)}')
  for name, other in sweep.draw_of.items():
    for run in (name, other):
      if run not in rewards:
        raise BadInput(f'{file}: sweep.draw_of names {run!r}, no Reward run of the file'
                       f'{near(run, rewards)}')
    if sweep.draw_of.get(other, other) != other:
      raise BadInput(f'{file}: sweep.draw_of: {name!r} is a draw of {other!r}, which is a draw '
                     'itself; name what both are draws of')
  taken = [name for name in experiment.runs if name in RESERVED]
  if taken:
    raise BadInput(f'{experiment.where(taken[0])}: a sweep keeps this name for itself')


def _replaced(config: Any, path: list[str], value: Any, where: str) -> Any:
  known = [field.name for field in dataclasses.fields(config)]
  if path[0] not in known:
    raise BadInput(f'{where}: {type(config).__name__} has no field {path[0]!r}'
                   f'{near(path[0], known)}')
  if path[1:]:
    inside = getattr(config, path[0])
    if not dataclasses.is_dataclass(inside):
      raise BadInput(f'{where}: {path[0]} has no fields')
    value = _replaced(inside, path[1:], value, where)
  return dataclasses.replace(config, **{path[0]: value})


def _read(config: Any, field: str) -> Any:
  for name in field.split('.'):
    config = getattr(config, name)
  return config


def _name(values: Mapping[str, Any]) -> str:
  """'kl_coef_0.02-seed_1', fit for a folder on any file system: a long one ends in a hash."""
  shown = (f'{value:g}' if isinstance(value, float) else str(value) for value in values.values())
  joined = '-'.join(f'{field}_{value}' for field, value in zip(values, shown, strict=True))
  name = re.sub(r'[^A-Za-z0-9._+-]+', '_', joined)
  if len(name) > LONGEST:
    name = f'{name[:LONGEST - 17]}-{hashlib.sha256(joined.encode()).hexdigest()[:16]}'
  return name
