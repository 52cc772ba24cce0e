"""From sampled rows to scores, log-probabilities and values.

Enter: rows of tokens in the one layout (prompt left-padded, response right-padded). Leave: numbers
per response token, or per row. No training config is known here: PPO, collecting, evaluating and
sampling all ask the same functions.
Left out: packing several responses into a row.
"""

import chex
import flax.struct
import jax.numpy as jnp

from rlhf_jax import configs
from rlhf_jax.model import generate, transformer
from rlhf_jax.objectives import likelihood


@flax.struct.dataclass
class Experience:
  """What PPO learns from; fixed over all its epochs."""

  rollout: generate.Rollout
  score: chex.Array  # float32 [B]
  kl: chex.Array  # float32 [B, R], k1 a token
  values: chex.Array  # float32 [B, R]
  advantages: chex.Array  # float32 [B, R]
  returns: chex.Array  # float32 [B, R]


def _before(length):
  """Of [B, T, …], the positions before each of the last `length`."""
  return lambda x: x[:, -length - 1:-1]


def response_logprobs(config: configs.Model, params: transformer.Params, tokens: chex.Array,
                      valid: chex.Array, length: int, temperature: float = 1.0) -> chex.Array:
  """log p of the last `length` tokens of every row given all before: float32 [B, R]. No dropout."""
  hidden = transformer.hidden(config, params, tokens, valid, take=_before(length))
  table = transformer.unembedding(params, config.compute)
  return likelihood.token_logprobs(hidden, table, tokens[:, -length:], config.vocabulary,
                                   temperature, config.logits_chunk)


def next_token_losses(config: configs.Model, params: transformer.Params, rows: dict,
                      dropout_key: chex.PRNGKey | None = None, length: int = 0
                      ) -> tuple[chex.Array, chex.Array]:
  """−log p of every next token, or of the last `length` of a row: targets before do not count.

  Args:
    rows: 'tokens' int, 'valid' bool, 'mask' bool, each [B, T]; mask is true where a token is a
      target.

  Returns:
    losses float32 [B, T−1] or [B, length]; bool of the same shape, true at targets.
  """
  hidden = transformer.hidden(config, params, rows['tokens'], rows['valid'], dropout_key,
                              _before(length) if length else transformer.every)
  count = length or rows['tokens'].shape[1] - 1
  table = transformer.unembedding(params, config.compute)
  logprobs = likelihood.token_logprobs(hidden[:, :count], table, rows['tokens'][:, -count:],
                                       config.vocabulary, chunk=config.logits_chunk)
  return -logprobs, rows['mask'][:, -count:]


def response_values(config: configs.Model, params: transformer.Params, tokens: chex.Array,
                    valid: chex.Array, length: int) -> chex.Array:
  """The scalar head *before* each of the last `length` tokens is read: float32 [B, R]."""
  hidden = transformer.hidden(config, params, tokens, valid, take=_before(length))
  return transformer.scalars(params, hidden)


def _last(valid):
  """Of [B, T, …], the last position that is valid, [B, 1, …], whatever the padding."""
  # argmax finds the first maximum of the reversed mask.
  last = valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
  return lambda x: jnp.take_along_axis(x, last.reshape(-1, *[1] * (x.ndim - 1)), axis=1)


def scores(config: configs.Model, params: transformer.Params, tokens: chex.Array,
           valid: chex.Array) -> chex.Array:
  """The scalar head at the last valid token of each row (eos, or where it was cut): float32 [B]."""
  hidden = transformer.hidden(config, params, tokens, valid, take=_last(valid))
  return transformer.scalars(params, hidden)[:, 0]


def scores_of_completions(config: configs.Model, params: transformer.Params, tokens: chex.Array,
                          valid: chex.Array, length: int) -> chex.Array:
  """`scores` of rows [B, K, P+R] whose K completions, of `length` R, stand after the same prompt,
  which is read once: float32 [B, K]. An empty completion scores anything.
  """
  batch, count, total = tokens.shape
  params = transformer.unstacked(config, params)
  start = total - length
  positions = jnp.maximum(jnp.cumsum(valid, axis=2) - 1, 0)
  look = jnp.tril(jnp.ones((total, total), bool)) & valid[:, :, None]
  _, prompt = transformer.run_blocks(config, params, tokens[:, 0, :start], positions[:, 0, :start],
                                     look[:, 0, :start, :start], keep_cache=True,
                                     take=lambda x: x[:, -1:])
  after = lambda x: x[:, :, start:].reshape(batch * count, length, *x.shape[3:])
  hidden, _ = transformer.run_blocks(config, params, after(tokens), after(positions), after(look),
                                     prompt, index=None, take=_last(after(valid)))
  return transformer.scalars(params, hidden)[:, 0].reshape(batch, count)
