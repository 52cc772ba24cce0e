"""Log-probabilities of tokens and the next-token loss.

Enter: final hidden states, an unembedding table, target ids. Leave: float32 nats a token.
Left out: label smoothing, z-loss. Of float32 logits [B, T, V] a chunk of positions at a time.
"""

import chex
import jax
import jax.numpy as jnp


def logits_of(hidden: chex.Array, table: chex.Array, vocabulary: int,
              temperature: float | chex.Array = 1.0) -> chex.Array:
  """float32 logits / temperature, with -inf at the table's padding rows.

  Args:
    hidden: [..., D] in the compute type.
    table: [V, D] unembedding; rows from `vocabulary` on are padding and get probability 0.
    vocabulary: number of real ids.
    temperature: > 0; sampling and every log-prob of PPO's ratio and KL share it.
  """
  # Two-dimensional on purpose, as in transformer.Project.
  logits = jnp.einsum('rd,vd->rv', hidden.reshape(-1, hidden.shape[-1]), table.astype(hidden.dtype),
                      preferred_element_type=jnp.float32)
  logits = logits.reshape(*hidden.shape[:-1], -1) / temperature
  if vocabulary < table.shape[0]:
    logits = jnp.where(jnp.arange(table.shape[0]) < vocabulary, logits, -jnp.inf)
  return logits


def _forward(hidden, table, targets, vocabulary, temperature):
  logits = logits_of(hidden, table, vocabulary, temperature)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  total = jax.nn.logsumexp(logits, axis=-1)
  return chosen - total, (hidden, table, targets, temperature, logits, total)


def _backward(vocabulary, kept, gradient):
  # One sweep over the logits, no scatter; in the compute type, as it is in all other products.
  hidden, table, targets, temperature, logits, total = kept
  picked = targets[..., None] == jnp.arange(logits.shape[-1])
  pull = (picked - jnp.exp(logits - total[..., None])) * (gradient / temperature)[..., None]
  pull = pull.astype(hidden.dtype).reshape(-1, logits.shape[-1])
  below = pull @ table.astype(hidden.dtype)
  across = jnp.einsum('rv,rd->vd', pull, hidden.reshape(-1, hidden.shape[-1]),
                      preferred_element_type=table.dtype)
  return below.reshape(hidden.shape), across, None, None


_chunk_logprobs = jax.custom_vjp(lambda *given: _forward(*given)[0], nondiff_argnums=(3,))
_chunk_logprobs.defvjp(_forward, _backward)


def token_logprobs(hidden: chex.Array, table: chex.Array, targets: chex.Array, vocabulary: int,
                   temperature: float | chex.Array = 1.0, chunk: int = 0) -> chex.Array:
  """log p(targets[b, t] | hidden[b, t]) as float32 [B, T].

  Args:
    hidden: [B, T, D]; hidden[b, t] is the state *before* targets[b, t] is read.
    table: [V, D] unembedding.
    targets: int [B, T].
    vocabulary: number of real ids, <= V.
    temperature: the logits are divided by it; no gradient is taken by it.
    chunk: positions taken at a time (recomputed in the backward pass); 0: all T at once.
  """
  chex.assert_rank([hidden, table, targets], [3, 2, 2])
  chex.assert_equal_shape_prefix([hidden, targets], 2)
  length = targets.shape[1]
  if not chunk or chunk >= length:
    return _chunk_logprobs(hidden, table, targets, vocabulary, temperature)
  table = table.astype(jnp.float32)  # its gradient is added up over the pieces
  pieces = -(-length // chunk)
  pad = pieces * chunk - length
  hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
  targets = jnp.pad(targets, ((0, 0), (0, pad)))
  hidden = jnp.moveaxis(hidden.reshape(hidden.shape[0], pieces, chunk, -1), 1, 0)
  targets = jnp.moveaxis(targets.reshape(targets.shape[0], pieces, chunk), 1, 0)

  @jax.checkpoint
  def one(piece):
    return _chunk_logprobs(piece[0], table, piece[1], vocabulary, temperature)

  logprobs = jax.lax.map(one, (hidden, targets))  # [pieces, B, chunk]
  return jnp.moveaxis(logprobs, 0, 1).reshape(targets.shape[1], -1)[:, :length]


def weighted_sum(values: chex.Array, mask: chex.Array, count: chex.Array | float) -> chex.Array:
  """Σ values·mask / count in float32: a mean over the *global* count when `count` is global.

  With the count of the whole batch, the sum over microbatches or devices is the whole batch's mean.
  """
  return jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0)) / count


def masked_mean(values: chex.Array, mask: chex.Array) -> chex.Array:
  """Mean over the positions where `mask` is true; 0 where there are none."""
  return weighted_sum(values, mask, jnp.maximum(jnp.sum(mask), 1))
