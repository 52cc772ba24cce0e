"""Softmax attention by heads: of long rows in pieces, or in one kernel where the device has it.

Enter: queries, keys, values, a mask. Leave: what the queries read. Letters as in transformer.py.
Left out: kernels for TPUs, and for any mask but causality (decoding, prompts that are shared).
"""

import functools
import itertools
import warnings

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import configs
from rlhf_jax.model.positions import head_size
from rlhf_jax.model.sharding import constrain

LONG, PIECES = 128, 4  # from so many queries on, in so many pieces or in a kernel
KERNELS = {'gpu': 'cudnn'}  # backend -> jax.nn.dot_product_attention's implementation


def has_kernel(config: configs.Model, time: int) -> bool:
  """Whether `causal` takes rows of so many tokens here; a trial of its kernel has the last word."""
  kernel, size = KERNELS.get(jax.default_backend()), head_size(config)
  return (config.fused and kernel is not None and config.compute == 'bfloat16' and time >= LONG
          and not config.window and _trial(kernel, time, config.heads, config.kv_heads, size))


def causal(query: chex.Array, key: chex.Array, value: chex.Array,
           kernel: str | None = None) -> chex.Array:
  """[B, T, N, H], what such queries read of keys and values [B, T, G, H] up to their own place."""
  return jax.nn.dot_product_attention(query, key, value, is_causal=True,
                                      implementation=kernel or KERNELS[jax.default_backend()])


@functools.cache
def _trial(kernel, time, heads, groups, size):
  """Whether the kernel and XLA's own operations agree, gradients too; a warning says if not.

  Of one row and group of heads, since XLA's scores take room by the square of `time`.
  """
  def pulled(kernel):
    asked = heads // (groups or heads)
    given = [jax.random.normal(jax.random.key(i), (1, time, n, size), jnp.bfloat16)
             for i, n in enumerate((asked, 1, 1, asked))]
    out, pull = jax.vjp(functools.partial(causal, kernel=kernel), *given[:3])
    return jax.tree.map(lambda x: x.astype(jnp.float32), (out, *pull(given[3])))

  far = lambda one, other: jnp.linalg.norm(one - other) / jnp.linalg.norm(other)
  furthest = lambda: jnp.max(jnp.stack(jax.tree.map(far, pulled(kernel), pulled('xla'))))
  with jax.ensure_compile_time_eval():
    try:
      gap = float(jax.jit(furthest)())
    except Exception as error:  # whatever a device's library may raise
      gap = error
  if not (right := isinstance(gap, float) and gap < 0.02):  # bfloat16 has 1/256
    warnings.warn(f'attention without {kernel}, whose trial gave: {gap}', stacklevel=2)
  return right


def attend(query: chex.Array, key: chex.Array, value: chex.Array, mask: chex.Array,
           start: int | None) -> chex.Array:
  """[B, T, N, H], what such queries read of keys and values [B, G, S, H]; softmax in float32.

  Args:
    mask: bool [B, T, S], true where a query may look.
    start: queries are the slots from it on, and none sees a later one; None: not known. A quarter
      of long rows is done at a time with the keys up to its end: of S = T, 3/8 are never made.
  """
  batch, time, heads, size = query.shape
  query = query.reshape(batch, time, key.shape[1], -1, size).transpose(0, 2, 3, 1, 4)
  if start is None or time < LONG:
    out = _whole(query, key, value, mask)
  else:
    ends = [time * piece // PIECES for piece in range(PIECES + 1)]
    out = jnp.concatenate([
      _whole(query[:, :, :, a:b], key[:, :, :start + b], value[:, :, :start + b],
             mask[:, a:b, :start + b]) for a, b in itertools.pairwise(ends)], axis=3)
  return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)


def _whole(query, key, value, mask):
  batch, groups, _, _, size = query.shape
  flat = query.reshape(batch, groups, -1, size)  # Q: the heads of a group, and T
  return _read(flat, key, value, mask[:, None, None]).reshape(query.shape)


def _forward(query, key, value, mask):
  scores = _masked(_by_slot(query, key) * query.shape[-1]**-0.5, mask, -1e30)
  weights = jax.nn.softmax(scores, axis=-1)
  out = jnp.einsum('bgqs,bgsh->bgqh', _by_heads(weights.astype(value.dtype)), value)
  return out, (query, key, value, mask, weights)


def _backward(kept, gradient):
  query, key, value, mask, weights = kept
  pull = weights * _by_slot(gradient, value)
  mean = jnp.sum(pull, axis=-1, keepdims=True)
  if jax.default_backend() == 'cpu':  # which takes the sum slowly where it fuses it with the rest
    mean = jax.lax.optimization_barrier(mean)
  pull = _masked((pull - weights * mean) * query.shape[-1]**-0.5, mask, 0.0)
  pull, weights = (_by_heads(x.astype(query.dtype)) for x in (pull, weights))
  to_slots = lambda x, y: jnp.einsum('bgqs,bgqh->bgsh', x, y)
  return (jnp.einsum('bgqs,bgsh->bgqh', pull, key), to_slots(pull, query),
          to_slots(weights, gradient), None)


_read = jax.custom_vjp(lambda *given: _forward(*given)[0])
_read.defvjp(_forward, _backward)


def _by_heads(x):  # on `tensor` throughout; otherwise the backward pass reshards float32 scores
  return constrain(x, 'batch', 'kv_heads', None, None)


def _by_slot(x, y):  # float32 [B, G, Q, S]
  return _by_heads(jnp.einsum('bgqh,bgsh->bgqs', x, y, preferred_element_type=jnp.float32))


def _masked(x, mask, other):
  return jnp.where(mask, x.reshape(*x.shape[:2], -1, *mask.shape[3:]), other).reshape(x.shape)
