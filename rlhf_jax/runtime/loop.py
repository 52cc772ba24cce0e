"""From an experiment to finished runs: the order of work, and the only training loop.

Enter: an Experiment, the names of wanted runs, a Place. Leave: their folders, and what results.json
will say.
Everything is a function of (config, seed, step): batch t is stage.batches(t), its key
fold_in(key(seed), t). So a run that was killed goes on from its newest whole checkpoint and ends
with the same bits. Only the moment of a save depends on the clock: several processes agree on it.
Left out: how they do (processes.py); what a step computes (stages/).
"""

import concurrent.futures
import dataclasses
import gc
import importlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import configs
from rlhf_jax.data import builders, processes
from rlhf_jax.data.builders import Place
from rlhf_jax.evaluation import judged
from rlhf_jax.model import sharding, transformer
from rlhf_jax.runtime import (
  checkpoint,
  executables,
  inputs,
  meshes,
  models,
  pages,
  results,
  workdir,
)
from rlhf_jax.runtime import experiment as experiments
from rlhf_jax.runtime.metrics import Metrics, Progress, last_row, timeless
from rlhf_jax.runtime.processes import SAVE, Stopping, Wishes, check_mesh
from rlhf_jax.stages.stage import Parent

# The one dispatch. Named, not imported: a restart pays for the stages that are left only.
STAGES = {
  configs.Language: 'rlhf_jax.stages.language',
  configs.Reward: 'rlhf_jax.stages.reward',
  configs.PPO: 'rlhf_jax.stages.ppo',
}
OTHERS = {
  configs.Collect: 'rlhf_jax.feedback.collect',
  configs.Evaluate: 'rlhf_jax.evaluation.evaluate',
}
MUST_BE_FINITE = ('loss', 'gradient_norm')  # endings; other metrics may be undefined, which is null
logger = logging.getLogger('rlhf_jax')
stopping = Stopping()


@dataclasses.dataclass(frozen=True)
class Options:
  """What does not change a result."""
  checkpoint_seconds: float = 5.0  # between two saves: what a kill costs
  profile: int = 0  # steps to trace, 0: none
  progress: Callable[..., Any] = Progress  # shows the steps; arguments as Progress


# ---------------------------------------------------------------- all runs


def run_file(experiment: experiments.Experiment, names: Iterable[str], place: Place,
             options: Options = Options()) -> dict[str, Any]:
  """Makes the named runs (all, if none is named) with what they need; writes and returns
  results.json.

  Raises:
    BadInput: before any work if the workdir holds a run of another configuration; before its next
      step if a run was begun with other data.
    OutOfReach: a loss that is not finite.
  """
  wanted = experiments.order(experiment, list(names) or experiment.runs)
  with workdir.lock(place.workdir):
    described = descriptions(experiment, wanted, place)
    begun = {name for name in wanted
             if workdir.check_same(place.workdir / name, described[name])}
    left = processes.share([name for name in wanted
                            if not (place.workdir / name / 'finished.json').exists()])
    inputs.check({name: experiment.runs[name] for name in left}, place)
    executables.keep(place.workdir)
    for name in wanted:
      folder = place.workdir / name
      if name not in left:
        logger.info('%s: finished', name)
        if left or type(experiment.runs[name]) in OTHERS:
          inputs.warn(name, experiment.runs[name], place)
        continue
      if name not in begun and processes.first():
        workdir.write_json(folder / 'config.json', described[name])
      with workdir.Stopwatch(folder).ticking() as watch:
        finished = make(name, experiment.runs[name], place, watch, options)
      if processes.first():
        workdir.write_json(folder / 'finished.json',
                           {'seconds': round(watch.seconds, 3)} | finished)
      processes.barrier()
      gc.collect()  # which looks rarely (__main__): nothing of this run may hold memory in the next
    return results.assemble(place.workdir, experiment.runs)


