"""Stages by shape alone: what a run would train, without data, without weights, without a device.

Enter: an Experiment and the name of a run. Leave: its Stage and its parents' parameters as
ShapeDtypeStructs, made from the file's runs in order, as the loop would find them in the workdir;
of a model folder config.json is read, not its weights.
Left out: runs that train nothing (Collect, Evaluate): no trained run's shapes depend on them.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import configs
from rlhf_jax.data import sources
from rlhf_jax.model import huggingface, transformer
from rlhf_jax.runtime import experiment as experiments
from rlhf_jax.runtime import loop
from rlhf_jax.stages.stage import Parent


@dataclasses.dataclass(frozen=True)
class Abstract:
  """A stage and what its init and freeze are given."""
  config: configs.Run
  stage: Any  # stages.stage.Stage
  given: dict[str, Any]  # role -> parameters as ShapeDtypeStructs


def make(experiment: experiments.Experiment, name: str, data: Path | None = None) -> Abstract:
  """The stage of a run by shapes.

  Args:
    data: what relative model folders are below.

  Raises:
    BadInput: a run that trains nothing, no such run, numbers that do not go together.
  """
  needed = experiments.order(experiment, [name])
  config = experiment.runs[name]
  if type(config) not in loop.STAGES:
    raise configs.BadInput(f'{experiment.where(name)} is of the kind {type(config).__name__}: '
                           'only runs that train can be compiled')
  if isinstance(config, configs.Reward) and not config.k_max:
    raise configs.BadInput(f'{experiment.where(name, "k_max")} is 0 (as many completions as the '
                           f'data has): without data name a number, --{name}.k_max 9')
  parents: dict[str, Parent] = {}
  for run in needed:
    if type(experiment.runs[run]) in loop.STAGES:
      made = _make(experiment, run, parents, data)
      parents[run] = Parent(made.stage.model, None, _exported(made), made.config)
  return made


@contextlib.contextmanager
def traced_for(kind: str) -> Iterator[None]:
  """Inside, programs are traced for a Topology's kind: stages ask jax which platform there is, and
  that of this process is not the one compiled for.
  """
  before = jax.default_backend
  jax.default_backend = lambda: 'cpu' if kind == 'cpu' else 'tpu'
  try:
    yield
  finally:
    jax.default_backend = before


def _make(experiment: experiments.Experiment, name: str, made: dict[str, Parent],
          data: Path | None) -> Abstract:
  config = _with_vocabulary(experiment.runs[name])
  if isinstance(config, configs.Reward) and not config.k_max:
    config = dataclasses.replace(config, k_max=2)  # a parent, whose weights do not depend on it
  parents = {role: made[run] for role, run in experiments.references(config).items() if run in made}
  parents |= {role: _folder(sources.locate(folder, sources.Place(Path(), data, False)))
              for role, folder in experiments.folders(config).items()}
  room = importlib.import_module(loop.STAGES[type(config)])
  try:
    stage = room.make(config, parents, None)
  except configs.BadInput as error:
    raise configs.BadInput(f'{experiment.where(name)}: {error}') from error
  return Abstract(config, stage, {role: parent.params for role, parent in parents.items()})


def _folder(path: Path) -> Parent:
  """A model in Hugging Face's layout, by its config.json."""
  described = huggingface.describe(path)
  one = lambda key: transformer.init(described.model, key, described.kind == 'reward')
  return Parent(described.model, None, jax.eval_shape(one, jax.random.key(0)))


def _exported(made: Abstract) -> Any:
  """The parameters a finished run leaves, as ShapeDtypeStructs."""
  leave = lambda key, given: made.stage.export(made.stage.init(key, given))['params']
  return jax.eval_shape(leave, jax.eval_shape(lambda: jax.random.key(0)), made.given)


def _with_vocabulary(config: configs.Run) -> configs.Run:
  """Where the tokenizer is still to be trained: as if it took all the ids it may."""
  if isinstance(config, configs.Language) and not config.init_from and not config.model.vocabulary:
    model = dataclasses.replace(config.model, vocabulary=config.tokenizer.vocabulary)
    return dataclasses.replace(config, model=model)
  return config
