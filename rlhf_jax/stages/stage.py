"""What a trained run is: a Stage of pure functions, the state of a trained model, the optimizer.

Enter: configs.Optimizer, gradients. Leave: updated states. The runtime jits, shards and loops;
nothing here does.
Left out: optimizers other than Adam (the paper uses no other).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlhf_jax import configs
from rlhf_jax.data.tokenizer import same_ids
from rlhf_jax.model import sharding, transformer


@dataclasses.dataclass(frozen=True)
class Parent:
  """An earlier run as a stage sees it; `params` may be shapes only."""

  model: configs.Model
  tokenizer: Any
  params: Any
  config: Any = None
  folder: Any = None
  language: Any = None  # config of the Language run that it began as, maybe itself


@dataclasses.dataclass(frozen=True)
class Stage:
  """One run to train. `parents` in the functions below: role -> parameters of that parent."""

  model: configs.Model
  tokenizer: Any
  kind: str  # 'policy' or 'reward': the head of what is exported
  steps: int
  init: Callable[[chex.PRNGKey, dict], Any]  # (key, parents) -> state
  freeze: Callable[[dict], Any]  # parents -> what is read but never trained
  # -> (state, metrics of float32 scalars)
  update: Callable[[Any, Any, Any, chex.PRNGKey], tuple[Any, dict]]
  batches: Callable[[int], Any]  # step -> dict of numpy arrays
  batch_shapes: Any  # the same as ShapeDtypeStructs
  axes: Any  # logical axes of every parameter in the state and in `frozen`
  export: Callable[[Any], dict]  # state -> {'params': …, 'ema': … where kept}
  evaluate: Callable[[Any, Any, int], tuple[dict, list] | None] = lambda state, frozen, step: None
  keep: Callable[[Any, dict], Any] = lambda state, metrics: state  # remember the best parameters
  finish: Callable[[Any, Any], tuple[Any, dict]] = lambda state, frozen: (state, {})
  # metrics['samples'] of an update -> rows of samples.jsonl
  describe: Callable[[Any], list] = lambda samples: []
  tokens: int = 0  # tokens a step at most, for throughput
  evaluate_every: int = 0
  headline: tuple[str, ...] = ('loss',)  # metrics of the progress line
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # that a mesh must divide, too


@flax.struct.dataclass
class Trained:
  """Parameters that are being trained. Everything is float32 and on the device."""

  params: Any
  opt_state: Any
  ema: Any = None  # running average of params, or None


@flax.struct.dataclass
class State:
  """State of a stage that trains one model (language, reward)."""

  step: chex.Array
  learning_rate: chex.Array  # peak; traced, so a sweep over it compiles once
  model: Trained
  best: Any = None  # {'params', 'value'} where the config selects a checkpoint


# ----- optimizer


def _decayed(params: Any) -> Any:
  """True for matrices: weight decay leaves biases and norms alone."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in ('kernel', 'tokens', 'positions'), params)


def transformation(config: configs.Optimizer) -> optax.GradientTransformation:
  """Clipping, Adam, decoupled weight decay; `apply` multiplies by the learning rate."""
  parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
  parts.append(optax.scale_by_adam(config.b1, config.b2, config.epsilon))
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay, _decayed))
  return optax.chain(*parts)


def schedule(config: configs.Optimizer, step: chex.Array, steps: int) -> chex.Array:
  """Multiplier of the peak learning rate at `step` (from 0): linear warm-up, then cosine to `final`
  or constant.
  """
  step = jnp.asarray(step, jnp.float32)
  warm = config.warmup_from + (1.0 - config.warmup_from) * step / max(config.warmup, 1)
  if config.schedule == 'constant':
    after = jnp.ones(())
  else:
    progress = jnp.clip((step - config.warmup) / max(steps - config.warmup, 1), 0.0, 1.0)
    after = config.final + (1.0 - config.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
  return jnp.where(step < config.warmup, warm, after)


def start(config: configs.Optimizer, params: Any, ema: float = 0.0) -> Trained:
  """Fresh moments for `params`, and the average where ema > 0."""
  return Trained(params=params, opt_state=transformation(config).init(params),
                 ema=jax.tree.map(jnp.copy, params) if ema else None)


def apply(config: configs.Optimizer, trained: Trained, grads: Any, learning_rate: chex.Array,
          ema: float = 0.0) -> Trained:
  """One optimizer step; where an average is kept, ema ← d·ema + (1−d)·params at each."""
  updates, opt_state = transformation(config).update(grads, trained.opt_state, trained.params)
  params = jax.tree.map(lambda p, u: p - learning_rate * u, trained.params, updates)
  average = trained.ema
  if ema:
    average = jax.tree.map(lambda a, p: ema * a + (1.0 - ema) * p, average, params)
  return Trained(params=params, opt_state=opt_state, ema=average)


def accumulate(loss: Callable, params: Any, batch: Any, pieces: int,
               dtype: Any = 'float32') -> tuple[Any, Any]:
  """Gradient of a loss that is a *sum* over rows (already divided by the global count), in `pieces`
  microbatches.

  Args:
    loss: (params, rows) -> (scalar, metrics), both sums over rows.
    batch: tree of arrays with a common first axis, divisible by `pieces`.
    dtype: the compute type, which blocks are cast to once, not in every piece.

  Returns:
    (gradient, metrics), equal to those of the whole batch at once up to rounding.
  """
  cast, gradient = sharding.cast_blocks, jax.grad(loss, has_aux=True)
  if pieces <= 1:
    return jax.grad(lambda params: loss(cast(params, dtype), batch), has_aux=True)(params)
  given = cast(params, dtype)
  split = jax.tree.map(lambda x: sharding.split_rows(x, pieces), batch)
  add = lambda total, rows: jax.tree.map(jnp.add, total, gradient(given, rows))
  zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype),
                      jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], split)))
  return jax.lax.scan(lambda total, rows: (add(total, rows), None), zero, split)[0]


def check_fits(length: int, model: configs.Model, role: str = 'model') -> None:
  """BadInput for rows longer than a model's context."""
  if length > model.context:
    raise configs.BadInput(f'rows of {length} tokens do not fit the {role}: its model.context is '
                           f'{model.context}')


def check_beside(role: str, other: Parent, tokenizer: Any, config: Any) -> None:
  """BadInput for a model that is to read what a policy says and cannot."""
  check_fits(config.prompt_length + config.response_length, other.model, f'{role} model')
  if not same_ids(other.tokenizer, tokenizer):
    raise configs.BadInput(f'{role} and policy have different tokenizers: train {role} from a '
                           'model of the same family')


def pieces_of(batch: int, microbatch: int) -> int:
  """Number of microbatches; that they divide the batch is checked (configs.check_run)."""
  return batch // microbatch if microbatch else 1


def keep_best(state: State, value: chex.Array, larger: bool) -> State:
  """The state with its parameters remembered if `value` beats the best so far (strictly)."""
  value = jnp.asarray(value, jnp.float32)
  better = value > state.best['value'] if larger else value < state.best['value']
  params = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.model.params,
                        state.best['params'])
  return state.replace(
    best={'params': params, 'value': jnp.where(better, value, state.best['value'])})


def sizes(rows: Mapping[str, int], **models: configs.Model) -> dict[str, int]:
  """What a mesh must divide, as meshes.check_divides takes it: rows that lie side by side by the
  name of their field, and models besides the one that is trained.
  """
  return {f'{name} (batch)': count for name, count in rows.items()} | {
    f'{role} {name}': size for role, model in models.items()
    for name, size in transformer.sizes(model).items()}