def descriptions(experiment: experiments.Experiment, names: Iterable[str],
                 place: Place) -> dict[str, dict]:
  """Run -> what its config.json says; `names` are in order, parents first.

  Raises: BadInput for a model folder that is not there, or of another kind than its role asks for.
  """
  described: dict[str, dict[str, Any]] = {}
  for name in names:
    config = experiment.runs[name]
    needed = {role: (run, described[run]['hash'])
              for role, run in experiments.references(config).items()}
    for role, folder in experiments.folders(config).items():
      path, kinds = builders.locate(folder, place), experiments.kinds_of(config, role)
      kind = models.kind(path)
      if (configs.Language if kind == 'policy' else configs.Reward) not in kinds:
        raise configs.BadInput(f'{experiment.where(name, role)}: {path} is a {kind} model; '
                               f"expected a {'reward model' if kind == 'policy' else 'policy'}")
      needed[role] = (folder, models.fingerprint(path))
    described[name] = workdir.describe(config, needed, place.workdir / name)
  return described


def make(name: str, config: configs.Run, place: Place, watch: workdir.Stopwatch,
         options: Options = Options()) -> dict[str, Any]:
  """Does one run whose parents are finished. Returns {'steps', 'summary'}."""
  mesh = meshes.make_mesh(config.mesh)
  check_mesh(mesh)
  if type(config) in STAGES:
    inputs.settle(place.workdir / name, config, place)
    return train(name, config, _parents(config, mesh, place), place, watch, options)
  inputs.settle_pieces(place.workdir / name, config, place)
  with jax.set_mesh(mesh):
    summary = importlib.import_module(OTHERS[type(config)]).run(
      config, _parents(config, mesh, place), place, place.workdir / name, name)
  return {'steps': 0, 'summary': summary}


def _parents(config: configs.Run, mesh: jax.sharding.Mesh, place: Place) -> dict[str, Parent]:
  """Role -> the finished run or the folder in it, its parameters laid out on the mesh."""
  needed = experiments.references(config) | experiments.folders(config)
  loaded = {
    one: models.load(builders.locate(one, place), mesh) if '/' in one
    else checkpoint.load_parent(place.workdir / one, mesh=mesh)
    for one in dict.fromkeys(needed.values())}
  return {role: loaded[run] for role, run in needed.items()}


# ---------------------------------------------------------------- one training run


def train(name: str, config: configs.Run, parents: Mapping[str, Any], place: Place,
          watch: workdir.Stopwatch, options: Options = Options(),
          adapted: Callable[[Any], Any] = lambda stage: stage) -> dict[str, Any]:
  """Trains one run from its newest checkpoint to its end and exports its model.

  Args:
    adapted: stage -> the stage to train, for a caller with evaluations of its own.

  Returns:
    {'steps': n, 'summary': the last row of metrics.jsonl without its clock, and what finish()
    found}
  """
  folder = place.workdir / name

  # ---- the stage, and where its arrays lie; the parents' parameters end with the state's start
  mesh = meshes.make_mesh(config.mesh)
  given = {role: parent.params for role, parent in parents.items() if parent.params is not None}
  parents = {role: dataclasses.replace(parent, params=jax.eval_shape(lambda x: x, parent.params))
             for role, parent in parents.items()}
  stage = adapted(importlib.import_module(STAGES[type(config)]).make(
    config, parents, place, judged.judge_rows))
  rows = {x.shape[0] for x in jax.tree.leaves(stage.batch_shapes)}
  meshes.check_divides(
    mesh, transformer.sizes(stage.model) | {f'rows a step: {n} (batch)': n for n in rows}
    | dict(stage.sizes))
  key = jax.random.key(config.seed)
  with jax.set_mesh(mesh):
    shapes = jax.eval_shape(stage.init, key, given)
    state_shardings = sharding.state_shardings(mesh, shapes, stage.axes)
    frozen_shardings = sharding.state_shardings(
      mesh, jax.eval_shape(stage.freeze, given), stage.axes)

    # ---- the state: the newest whole checkpoint, or a new one
    checkpoints = checkpoint.Checkpoints(folder)
    found = checkpoints.restore(_placed(shapes, state_shardings))
    first, state = found or (0, None)
    checkpoints.forget_after(first)
    workdir.check_space(folder, checkpoints.missing * checkpoint.size(shapes))
    if state is None:
      state = jax.jit(stage.init, out_shardings=state_shardings)(key, given)
    else:
      logger.info('%s: going on after step %d of %d', name, first, stage.steps)
    frozen = jax.jit(stage.freeze, out_shardings=frozen_shardings)(given)
    del given

    # ---- the steps
    run = _Run(name, folder, stage, checkpoints, first, watch, options, config)
    try:
      state = run.steps(state, frozen, key, mesh, state_shardings, first)
      # ---- the end: what finish() changes is in the export, never in a checkpoint
      state, finishing = stage.finish(state, frozen)
      checkpoint.export(folder, stage.kind, stage.model, stage.tokenizer, stage.export(state))
    finally:
      run.close()
  last = timeless(last_row(folder / 'metrics.jsonl'))
  last.pop('step', None)
  return {'steps': stage.steps, 'summary': last | workdir.finite(dict(finishing))}


