"""PPO-ptx: rollout, reward, advantages and every gradient step of an update in one pure function.

Enter: a policy, a reward model or a jittable function, prompts, text. Leave: an aligned policy.
`update` is the algorithm of InstructGPT §3.5 and App. C.4 from top to bottom, all on the device.
Left out: entropy bonus, reward whitening, choice of a checkpoint (the paper's is by human rating).
"""

import dataclasses
import functools
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import configs
from rlhf_jax.data import batches, functions
from rlhf_jax.model import experience, generate, sharding, transformer
from rlhf_jax.objectives import likelihood
from rlhf_jax.objectives import policy as objective
from rlhf_jax.stages import stage, validation

SHOWN = 4  # rollouts of an update that are written to samples.jsonl
CACHED = ('cpu',)  # where rows are scored a minibatch at a time, which stays in the cache


@flax.struct.dataclass
class State:
  """What an update changes. Coefficients and rates are data: one executable serves a sweep."""

  step: chex.Array
  policy: stage.Trained
  value: stage.Trained
  kl_coef: chex.Array  # β; the adaptive controller writes it
  ptx_coef: chex.Array  # γ
  policy_learning_rate: chex.Array  # peak
  value_learning_rate: chex.Array  # peak


@flax.struct.dataclass
class Models:
  """What `update` knows of the models; static."""

  policy: configs.Model = flax.struct.field(pytree_node=False)
  value: configs.Model = flax.struct.field(pytree_node=False)
  policy_axes: Any = flax.struct.field(pytree_node=False)
  # (reward parameters, tokens, valid, mask) -> float [B]
  score: Any = flax.struct.field(pytree_node=False)
  eos: Any = flax.struct.field(pytree_node=False)  # an id, or several that end a response
  pad: int = flax.struct.field(pytree_node=False)


# ----- the update


def rows_at_once(config: configs.PPO) -> int:
  """How many rows are scored at a time; 0: all."""
  return config.microbatch or config.minibatch * (jax.default_backend() in CACHED)


def update(config: configs.PPO, models: Models, state: State, frozen: dict, batch: dict,
           key: chex.PRNGKey) -> tuple[State, dict]:
  """One update: roll out, score, estimate advantages, then epochs of minibatches.

  Args:
    models: configs of the models and ids; static.
    frozen: {'reference': policy parameters, 'reward': reward parameters or None}; read only.
    batch: {'prompts': {'tokens', 'valid'} [B, P], 'pretraining': {'tokens', 'valid', 'mask'}
      [B·ratio, T] if any}.
    key: a fresh key for this update.

  Returns:
    state; metrics, float32 scalars, and 'samples' of the first few rows.
  """
  key_sample, key_shuffle = jax.random.split(key)
  rollout = roll_out(config, models, state.policy.params, batch['prompts'], key_sample)
  seen, told = scored(config, models, state, frozen, rollout)
  state, metrics = epochs_of_minibatches(config, models, state, seen, batch.get('pretraining'),
                                         key_shuffle)

  metrics |= told | {'kl_coef': state.kl_coef, 'ptx_coef': state.ptx_coef}
  if config.kl_target:
    state = state.replace(kl_coef=objective.adapt_kl_coef(
      state.kl_coef, metrics['kl'], config.kl_target, config.episodes, config.kl_horizon))
  metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
  shown = {'tokens': rollout.tokens, 'valid': rollout.valid, 'score': seen.score,
           'kl': sums(seen.kl, rollout.mask)}
  metrics['samples'] = jax.tree.map(lambda x: x[:SHOWN], shown)
  return state.replace(step=state.step + 1), metrics


def roll_out(config: configs.PPO, models: Models, params: transformer.Params, prompts: dict,
             key: chex.PRNGKey) -> generate.Rollout:
  """A response of the policy to each prompt."""
  return generate.generate_in_chunks(
    models.policy, sharding.for_decoding(params, models.policy_axes, models.policy.compute),
    prompts['tokens'], prompts['valid'], key, config.rollout_chunks,
    length=config.response_length, temperature=config.temperature, eos=models.eos, pad=models.pad)


