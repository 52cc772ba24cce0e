"""Softmax attention by heads, of long rows in pieces.

Enter: queries, keys, values, a mask. Leave: what the queries read. Letters as in transformer.py.
Left out: fused kernels (the mask is explicit, so padding is free to be anywhere).
"""

import itertools

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.model.sharding import constrain

LONG, PIECES = 128, 4  # from so many queries on, in so many pieces


def attend(query: chex.Array, key: chex.Array, value: chex.Array, mask: chex.Array, own: bool
           ) -> chex.Array:
  """[B, G, N/G, T, H] of such queries over keys and values [B, G, S, H]; softmax in float32.

  Args:
    mask: bool [B, T, S], true where a query may look.
    own: queries and keys are the same slots, and no query sees a later one. Then a quarter of long
      rows is done at a time with the keys up to its end: 3/8 of the scores are never made.
  """
  time = query.shape[3]
  if not own or time < LONG:
    return _whole(query, key, value, mask)
  ends = [time * piece // PIECES for piece in range(PIECES + 1)]
  return jnp.concatenate([
    _whole(query[:, :, :, start:end], key[:, :, :end], value[:, :, :end], mask[:, start:end, :end])
    for start, end in itertools.pairwise(ends)], axis=3)


def _whole(query, key, value, mask):
  # Heads stay on `tensor` through scores, weights and output; otherwise the backward pass
  # reshards float32 scores.
  batch, groups, _, time, size = query.shape
  scores = jnp.einsum('bgqh,bgsh->bgqs', query.reshape(batch, groups, -1, size), key,
                      preferred_element_type=jnp.float32)  # q: the heads of a group, and T
  scores = constrain(scores * size**-0.5, 'batch', 'kv_heads', None, None)
  scores = scores.reshape(batch, groups, -1, time, key.shape[2])
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
  weights = weights.astype(value.dtype).reshape(batch, groups, -1, key.shape[2])
  weights = constrain(weights, 'batch', 'kv_heads', None, None)
  return jnp.einsum('bgqs,bgsh->bgqh', weights, value).reshape(query.shape)
