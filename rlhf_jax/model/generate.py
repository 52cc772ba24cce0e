"""Sampling: prompts in, a Rollout out.

Enter: left-padded prompts. Leave: tokens, masks and the sampler's own log-probabilities.
Prefill fills a key/value cache; a while_loop adds a token at a time and ends when every response
has ended.
Left out: top-k and top-p (the behaviour policy would no longer be the policy in PPO's ratio),
beams, speculation.
"""

import dataclasses
import functools
from collections.abc import Sequence

import chex
import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax import configs
from rlhf_jax.model import sharding, transformer
from rlhf_jax.objectives import likelihood

# By backend: scanned layers are unrolled to decode (a scan copies their weights for every token);
# decoding goes in so many loops, each reading the slots it may fill (elsewhere the cut is a copy).
UNROLLED, LOOPS, SHORTEST = ('gpu',), {'gpu': 4}, 32  # tokens of a loop


@flax.struct.dataclass
class Rollout:
  """Sampled rows: the prompt left-padded in P, the response right-padded in R."""

  tokens: chex.Array  # int32 [B, P+R]
  valid: chex.Array  # bool [B, P+R], every real token
  mask: chex.Array  # bool [B, R], response tokens, eos included
  logprobs: chex.Array  # float32 [B, R], of the samples at their temperature; 0 outside the mask


def ends(tokens: chex.Array, eos: int | Sequence[int]) -> chex.Array:
  """bool, true where a token is eos, or one of several ids that end a response."""
  return jnp.any(tokens[..., None] == jnp.atleast_1d(jnp.asarray(eos)), axis=-1)


def ended(rollout: Rollout, eos: int | Sequence[int]) -> chex.Array:
  """bool [B], true where the response holds eos."""
  responses = rollout.tokens[:, -rollout.mask.shape[1]:]
  return jnp.any(ends(responses, eos) & rollout.mask, axis=1)