@jax.named_scope('scoring')
def scored(config: configs.PPO, models: Models, state: State, frozen: dict,
           rollout: generate.Rollout) -> tuple[experience.Experience, dict]:
  """What the rows are worth: score, KL, reward a token, values, advantages; and metrics of it."""
  policy, length = models.policy, config.response_length
  rows = (rollout.tokens, rollout.valid)
  read = lambda function: sharding.in_pieces(function, rows_at_once(config), rows)
  logprobs_under = lambda params: read(lambda piece: experience.response_logprobs(
    policy, params, *piece, length, config.temperature))
  logprobs = rollout.logprobs
  # Elsewhere a fresh forward pass differs, and the ratio needs it: chips round float32 products.
  if policy.compute != 'float32' or jax.default_backend() != 'cpu':
    logprobs = logprobs_under(sharding.cast_blocks(state.policy.params, policy.compute))
  reference = logprobs_under(frozen['reference'])
  kl, _, kl_k3 = objective.kl_estimates(logprobs, reference)

  score = models.score(frozen['reward'], *rows, rollout.mask).astype(jnp.float32)
  ended = generate.ended(rollout, models.eos)
  rewards = objective.reward_per_token(score - config.no_eos_penalty * ~ended, kl, state.kl_coef,
                                       rollout.mask)
  value = sharding.cast_blocks(state.value.params, models.value.compute)
  values = read(lambda piece: experience.response_values(models.value, value, *piece, length))
  advantages, returns = objective.gae(rewards, values, rollout.mask, config.discount,
                                      config.gae_lambda)
  if config.whiten:
    advantages = objective.whiten(advantages, rollout.mask)
  seen = experience.Experience(rollout=rollout.replace(logprobs=logprobs), score=score, kl=kl,
                               values=values, advantages=advantages, returns=returns)

  told = rollout_metrics(seen, kl_k3, ended)
  if logprobs is not rollout.logprobs:
    gap = jnp.abs(logprobs - rollout.logprobs)
    told['logprob_gap'] = likelihood.masked_mean(gap, rollout.mask)
  return seen, told


def sums(values: chex.Array, mask: chex.Array) -> chex.Array:
  """Sum over the response tokens of each row: [B, R] -> [B]."""
  return jnp.sum(jnp.where(mask, values, 0.0), axis=1)


def rollout_metrics(seen: experience.Experience, kl_k3: chex.Array, ended: chex.Array) -> dict:
  """What an update's rollouts look like; KL in nats: mean over sequences of sums over tokens."""
  mask, mean = seen.rollout.mask, likelihood.masked_mean
  return {
    'score': jnp.mean(seen.score), 'score_std': jnp.std(seen.score),
    'kl': jnp.mean(sums(seen.kl, mask)), 'kl_k3': jnp.mean(sums(kl_k3, mask)),
    'entropy': -mean(seen.rollout.logprobs, mask),  # unbiased: the tokens are samples of the policy
    'response_length': jnp.mean(jnp.sum(mask, axis=1)), 'eos_rate': jnp.mean(ended),
    'explained_variance': objective.explained_variance(seen.values, seen.returns, mask),
    'return': mean(seen.returns, mask)}


@jax.named_scope('training')
def epochs_of_minibatches(config: configs.PPO, models: Models, state: State,
                          seen: experience.Experience, text: dict | None, key: chex.PRNGKey
                          ) -> tuple[State, dict]:
  """Shuffled minibatches, config.epochs times; text is dealt to the minibatches of an epoch."""
  count = config.episodes // config.minibatch
  orders = jax.vmap(lambda k: jax.random.permutation(k, config.episodes))(jax.random.split(
    key, config.epochs))
  orders = orders.reshape(config.epochs * count, config.minibatch)
  deal = lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
  text = None if text is None else jax.tree.map(deal, text)

  def step(state, order):
    number, order = order
    piece = jax.tree.map(lambda x: x[order], seen)
    some = None if text is None else jax.tree.map(lambda x: x[number % count], text)
    return minibatch(config, models, state, piece, some)

  state, metrics = jax.lax.scan(step, state, (jnp.arange(config.epochs * count), orders))
  first = {'ratio_first': metrics.pop('ratio')[0], 'logprob_gap': metrics.pop('gap')[0]}
  return state, jax.tree.map(jnp.mean, metrics) | first


