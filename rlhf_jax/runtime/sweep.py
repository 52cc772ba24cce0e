"""A sweep: the points of a grid as runs that share models and executables, all measured alike.

Enter: an Experiment with a `sweep`, a Place. Leave: a folder a point, as any run has it; start/,
what is measured of the model they start from; sweep.parquet and summary.json.
The coefficients and learning rates go into a run's first state as arguments, so points of the same
shapes are one program. A point that fails is written down, and the rest goes on.
Where a run is evaluated: after its first and its last step, and after each step that follows one
at which √KL of the rollouts, at its highest so far, passed a multiple of `spacing`. That is a
function of the rows of metrics.jsonl before the step, so a run that was killed is evaluated where
one that was not is.
Left out: several processes at one point; points side by side in one process (launch/sweep.sh).
"""

import dataclasses
import json
import logging
import math
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.data import builders, records, store
from rlhf_jax.data.builders import Place
from rlhf_jax.evaluation import along, start, study
from rlhf_jax.runtime import (
  checkpoint,
  executables,
  grid,
  inputs,
  loop,
  meshes,
  models,
  tables,
  workdir,
)
from rlhf_jax.runtime import experiment as experiments
from rlhf_jax.runtime.board import Board
from rlhf_jax.runtime.grid import Point
from rlhf_jax.stages import ppo
from rlhf_jax.stages.stage import Parent, Stage

logger = logging.getLogger('rlhf_jax')


def run(experiment: experiments.Experiment, place: Place,
        options: loop.Options = loop.Options(), only: str = '') -> dict[str, str]:
  """Makes the points of a sweep, or the one named, with all they rest on.

  Returns:
    Point -> why it failed. When no point is left to be made, sweep.parquet and summary.json are
    written.

  Raises:
    BadInput: before any work, for a sweep file that cannot be, or a workdir that holds a point of
      another configuration.
  """
  points = grid.points(experiment)
  wanted = grid.wanted(experiment, points, only)
  work = _Sweep(experiment, points, place, options)
  work.prepare(list(wanted.values()))
  there = [name for name in wanted if (place.workdir / name / 'finished.json').exists()]
  with Board({name: point.config.updates for name, point in wanted.items()}, there) as board:
    failed = _made(work, list(wanted.values()), board)
  with workdir.waiting(place.workdir):
    made = [work.read(point) for point in points.values()]
    if not only or all(point.status != 'unfinished' for point in made):
      starts = {key: found for point in points.values()
                if (key := work.start_of(point)) and (found := work.started(point)) is not None}
      tables.write(place.workdir, made, starts, work.told())
  return failed


def _made(work: '_Sweep', points: Sequence[Point], board: Board) -> dict[str, str]:
  """Makes points, those that another process is making after the others; why they failed."""
  failed, told = {}, False
  while points:
    busy = []
    for point in points:
      try:
        reason = work.make(point, board)
      except workdir.Busy:
        busy.append(point)
        if len(points) > 1 and not told:
          logger.info('%s: another process is making it; the others first', point.name)
        continue
      if reason:
        failed[point.name] = reason
        logger.warning('%s failed: %s', point.name, reason)
    points = busy
    told = bool(busy) and workdir.wait(work.place.workdir / busy[0].name, told)
  return failed


class Spaced:
  """Which steps of a run are evaluated, see above; kl is that of metrics.jsonl."""

  def __init__(self, path: Path, spacing: float, last: int):
    self._path, self._spacing, self._last = path, spacing, last
    self._read = 0  # bytes
    self._levels: list[int] = []  # of each row: multiples of the spacing passed so far

  def due(self, step: int) -> bool:
    """Whether the state after `step` is evaluated; rows up to step − 1 are in the file."""
    self._catch_up()
    passed = [0, 0, *self._levels[:step - 1]]
    return step in (1, self._last) or passed[-1] > passed[-2]

  def _catch_up(self) -> None:
    with store.newest(self._path).open('rb') as file:
      file.seek(self._read)
      for line in file:
        kl = json.loads(line).get('kl') or 0.0
        level = int(math.sqrt(max(kl, 0.0)) / self._spacing)
        self._levels.append(max(level, *self._levels[-1:], 0))
        self._read += len(line)


