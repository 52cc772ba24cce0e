"""Pretraining and SFT: one next-token loss on different rows.

Enter: packed text, or demonstrations (prompt masked) with a share of text. Leave: a language model.
SFT here is the paper's PPO initialisation (App. C.3): 2 epochs, 10 % text, cosine to 10 %; the
other recipe (App. C.1: 16 epochs, residual dropout 0.2, checkpoint by reward-model score) is this
stage with other numbers.
Left out: packing of demonstrations; attention masks between packed documents (GPT-3 has none).
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
from rlhf_jax.data import builders
from rlhf_jax.model import experience, responses, transformer
from rlhf_jax.objectives import likelihood
from rlhf_jax.stages import stage, validation

INHERITED = ('dropout', 'compute', 'remat', 'scan', 'fused', 'logits_chunk')  # a run's own


def _sizes(config):
  """(tokens a row, how many of its last can be targets; 0: all): in rows of demonstrations alone
  the response fills the last columns.
  """
  if not config.data or config.data[0].kind == 'text':
    return config.length, 0
  response = config.response_length
  return config.prompt_length + response, 0 if config.pretraining_share else response


def _update(config, model, steps, state, frozen, batch, key):
  pieces = stage.pieces_of(config.batch, config.microbatch)
  _, targets = _sizes(config)
  # Of the whole batch: the mean does not depend on the pieces.
  count = jnp.maximum(jnp.sum(batch['mask'][:, -targets or 1:]), 1)
  rows = batch | {'row': jnp.arange(config.batch)}

  def loss(params, piece):
    # A key of its own for every piece; without dropout none is used.
    dropout_key = jax.random.fold_in(key, piece['row'][0]) if model.dropout else None
    losses, mask = experience.next_token_losses(model, params, piece, dropout_key, targets)
    total = likelihood.weighted_sum(losses, mask, count)
    return total, {'loss': total}

  grads, metrics = stage.accumulate(loss, state.model.params, rows, pieces, model.compute)
  rate = state.learning_rate * stage.schedule(config.optimizer, state.step, steps)
  trained = stage.apply(config.optimizer, state.model, grads, rate, config.ema)
  metrics |= {
    'gradient_norm': optax.tree.norm(grads), 'learning_rate': rate,
    'target_tokens': count.astype(jnp.float32)}
  return state.replace(step=state.step + 1, model=trained), metrics


def _init(config, model, key, parents):
  params = parents['init_from'] if config.init_from else transformer.init(model, key)
  best = None
  if config.select:
    worst = -jnp.inf if config.select == 'reward' else jnp.inf
    best = {'params': jax.tree.map(jnp.copy, params), 'value': jnp.float32(worst)}
  return stage.State(step=jnp.zeros(
    (), jnp.int32), best=best, learning_rate=jnp.float32(config.optimizer.learning_rate),
                     model=stage.start(config.optimizer, params, config.ema))


def _rows(config, tokenizer, place):
  """(training batches, held-out rows by name) of this run."""
  limits = dataclasses.replace(builders.Limits.like(config), length=_sizes(config)[0])
  build = functools.partial(builders.build, tokenizer=tokenizer, place=place, limits=limits,
                            heldout=config.heldout, seed=config.seed)
  main = build(config.data)
  heldout = {'validation': main.heldout}
  if config.pretraining_share:
    text = build(config.pretraining)
    heldout['pretraining'] = text.heldout
    return data_batches.mixed(main.train, text.train, config.batch, config.pretraining_share,
                              config.seed), heldout
  return data_batches.batches(main.train, config.batch, config.seed), heldout


def _tokenizer(config, parents, place):
  if config.init_from:
    return parents['init_from'].tokenizer
  if place is None:
    raise configs.BadInput('without a place to build data in, model.vocabulary must be given')
  return builders.tokenizer_for(config.tokenizer, config.data, place, heldout=config.heldout,
                                seed=config.seed, most=config.model.vocabulary)


def _model(config, parents, tokenizer):
  if config.init_from:
    mine = {name: getattr(config.model, name) for name in INHERITED}
    return dataclasses.replace(parents['init_from'].model, **mine)
  model = config.model
  if not model.vocabulary:
    model = dataclasses.replace(model, vocabulary=tokenizer.vocabulary)
  configs.check_model(model)
  return model


def _check(config, place):
  """BadInput for settings that do not go together."""
  configs.check_run(config)
  if place is None:
    return
  if config.select == 'reward' and not (config.reward and config.prompts and config.init_from):
    raise configs.BadInput("select 'reward' needs init_from, a reward run and validation prompts")


def make(config: configs.Language, parents: dict[str, stage.Parent], place: Any,
         judge_rows: Any = None) -> stage.Stage:
  """The stage of a Language run.

  Args:
    config: the run.
    parents: 'init_from' and, for select='reward', 'reward', where the config names them.
    place: where data is built and read; None: shapes only (no tokenizer is trained,
      model.vocabulary must be set).

  Raises:
    BadInput: unreadable data, rows beyond a context, microbatches that divide no batch.
  """
  _check(config, place)
  tokenizer = (None if place is None and config.model.vocabulary else _tokenizer(
    config, parents, place))
  model = _model(config, parents, tokenizer)
  if config.select == 'reward' and 'reward' in parents:
    stage.check_beside('reward', parents['reward'], tokenizer, config)
    stage.check_fits(config.prompt_length + config.response_length, model)  # rows may be shorter
  length, targets = _sizes(config)
  stage.check_fits(length, model)
  shape = lambda dtype: jax.ShapeDtypeStruct((config.batch, length), dtype)
  shapes = {'tokens': shape(np.int32), 'valid': shape(np.bool_), 'mask': shape(np.bool_)}
  train, heldout, steps = None, {}, config.steps
  if place is not None:
    train, heldout = _rows(config, tokenizer, place)
    if config.select == 'validation_loss' and not len(heldout['validation']):
      raise configs.BadInput(f"select 'validation_loss': heldout {config.heldout} keeps no record")
    steps = steps or max(1, round(train.epoch * config.epochs))
  steps = max(steps, 1)
  # Without a key there is no dropout.
  losses = jax.jit(functools.partial(experience.next_token_losses, model, length=targets))

  def evaluate(state, frozen, step):
    metrics = {
      f'{name}_loss': responses.mean_loss(losses, state.model.params, rows, config.batch)[0]
      for name, rows in heldout.items() if len(rows)}
    if config.select == 'reward':
      metrics['reward'] = validation.sample_score(config, parents, place, state.model.params,
                                                    frozen['reward'])
    return metrics, []

  def keep(state, metrics):
    if not config.select:
      return state
    larger = config.select == 'reward'
    return stage.keep_best(state, metrics['reward' if larger else 'validation_loss'], larger)

  def finish(state, frozen):
    if not config.select:
      return state, {}
    params = state.best['params']
    return state.replace(model=state.model.replace(params=params)), {
      f'best_{config.select}': float(state.best['value'])}

  return stage.Stage(
    model=model, tokenizer=tokenizer, kind='policy', steps=steps,
    init=functools.partial(_init, config, model),
    freeze=lambda p: {k: p[k] for k in ('reward',) if k in p},
    update=functools.partial(_update, config, model, steps),
    batches=(lambda step: train[step]) if train is not None else None, batch_shapes=shapes,
    axes={'policy': transformer.axes(model), 'scalar': transformer.axes(model, scalar=True)},
    export=lambda state: {'params': state.model.params} | (
      {'ema': state.model.ema} if config.ema else {}), evaluate=evaluate, keep=keep, finish=finish,
    tokens=config.batch * length, evaluate_every=config.evaluate_every, headline=('loss',),
    sizes=stage.sizes({'microbatch': config.microbatch or config.batch}))