def minibatch(config: configs.PPO, models: Models, state: State, seen: experience.Experience,
              text: dict | None) -> tuple[State, dict]:
  """One optimizer step of the policy (PPO gradient + γ · ptx gradient, added first) and one of the
  value model.
  """
  rollout, length = seen.rollout, config.response_length
  # Of the whole minibatch, so microbatches add up to its mean.
  count = jnp.maximum(jnp.sum(rollout.mask), 1)
  pieces = stage.pieces_of(config.minibatch, config.microbatch)

  def policy_loss(params, piece):
    mask, old = piece.rollout.mask, piece.rollout.logprobs
    logprobs = experience.response_logprobs(models.policy, params, piece.rollout.tokens,
                                            piece.rollout.valid, length, config.temperature)
    losses, ratio, clipped = objective.policy_loss(logprobs, old, piece.advantages, mask,
                                                   config.clip)
    total = functools.partial(likelihood.weighted_sum, mask=mask, count=count)
    loss, change = total(losses), logprobs - old
    return loss, {
      'policy_loss': loss, 'ratio': total(ratio), 'clip_fraction': total(clipped),
      'approximate_kl': total(0.5 * change**2), 'gap': total(jnp.abs(change))}

  def value_loss(params, piece):
    values = experience.response_values(models.value, params, piece.rollout.tokens,
                                        piece.rollout.valid, length)
    losses = objective.value_loss(values, piece.values, piece.returns, config.value_clip)
    loss = likelihood.weighted_sum(losses, piece.rollout.mask, count)
    return loss, {'value_loss': loss}

  grads, metrics = stage.accumulate(policy_loss, state.policy.params, seen, pieces,
                                    models.policy.compute)
  metrics['ppo_gradient_norm'] = optax.tree.norm(grads)
  if text is not None:
    ptx_grads, ptx_loss = ptx_gradient(config, models, state, text)
    grads = jax.tree.map(lambda g, p: g + state.ptx_coef * p, grads, ptx_grads)
    metrics |= {'ptx_loss': ptx_loss, 'ptx_gradient_norm': optax.tree.norm(ptx_grads)}
  value_grads, value_metrics = stage.accumulate(value_loss, state.value.params, seen, pieces,
                                                models.value.compute)

  rate = lambda optimizer, peak: peak * stage.schedule(optimizer, state.step, config.updates)
  policy_rate = rate(config.policy_optimizer, state.policy_learning_rate)
  value_rate = rate(config.value_optimizer, state.value_learning_rate)
  metrics |= value_metrics | {
    'policy_gradient_norm': optax.tree.norm(grads),
    'value_gradient_norm': optax.tree.norm(value_grads), 'policy_learning_rate': policy_rate,
    'value_learning_rate': value_rate}
  return state.replace(
    policy=stage.apply(config.policy_optimizer, state.policy, grads, policy_rate, config.ema),
    value=stage.apply(config.value_optimizer, state.value, value_grads, value_rate)), metrics