class _Sweep:
  """What the points of one sweep share, made when the first of them needs it."""

  def __init__(self, experiment: experiments.Experiment, points: dict[str, Point], place: Place,
               options: loop.Options):
    self.experiment, self.points, self.place = experiment, points, place
    self.options, self.sweep = options, experiment.sweep
    self.hashes: dict[str, str] = {}  # of the runs and model folders that points rest on
    self._parents: dict[str, Parent] = {}
    self._starts: dict[str, tuple[along.Fixed, start.Samples]] = {}
    self._scores: dict[str, along.Score] = {}
    self._spelt: dict[str, str] = {}  # hash of how points are measured -> the workdir's for it
    self._broken: dict[str, str] = {}  # starts that could not be measured: why

  # ---- before the points

  def prepare(self, wanted: list[Point]) -> None:
    """The runs that the points rest on, and every check that needs no model."""
    place, folder = self.place, self.place.workdir
    needed = {name for point in self.points.values()
              for name in experiments.references(point.config).values()}
    needed |= {self.sweep.stand_in} - {''}
    bases = experiments.order(self.experiment, sorted(needed))
    if any(not point.config.evaluation_prompts for point in wanted):
      raise BadInput(f"{self.experiment.where(self.sweep.base)}: a sweep measures every point on "
                     'evaluation_prompts; name some')
    builders.require(self.sweep.text, place)
    left = [p for p in wanted if not (folder / p.name / 'finished.json').exists()]
    inputs.check({point.name: point.config for point in left}, place)
    told = False
    while bases:  # none named would be all
      try:
        loop.run_file(self.experiment, bases, place, self.options)
        break
      except workdir.Busy:
        told = workdir.wait(folder, told)
    for name in bases if left else ():
      inputs.warn(name, self.experiment.runs[name], place)
    described = loop.descriptions(self.experiment, bases, place)
    self.hashes = {name: described[name]['hash'] for name in bases} | {
      named: models.fingerprint(builders.locate(named, place)) for point in self.points.values()
      for named in experiments.folders(point.config).values()}
    for point in self.points.values():
      self._check_same(point)
    executables.keep(folder)
    with workdir.waiting(folder):
      workdir.write_json(folder / 'sweep.json', self.told())

  def told(self) -> dict[str, Any]:
    """What sweep.json says: the sweep's own settings, and what and where its points are."""
    settings = dataclasses.asdict(self.sweep)
    return {'base': settings.pop('base'), 'grid': settings.pop('grid'), 'settings': settings,
            'judge': self._judge(), 'runs': {
              name: {'values': dict(point.values), 'start': self.start_of(point)}
              for name, point in self.points.items()}}

  def _judge(self) -> str:
    """'judge', 'second reward model' or ''."""
    base = self.experiment.runs[self.sweep.base]
    return 'judge' if base.judge else 'second reward model' if self.sweep.stand_in else ''

  def described(self, point: Point) -> dict[str, Any]:
    """What a point's config.json says; how it is measured counts as a parent."""
    named = experiments.references(point.config) | experiments.folders(point.config)
    needed = {role: (name, self.hashes[name]) for role, name in named.items()}
    return workdir.describe(point.config, needed | {
      'measured': ('the way it is measured', self._measured(point))})

  def _check_same(self, point: Point) -> bool:
    return workdir.check_same(self.place.workdir / point.name, self.described(point),
                              option=self.sweep.base, grid=tuple(point.values))

  def _measured(self, point: Point) -> str:
    """How a point is measured, as grid.measured hashes it: the hash that the workdir has a start
    of, if it has one, since 1 and 1.0 are the same.
    """
    first, *others = grid.measured(self.sweep, point.config, self.hashes)
    if first not in self._spelt:
      there = [one for one in (first, *others) if (
        self.place.workdir / 'start' / _start_folder(point, one)).exists()]
      self._spelt[first] = (there or [first])[0]
    return self._spelt[first]

  # ---- the model they start from

  def start_of(self, point: Point) -> str:
    """'FOLDER/REWARD' below start/: whose samples, and which reward model chose among them."""
    return f'{_start_folder(point, self._measured(point))}/{_file_name(point.config.reward)}'

  def started(self, point: Point) -> dict[str, Any] | None:
    """What was measured of a point's start; None if nothing was yet."""
    folder, name = self.start_of(point).split('/')
    return start.read(self.place.workdir / 'start' / folder, name, self._of(point))

  def _of(self, point: Point) -> str:
    reward = self.hashes.get(point.config.reward, point.config.reward)
    return f'{self._measured(point)} {reward} {self.sweep.best_of}'

  def parent(self, name: str, mesh: jax.sharding.Mesh) -> Parent:
    """A model laid out on a mesh, read once."""
    key = f'{name} {mesh.shape}'
    if key not in self._parents:
      self._parents[key] = (models.load(builders.locate(name, self.place), mesh) if '/' in name
                            else checkpoint.load_parent(self.place.workdir / name, mesh=mesh))
    return self._parents[key]

  def parents(self, config: configs.PPO) -> dict[str, Parent]:
    """Role -> model."""
    named = experiments.references(config) | experiments.folders(config)
    mesh = meshes.make_mesh(config.mesh)
    return {role: self.parent(name, mesh) for role, name in named.items()}

  def fixed(self, point: Point) -> tuple[along.Fixed, start.Samples]:
    """What a point is measured with: sampled and judged for the first that needs it."""
    key, config, sweep = self.start_of(point).split('/')[0], point.config, self.sweep
    if key not in self._starts:
      policy = self.parents(config)['policy']
      sizes = {'prompt_length': config.prompt_length, 'response_length': config.response_length,
               'batch': sweep.batch}
      limits = builders.Limits.like(config)
      prompts, _ = builders.read_prompts(config.evaluation_prompts, policy.tokenizer, self.place,
                                         limits)
      judge = records.load_judge(config.judge) if config.judge else None
      if judge is None and sweep.stand_in:
        second = self.parent(sweep.stand_in, meshes.make_mesh(config.mesh))
        judge = along.stand_in(second, sizes)
      rows = builders.build(sweep.text, policy.tokenizer, self.place,
                            limits).train if sweep.text else ()
      fixed = along.Fixed(
        config=config, model=dataclasses.replace(policy.model, dropout=0.0),
        tokenizer=policy.tokenizer, start=policy.params,
        prompts=prompts[:config.evaluation_size], judge=judge,
        text=[rows[index] for index in range(len(rows))], samples=sweep.samples,
        batch=sweep.batch)
      self._starts[key] = fixed, start.draw(
        fixed, self.place.workdir / 'start' / key, self._measured(point), sweep.best_of, sweep.seed)
    return self._starts[key]

  def score(self, point: Point) -> along.Score:
    """The reward of a point as a function of texts."""
    key = self.start_of(point)
    if key not in self._scores:
      fixed, _ = self.fixed(point)
      self._scores[key] = along.scorer(
        point.config, self.parents(point.config).get('reward'), fixed.tokenizer, fixed.sizes)
    return self._scores[key]

  # ---- a point

  def read(self, point: Point) -> study.Made:
    """A point as it lies there; trained, but without its start, it is not finished."""
    made = tables.read(self.place.workdir, point, self.start_of(point))
    if made.status == 'finished' and self.started(point) is None:
      failed = workdir.read_json(self._failure(point))
      return dataclasses.replace(made, status='failed' if failed else 'unfinished',
                                 reason=(failed or {}).get('reason', ''))
    return made

  def make(self, point: Point, board: Board) -> str:
    """Trains a point; returns why it failed, '' if it did not. A full disk is not its fault.

    Raises: Busy while another process is making it.
    """
    folder = self.place.workdir / point.name
    if (folder / 'finished.json').exists():
      reason = self._again(point)
      board.ended(point.name, 'failed' if reason else 'finished')
      return reason
    with workdir.lock(folder):
      if (folder / 'finished.json').exists():  # another process was quicker
        return self.make(point, board)
      (folder / 'failed.json').unlink(missing_ok=True)
      if not self._check_same(point):
        workdir.write_json(folder / 'config.json', self.described(point))
      try:
        with workdir.Stopwatch(folder).ticking() as watch:
          finished = self._train(point, watch, board)
      except inputs.Changed:  # the others were begun with other data too
        raise
      except Exception as error:
        reason, trace = _why(error)
        workdir.write_json(folder / 'failed.json', {'reason': reason, 'traceback': trace})
        board.ended(point.name, 'failed')
        return reason
      workdir.write_json(folder / 'finished.json', {'seconds': round(watch.seconds, 3)} | finished)
    board.ended(point.name, 'finished')
    return ''

  def _again(self, point: Point) -> str:
    """Measures the start of a finished point if `best_of` is another now; why it could not."""
    key = self.start_of(point)
    if self.started(point) is None and key not in self._broken:
      try:
        with jax.set_mesh(meshes.make_mesh(point.config.mesh)), workdir.waiting(self.place.workdir):
          self._start(point)
      except Exception as error:
        reason, trace = _why(error)
        self._broken[key] = f'its start: {reason}'
        workdir.write_json(self._failure(point), {'reason': self._broken[key], 'traceback': trace})
    return self._broken.get(key, '')

  def _failure(self, point: Point) -> Path:
    return self.place.workdir / 'start' / f'{self.start_of(point)}.failed.json'

  def _train(self, point: Point, watch: workdir.Stopwatch, board: Board) -> dict[str, Any]:
    config, parents = point.config, self.parents(point.config)
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh), workdir.waiting(self.place.workdir):
      inputs.settle(self.place.workdir / point.name, config, self.place)
      self._start(point)
      # Checks the numbers that `neutral` hides, and builds the data while no other point can.
      ppo.make(dataclasses.replace(config, evaluation_prompts=()), parents, self.place)
    neutral, numbers = _neutral(config)
    options = dataclasses.replace(self.options, progress=board.progress)
    return loop.train(
      point.name, neutral, parents | {'numbers': Parent(None, None, numbers)}, self.place, watch,
      options, adapted=lambda stage: self._adapted(stage, point))

  def _start(self, point: Point) -> None:
    """Measures a point's start, unless it was; the caller holds the workdir, and set the mesh."""
    folder = self.start_of(point).split('/')[0]
    inputs.settle_measures(self.place.workdir / 'start' / folder / 'samples', point.config,
                           self.sweep.text, self.place)
    fixed, samples = self.fixed(point)
    if self.started(point) is None:
      found, rows = start.baseline(fixed, samples, self.score(point), self.sweep.seed)
      folder, name = self.start_of(point).split('/')
      start.write(self.place.workdir / 'start' / folder, name, self._of(point), found, rows)
      self._failure(point).unlink(missing_ok=True)

  def _adapted(self, stage: Stage, point: Point) -> Stage:
    """The stage with coefficients that are arguments, and with a sweep's evaluations."""
    fixed, samples = self.fixed(point)
    score = self.score(point)
    key = jax.random.fold_in(jax.random.key(self.sweep.seed), 2 + point.config.seed)
    spaced = Spaced(self.place.workdir / point.name / 'metrics.jsonl', self.sweep.spacing,
                    stage.steps)

    def init(key, params):
      return stage.init(key, params).replace(**params['numbers'])

    def evaluate(state, frozen, step):
      if not spaced.due(step):
        return None
      return along.measure(fixed, state.policy.params, score, samples.references, key)

    return dataclasses.replace(stage, init=init, evaluate=evaluate, evaluate_every=1)