def loops(length: int) -> list[int]:
  """How many tokens of a response there are at the end of each of the loops that decode it."""
  count = min(LOOPS.get(jax.default_backend(), 1), max(length // SHORTEST, 1))
  return [length * number // count for number in range(1, count + 1)]


def _prefill(config, params, prompts, valid, length):
  """Hidden state of the last prompt token [B, D], and a cache with room for `length` more."""
  positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  causal = jnp.tril(jnp.ones((prompts.shape[1],) * 2, bool))
  hidden, cache = transformer.run_blocks(config, params, prompts, positions,
                                         causal & valid[:, None, :], keep_cache=True,
                                         take=lambda x: x[:, -1:])
  return hidden[:, 0], transformer.with_room(cache, length)


def _gumbel(key, shape):
  """jax.random.gumbel(key, shape) to the bit, with Threefry-2x32 (Salmon et al. 2011) written out:
  XLA on CPU runs jax's as a loop that copies its arrays. Of two dimensions, below 2^32 numbers.
  """
  if str(jax.random.key_impl(key)) != 'threefry2x32' or not jax.config.jax_threefry_partitionable:
    return jax.random.gumbel(key, shape)
  first, second = jax.random.key_data(key)
  keys = (first, second, first ^ second ^ 0x1BD11BDA)
  row, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
  left, right = jnp.broadcast_to(first, shape), row * shape[1] + column + second
  for group in range(5):
    for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
      left = left + right
      right = left ^ (right << turn | right >> 32 - turn)
    left, right = left + keys[(group + 1) % 3], right + keys[(group + 2) % 3] + (group + 1)
  ones = jax.lax.bitcast_convert_type((left ^ right) >> 9 | 0x3F800000, jnp.float32)  # in [1, 2)
  uniform = jnp.maximum(ones - 1.0, jnp.finfo(jnp.float32).tiny)
  return -jnp.log(-jnp.log(uniform))


def _categorical(key, logits):
  """jax.random.categorical's tokens [B], of max and its first place: in an argmax XLA on CPU would
  compute the noise number by number.
  """
  noisy = jax.lax.optimization_barrier(logits + _gumbel(key, logits.shape))
  best = jnp.max(noisy, axis=1, keepdims=True)
  last = logits.shape[1] - 1
  return jnp.min(jnp.where(noisy == best, jnp.arange(last + 1), last), axis=1)


def generate(config: configs.Model, params: transformer.Params, prompts: chex.Array,
             valid: chex.Array, key: chex.PRNGKey, *, length: int, temperature: float,
             eos: int | Sequence[int], pad: int) -> Rollout:
  """Samples one response a prompt.

  Args:
    config, params: the policy; params as `sharding.for_decoding` gives them.
    prompts, valid: int / bool [B, P], left-padded.
    key: one key; step t uses fold_in(key, t), so a row's tokens do not depend on when others end.
    length: R, the most tokens of a response, eos included.
    temperature: divides the logits; 0 takes the most likely token (log-probs are then those at
      temperature 1).
    eos: id that ends a response, or several. pad: id written after it.
  """
  chex.assert_equal_shape([prompts, valid])
  batch, prompt_length = prompts.shape
  if jax.default_backend() in UNROLLED:
    config = dataclasses.replace(config, scan=False)
  table = transformer.unembedding(params, config.compute)
  params = transformer.unstacked(config, params)
  last, cache = _prefill(config, params, prompts, valid, length)
  slots = jnp.pad(valid, ((0, 0), (0, length)), constant_values=True)
  count = jnp.sum(valid, axis=1)

  def sample(hidden, step):
    logits = likelihood.logits_of(hidden, table, config.vocabulary, temperature or 1.0)
    logits = sharding.constrain(logits, 'batch', None)
    if temperature:
      token = _categorical(jax.random.fold_in(key, step), logits)
    else:
      token = jnp.argmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)

  def add(step, hidden, tokens, logprobs, done, mask):
    token, logprob = sample(hidden, step)
    token = jnp.where(done, pad, token)
    put = lambda array, column: jax.lax.dynamic_update_index_in_dim(array, column, step, axis=1)
    return (token, put(tokens, token), put(logprobs, jnp.where(done, 0.0, logprob)),
            done | ends(token, eos), put(mask, ~done))

  def unfinished(end, carry):
    step, (_, _, _, done, _), _ = carry
    return (step < end - 1) & ~jnp.all(done)

  def decode(end, carry):
    step, (token, *rest), cache = carry  # the step that sampled this token
    look = slots & (jnp.arange(prompt_length + length) <= prompt_length + step)
    look = look[:, None, :prompt_length + end]
    hidden, cache = transformer.run_blocks(config, params, token[:, None], (count + step)[:, None],
                                           look, cache, prompt_length + step)
    return step + 1, add(step + 1, hidden[:, 0], *rest), cache

  first = add(0, last, jnp.full((batch, length), pad, jnp.int32), jnp.zeros((batch, length)),
              jnp.zeros((batch,), bool), jnp.zeros((batch, length), bool))
  carry, to = (0, first, cache), functools.partial
  for end in loops(length):
    carry = jax.lax.while_loop(to(unfinished, end), to(decode, end), carry)
  _, (_, tokens, logprobs, _, mask), _ = carry
  return Rollout(tokens=jnp.concatenate([prompts, tokens], axis=1),
                 valid=jnp.concatenate([valid, mask], axis=1), mask=mask, logprobs=logprobs)


@jax.named_scope('rollout')
def generate_in_chunks(config: configs.Model, params: transformer.Params, prompts: chex.Array,
                       valid: chex.Array, key: chex.PRNGKey, chunks: int, **options) -> Rollout:
  """`generate` for `chunks` equal groups of prompts in turn, so that the cache of one fits."""
  if chunks == 1:
    return generate(config, params, prompts, valid, key, **options)
  rollouts = jax.lax.map(
    lambda group: generate(config, params, *group, **options),
    (sharding.split_rows(prompts, chunks), sharding.split_rows(valid, chunks),
     jax.random.split(key, chunks)))
  return jax.tree.map(sharding.join_rows, rollouts)
