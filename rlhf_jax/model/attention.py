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


def attend(query: chex.Array, key: chex.Array, value: chex.Array, mask: chex.Array,
           start: int | None) -> chex.Array:
  """[B, G, N/G, T, H] of such queries over keys and values [B, G, S, H]; softmax in float32.

  Args:
    mask: bool [B, T, S], true where a query may look.
    start: queries are the slots from it on, and none sees a later one; None: not known. A quarter
      of long rows is done at a time with the keys up to its end: of S = T, 3/8 are never made.
  """
  time = query.shape[3]
  if start is None or time < LONG:
    return _whole(query, key, value, mask)
  ends = [time * piece // PIECES for piece in range(PIECES + 1)]
  return jnp.concatenate([
    _whole(query[:, :, :, a:b], key[:, :, :start + b], value[:, :, :start + b],
           mask[:, a:b, :start + b]) for a, b in itertools.pairwise(ends)], axis=3)


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