@jax.named_scope('ptx')
def ptx_gradient(config: configs.PPO, models: Models, state: State, text: dict) -> tuple[dict, Any]:
  """Gradient of the mean next-token loss on pretraining rows, and the loss; where γ = 0, without a
  pass, zeros and NaN.
  """
  rows = text['tokens'].shape[0]
  size = max(n for n in range(1, (config.microbatch or rows) + 1) if rows % n == 0)
  count = jnp.maximum(jnp.sum(text['mask'][:, 1:]), 1)

  def loss(params, piece):
    total = likelihood.weighted_sum(*experience.next_token_losses(models.policy, params, piece),
                                    count)
    return total, total

  taken = lambda params: stage.accumulate(loss, params, text, rows // size, models.policy.compute)
  nothing = lambda params: (jax.tree.map(jnp.zeros_like, params), jnp.full((), jnp.nan))
  return jax.lax.cond(state.ptx_coef > 0, taken, nothing, state.policy.params)


# ----- the stage


def _check(config, policy):
  """BadInput for numbers that do not go together."""
  configs.check_run(config)
  stage.check_fits(max(config.prompt_length + config.response_length,
                       config.text_length if config.ptx_ratio else 0), policy)


def _shapes(config):
  shape = jax.ShapeDtypeStruct
  prompts = (config.episodes, config.prompt_length)
  shapes = {'prompts': {'tokens': shape(prompts, np.int32), 'valid': shape(prompts, np.bool_)}}
  rows = round(config.ptx_ratio * config.episodes)
  if rows:
    text = (rows, config.text_length)
    shapes['pretraining'] = {'tokens': shape(text, np.int32), 'valid': shape(text, np.bool_),
                             'mask': shape(text, np.bool_)}
  return shapes


def _value_start(config, parents, key):
  """What the value model starts from: the reward model (paper), or a trunk with a zero head."""
  role = 'value' if config.value else 'reward' if 'reward' in parents else 'policy'
  return role, lambda model, params: params if 'head' in params else (
    transformer.with_scalar_head(model, params, key, zero=True))


def make(config: configs.PPO, parents: dict[str, stage.Parent], place: Any,
         judge_rows: Any = None) -> stage.Stage:
  """The stage of a PPO run.

  Args:
    parents: 'policy'; 'reward' unless config.reward is a function; 'value' if config.value names a
      run.
    place: where data is built; None: shapes only.
    judge_rows: (judge, prompts, responses, references) -> (metrics, rows), for evaluations inside
      the run.

  Raises:
    BadInput: numbers that do not divide, rows beyond a model's context, unreadable data, tokenizers
      that differ.
  """
  base = parents['policy']
  policy = dataclasses.replace(base.model, dropout=0.0)
  custom = None if 'reward' in parents else functions.load_reward(config.reward)
  role, value_params = _value_start(config, parents, jax.random.key(config.seed + 1))
  value = dataclasses.replace(parents[role].model, dropout=0.0)
  _check(config, policy)
  shapes = _shapes(config)
  tokenizer = base.tokenizer
  for name in sorted(parents.keys() & {'reward', 'value'}):
    stage.check_beside(name, parents[name], tokenizer, config)
  eos, pad = (tokenizer.ends, tokenizer.pad) if tokenizer is not None else (0, 1)

  def score(params, tokens, valid, mask):
    if custom is not None:
      return custom(tokens, valid, mask)
    return sharding.in_pieces(
      lambda piece: experience.scores(parents['reward'].model, params, *piece),
      rows_at_once(config), (tokens, valid))

  models = Models(policy=policy, value=value, policy_axes=transformer.axes(policy), score=score,
                  eos=eos, pad=pad)

  def init(key, params):
    real = jnp.float32
    return State(step=jnp.zeros(
      (), jnp.int32), kl_coef=real(config.kl_coef), ptx_coef=real(config.ptx_coef),
                 policy_learning_rate=real(config.policy_optimizer.learning_rate),
                 value_learning_rate=real(config.value_optimizer.learning_rate),
                 policy=stage.start(config.policy_optimizer, params['policy'], config.ema),
                 value=stage.start(config.value_optimizer, value_params(value, params[role])))

  def freeze(params):
    cast = sharding.in_compute_type
    return {'reference': cast(params['policy'], policy.compute), 'reward': None if custom else
            cast(params['reward'], parents['reward'].model.compute)}

  def export(state):
    return {'params': state.policy.params} | ({'ema': state.policy.ema} if config.ema else {})

  return stage.Stage(
    model=policy, tokenizer=tokenizer, kind='policy', steps=config.updates, init=init,
    freeze=freeze, update=functools.partial(update, config, models), export=export,
    batches=batches.prompts_and_text(config, base, place, shapes) if place is not None else None,
    batch_shapes=shapes,
    axes={'policy': transformer.axes(policy), 'scalar': transformer.axes(value, scalar=True)},
    evaluate=validation.evaluation(config, models, tokenizer, place, judge_rows),
    tokens=config.episodes * (config.prompt_length + config.response_length),
    evaluate_every=config.evaluate_every, headline=('score', 'kl'),
    describe=functools.partial(validation.describe, config, tokenizer),
    sizes=stage.sizes({'minibatch': config.minibatch, 'microbatch': config.microbatch or
                       config.minibatch, 'episodes of each of rollout_chunks':
                       config.episodes // config.rollout_chunks}, value=value))
