"""The reward model: K-way rankings in, a scalar model out whose demonstrations score 0 on average.

One element is one prompt, read once where mesh and kernel allow, with its K completions; the loss
is over all non-tied pairs (InstructGPT §3.5, Eq. 1). Shuffling the pairs would show each completion
K−1 times an epoch and overfit (C.2).
Left out: ensembles; scaling to unit variance (the paper only shifts; the std is recorded).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import configs
from rlhf_jax.data import batches as data_batches
from rlhf_jax.data import builders, store
from rlhf_jax.model import experience, responses, sharding, transformer
from rlhf_jax.objectives import likelihood, ranking
from rlhf_jax.stages import stage

CENTRE_ROWS = 4096  # demonstrations at most, from first to last, whose mean score becomes 0


def _forward(model, length, params, batch):
  """Scores [B, K]. Prompts are read again for every completion where the mesh does not divide them,
  or where a kernel then takes the rows and they have at most a third more tokens.
  """
  tokens, valid = batch['tokens'], batch['valid']
  count, total = tokens.shape[1:]
  again = (count - 1) * (total - length)  # tokens of prompts
  whole = 4 * again <= count * total and transformer.has_kernel(model, total)
  if not whole and sharding.divided(len(tokens)) == len(tokens):
    return experience.scores_of_completions(model, params, tokens, valid, length)
  flat = lambda x: x.reshape(-1, x.shape[-1])
  return experience.scores(model, params, flat(tokens), flat(valid)).reshape(tokens.shape[:2])


def _update(config, model, steps, state, frozen, batch, key):
  pieces = stage.pieces_of(config.batch, config.microbatch)
  mask = ranking.pair_mask(batch['ranks'], batch['present'])
  prompts = jnp.maximum(jnp.sum(jnp.any(mask, axis=(1, 2))), 1).astype(jnp.float32)

  def loss(params, piece):
    head = params['head']  # no pair knows the bias: Adam would make steps of rounding
    head = head | {'bias': jax.lax.stop_gradient(head['bias'])}
    scores = _forward(model, config.response_length, params | {'head': head}, piece)
    losses, correct, pairs = ranking.ranking_loss(scores, piece['ranks'], piece['present'])
    total = jnp.sum(losses) / prompts
    return total, {
      'loss': total, 'correct': jnp.sum(correct), 'pairs': jnp.sum(pairs),
      'score': jnp.sum(jnp.where(piece['present'], scores, 0.0))}

  grads, metrics = stage.accumulate(loss, state.model.params, batch, pieces, model.compute)
  rate = state.learning_rate * stage.schedule(config.optimizer, state.step, steps)
  trained = stage.apply(config.optimizer, state.model, grads, rate)
  correct, score = metrics.pop('correct'), metrics.pop('score')
  metrics |= {
    'accuracy': correct / jnp.maximum(metrics['pairs'], 1.0),
    'score': score / jnp.maximum(jnp.sum(batch['present']), 1),
    'gradient_norm': optax.tree.norm(grads), 'learning_rate': rate}
  return state.replace(step=state.step + 1, model=trained), metrics


def _init(config, model, key, parents):
  params = transformer.with_scalar_head(model, parents['init_from'], key)
  return stage.State(step=jnp.zeros((), jnp.int32), model=stage.start(config.optimizer, params),
                     learning_rate=jnp.float32(config.optimizer.learning_rate))


def _shapes(config):
  rows = (config.batch, config.k_max, config.prompt_length + config.response_length)
  shape = jax.ShapeDtypeStruct
  return {
    'tokens': shape(rows, np.int32), 'valid': shape(rows, np.bool_),
    'ranks': shape(rows[:2], np.int32), 'present': shape(rows[:2], np.bool_)}


def _sources(config, parents, role) -> tuple[configs.Source, ...]:
  """Sources of rankings, or the file that a Collect run wrote."""
  data = getattr(config, role)
  if not isinstance(data, str):
    return data
  file = store.absolute(parents[role].folder) / 'rankings.jsonl'  # relative: below --data
  return (configs.Source(kind='rankings', files=(str(file),)),)


def _data(config, parents, place):
  """(training batches, held-out rows by name, rows of demonstrations)."""
  build = functools.partial(builders.build, tokenizer=parents['init_from'].tokenizer, place=place,
                            limits=builders.Limits.like(config))
  built = build(_sources(config, parents, 'data'), heldout=config.heldout, seed=config.seed)
  heldout = {'validation': built.heldout}
  if config.heldout_data:
    heldout['heldout'] = build(_sources(config, parents, 'heldout_data'), heldout=0.0,
                               seed=config.seed).train
  language = parents['demonstrations' if config.demonstrations else 'init_from'].config
  if any(s.kind == 'demonstrations' for s in getattr(language, 'data', ())):
    demonstrations = build(language.data, heldout=language.heldout, seed=language.seed).train
  else:
    demonstrations = data_batches.Preferred(built.train)
  heldout = {name: rows for name, rows in heldout.items() if len(rows)}
  return data_batches.batches(built.train, config.batch, config.seed), heldout, demonstrations


def _evaluate(config, forward, heldout, state, frozen, step):
  """Loss and accuracy on each held-out set."""
  metrics = {}
  for name, data in heldout.items():
    arrays = data_batches.whole(data, config.batch)
    scores = np.concatenate([
      sharding.to_host(forward(state.model.params, {k: a[i:i + config.batch]
                                                    for k, a in arrays.items()}))
      for i in range(0, len(arrays['ranks']), config.batch)])
    losses, correct, pairs = ranking.ranking_loss(scores, arrays['ranks'], arrays['present'])
    metrics |= {
      f'{name}_loss': float(likelihood.masked_mean(losses, pairs > 0)),
      f'{name}_accuracy': float(jnp.sum(correct) / jnp.maximum(jnp.sum(pairs), 1)),
      f'{name}_pairs': float(jnp.sum(pairs))}
  return metrics, []


def _finish(model, demonstrations, state, frozen):
  """Shifts the bias so that demonstrations score 0 on average (paper C.2): no pair knows of it."""
  count = min(len(demonstrations), CENTRE_ROWS)
  chosen = [demonstrations[i * len(demonstrations) // count] for i in range(count)]
  rows = {name: np.stack([row[name] for row in chosen]) for name in ('tokens', 'valid')}
  scores = responses.score_rows(model, state.model.params, rows['tokens'], rows['valid'], 128)
  mean = np.float32(scores.mean())
  head = state.model.params['head']
  params = state.model.params | {'head': head | {'bias': head['bias'] - mean}}
  return state.replace(model=state.model.replace(params=params)), {
    'demonstrations_mean_before': float(mean), 'demonstrations_std': float(scores.std()),
    'demonstrations': float(count)}


def make(config: configs.Reward, parents: dict[str, stage.Parent], place: Any,
         judge_rows: Any = None) -> stage.Stage:
  """The stage of a Reward run.

  Args:
    parents: 'init_from' (the trunk and tokenizer), 'data' and 'heldout_data' where those are
      Collect runs, and 'demonstrations' where another Language run's are to score 0.
    place: where data is built; None: shapes only.

  Raises:
    BadInput: unreadable rankings, rows beyond the context, microbatches that divide no batch.
  """
  configs.check_run(config)
  parent = parents['init_from']
  model = dataclasses.replace(parent.model, dropout=0.0)  # the paper names none here
  length = config.prompt_length + config.response_length
  stage.check_fits(length, model)
  train, heldout, demonstrations, steps = None, {}, None, 1
  if place is None and not config.k_max:
    raise configs.BadInput('k_max 0 (as many as the data has): without data name a number')
  if place is not None:
    if not config.k_max:
      roles = ('data', 'heldout_data') if config.heldout_data else ('data',)
      config = dataclasses.replace(config, k_max=max(
        builders.most_completions(_sources(config, parents, role), place) for role in roles))
    train, heldout, demonstrations = _data(config, parents, place)
    steps = max(1, round(train.epoch * config.epochs))
  forward = jax.jit(functools.partial(_forward, model, config.response_length))
  shapes = _shapes(config)
  return stage.Stage(
    model=model, tokenizer=parent.tokenizer, kind='reward', steps=steps,
    init=functools.partial(_init, config, model), freeze=lambda parents: {},
    update=functools.partial(_update, config, model, steps),
    batches=train and (lambda step: {k: x for k, x in train[step].items() if k in shapes}),
    batch_shapes=shapes, axes={'scalar': transformer.axes(model, scalar=True)},
    export=lambda state: {'params': state.model.params},
    evaluate=functools.partial(_evaluate, config, forward, heldout),
    finish=functools.partial(_finish, model, demonstrations),
    tokens=config.batch * config.k_max * length, evaluate_every=config.evaluate_every,
    headline=('loss', 'accuracy'),
    sizes=stage.sizes({'microbatch x k_max': (config.microbatch or config.batch) * config.k_max}))