class _Run:
  """The host side of one training run: its files, its clock, its checkpoints."""

  def __init__(self, name: str, folder: Path, stage: Any, checkpoints: checkpoint.Checkpoints,
               first: int, watch: workdir.Stopwatch, options: Options, config: Any):
    self.name, self.folder, self.stage = name, folder, stage
    self.checkpoints, self.watch, self.options, self.config = checkpoints, watch, options, config
    self.metrics = Metrics(folder, first) if processes.first() else None
    self.progress: Progress | None = None
    self.told = time.monotonic()
    self.tracing = False

  def steps(self, state: Any, frozen: Any, key: jax.Array, mesh: jax.sharding.Mesh,
            state_shardings: Any, first: int) -> Any:
    """All steps from `first` to the stage's last; returns the state after it."""
    stage, last = self.stage, self.stage.steps
    if first >= last:
      return state
    if self.metrics:
      self.progress = self.options.progress(self.name, first, last, stage.headline)
    wishes = Wishes(mesh)
    batch_shardings = sharding.batch_shardings(mesh, stage.batch_shapes)
    with Prefetched(lambda t: meshes.place(stage.batches(t), batch_shardings), first,
                    last) as batches:
      update = self._compiled(state, frozen, _placed(stage.batch_shapes, batch_shardings), key,
                              (state_shardings, meshes.whole(mesh)))
      processes.barrier()  # one may have compiled longer
      saved = self.told = time.monotonic()
      if self.progress:
        self.progress.started()
      stopping.deferred = True
      # told a step late: the device never waits for it
      pending: tuple[int, Any, dict] | None = None
      for t in range(first, last):
        self._profile(t - first, pending)
        state, metrics = update(state, frozen, next(batches), key, np.int32(t))
        if pending is not None:
          self._tell(*pending)
        pending = (t + 1, metrics, {})

        if t + 1 == last or (stage.evaluate_every and (t + 1) % stage.evaluate_every == 0):
          if _not_finite(jax.device_get(metrics)):
            self._tell(*pending)  # raises: what is no model is not evaluated
          state, evaluated = self._evaluate(t + 1, state, frozen)
          state = jax.device_put(state, state_shardings)  # keep() was not compiled
          pending = (t + 1, metrics, evaluated)

        due = time.monotonic() - saved >= self.options.checkpoint_seconds
        wanted = wishes.exchange(stopping.signal or SAVE * due)
        if wanted or t + 1 == last:
          self._tell(*pending)  # so that no state is saved whose loss was not looked at
          pending = None
          if self.metrics:
            self.metrics.sync()
          self.checkpoints.save(t + 1, state)
          saved = time.monotonic()
        if wanted > SAVE and t + 1 < last:
          self.checkpoints.wait()
          logger.warning('%s: stopped and saved after step %d of %d; start the same command again '
                         'to go on', self.name, t + 1, last)
          raise SystemExit(128 + wanted)
    self.checkpoints.wait()
    wanted = wishes.settle(stopping.signal)
    stopping.deferred = False
    if wanted:
      raise SystemExit(128 + wanted)
    return state

  def close(self) -> None:
    """Closes the files, whatever happened."""
    stopping.deferred = False
    self._end_trace()
    if self.metrics:
      self.metrics.close()
    if self.progress:
      self.progress.close()
    self.checkpoints.close()

  def _compiled(self, state, frozen, batch_shapes, key, shardings) -> Callable:
    """The update, compiled before the first step: every step runs this executable."""
    started = time.monotonic()
    update = executables.compiled(executables.update(self.stage, *shardings).lower(
      state, frozen, batch_shapes, key, np.int32(0)))
    pages.suit(update, isinstance(self.config, configs.PPO))
    logger.info('%s: compiled in %.1f s', self.name, time.monotonic() - started)
    return update

  def _evaluate(self, step: int, state: Any, frozen: Any) -> tuple[Any, dict]:
    started = time.monotonic()
    found = self.stage.evaluate(state, frozen, step)
    if found is None:
      return state, {}
    metrics, rows = found
    if self.metrics:
      self.metrics.write_evaluation(step, rows)
    processes.barrier()  # process 0 may have asked a judge
    state = self.stage.keep(state, metrics)
    return state, metrics | {'evaluation_seconds': time.monotonic() - started}

  def _tell(self, step: int, metrics: Any, evaluated: Mapping[str, Any]) -> None:
    """Writes a step's row and shows it; waits for that step to be done."""
    values = dict(jax.device_get(metrics))
    samples = values.pop('samples', None)
    if self.metrics:
      self._write(step, values, samples, evaluated)
    if _not_finite(values):
      raise configs.OutOfReach(self._lost(step, _not_finite(values), values))

  def _write(self, step: int, values: Mapping[str, Any], samples: Any,
             evaluated: Mapping[str, Any]) -> None:
    now = time.monotonic()
    seconds, self.told = now - self.told - evaluated.get('evaluation_seconds', 0.0), now
    clock = {'step_seconds': seconds, 'elapsed_seconds': self.watch.seconds,
             'tokens_per_second': self.stage.tokens / max(seconds, 1e-9)}
    memory = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
    if 'peak_bytes_in_use' in memory:
      clock['device_peak_bytes'] = memory['peak_bytes_in_use']
    # What an update measures too (PPO: kl, eos_rate) is told apart.
    evaluated = {f'evaluation_{k}' if k in values else k: v for k, v in evaluated.items()}
    row = self.metrics.write(step, values | evaluated | clock)
    if samples is not None and not _not_finite(values):
      self.metrics.write_samples(step, self.stage.describe(samples))
    self.progress.show(step, row)

  def _lost(self, step: int, metric: str, values: Mapping[str, Any]) -> str:
    """What is said of a step whose loss is not finite."""
    self.checkpoints.wait()
    good = self.checkpoints.last
    kept = (f'the last good checkpoint is step {good}, {self.folder}/checkpoints/{good}' if good
            else 'no checkpoint was due before it')
    return (f'{self.name}: {metric} is {float(values[metric])} at step {step} (batch {step - 1} of '
            f'this seed); {kept}. A smaller learning rate or gradient clipping is the usual cure')

  def _profile(self, done: int, pending: tuple | None) -> None:
    """Traces steps 2 … N+1 of this process: the first one touches memory for the first time."""
    if not self.options.profile or not self.metrics:
      return
    if done == 1:
      jax.profiler.start_trace(str(self.metrics.here / 'profile'), create_perfetto_trace=True)
      self.tracing = True
    elif done == 1 + self.options.profile:
      jax.block_until_ready(pending)
      self._end_trace()

  def _end_trace(self) -> None:
    if self.tracing:
      self.tracing = False
      jax.profiler.stop_trace()
      logger.info('%s: trace in %s', self.name, self.folder / 'profile')


class Prefetched:
  """Iterates over make(first), …, make(last − 1), one ahead, in one thread."""

  def __init__(self, make: Callable[[int], Any], first: int, last: int):
    self._make, self._step, self._last = make, first, last
    self._pool = concurrent.futures.ThreadPoolExecutor(1, 'batches')
    self._next = self._pool.submit(make, first)

  def __next__(self) -> Any:
    batch = self._next.result()
    self._step += 1
    if self._step < self._last:
      self._next = self._pool.submit(self._make, self._step)
    return batch

  def __enter__(self) -> 'Prefetched':
    return self

  def __exit__(self, *error: Any) -> None:
    self._pool.shutdown(cancel_futures=True)


def _not_finite(values: Mapping[str, Any]) -> str:
  """The first metric that must be finite and is not; '' if all are. γ = 0 reads no text."""
  return next((name for name, value in values.items() if name.endswith(MUST_BE_FINITE)
               and not math.isfinite(value)
               and (name, values.get('ptx_coef')) != ('ptx_loss', 0)), '')


def _placed(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings)