def _file_name(text: str) -> str:
  return ''.join(c if c.isalnum() or c in '._-' else '_' for c in text)


def _start_folder(point: Point, measured: str) -> str:
  return f'{_file_name(point.config.policy)}-{measured[:8]}'


def _why(error: Exception) -> tuple[str, str | None]:
  """A point's failure in a line, and its traceback where that tells more; raises a full disk."""
  if workdir.is_no_space(error):
    raise error
  if isinstance(error, BadInput | configs.OutOfReach):
    return str(error), None
  return f'{type(error).__name__}: {error}', traceback.format_exc()


def _neutral(config: configs.PPO) -> tuple[configs.PPO, dict[str, np.float32]]:
  """The config without what is data in the state, and that data: equal shapes, equal programs."""
  numbers = {'kl_coef': config.kl_coef, 'ptx_coef': config.ptx_coef,
             'policy_learning_rate': config.policy_optimizer.learning_rate,
             'value_learning_rate': config.value_optimizer.learning_rate}
  without = {name: dataclasses.replace(getattr(config, name), learning_rate=0.0)
             for name in ('policy_optimizer', 'value_optimizer')}
  neutral = dataclasses.replace(config, kl_coef=0.0, ptx_coef=0.0, evaluation_prompts=(),
                                **without)
  return neutral, {name: np.float32(value) for name, value in numbers.items()}
