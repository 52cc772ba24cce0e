"""Rotary positions: how far each number of a head turns, and the turning.

Enter: a configs.Model, positions; heads of queries or keys. Leave: the same heads, turned.
Letters: B batch, T time, H head size, h the numbers of a head that are rotated.
Left out: learned positions, which are a table of the transformer's.
"""

import math

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import configs


def head_size(config: configs.Model) -> int:
  """H: config.head_size, or width / heads."""
  return config.head_size or config.width // config.heads


def rotary_size(config: configs.Model) -> int:
  """h: how many of a head's H numbers are rotated."""
  return int(head_size(config) * config.rotary)


def turns(config: configs.Model, positions: chex.Array) -> tuple[chex.Array, chex.Array]:
  """(cos, sin) of every position's angles, float32 [B, T, 1, h/2].

  Llama 3's scaling: long waves are stretched by the factor, short ones kept, those between are
  blended (Llama 3 herd of models, §3.4.1, and its published code).
  """
  size = rotary_size(config)
  frequencies = config.rope_theta**(-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
  if config.rope_scaling:
    factor, *rest = config.rope_scaling
    keep = 0.0  # share of a frequency that is not stretched
    if rest:
      low, high, context = rest
      lengths = context * frequencies / (2 * math.pi)
      keep = jnp.clip((lengths - low) / (high - low), 0.0, 1.0)
    frequencies = frequencies * (keep + (1.0 - keep) / factor)
  angles = (positions.astype(jnp.float32)[..., None] * frequencies)[:, :, None]
  waves = lambda a: (jnp.cos(a), jnp.sin(a))
  # XLA on CPU takes a sine for cheap and makes it anew in every head of every layer, which is 10 x
  # slower, and no barrier keeps it from that; what comes out of a branch stays whole.
  once = lambda a: jax.lax.cond(positions[0, 0] >= 0, waves, lambda a: (a, a), a)
  return jax.lax.platform_dependent(angles, cpu=once, default=waves)


def rotate(x: chex.Array, cos: chex.Array, sin: chex.Array) -> chex.Array:
  """Half-split form: x [B, T, heads, H] by `turns` [B, T, 1, h/2]; the first h of H are rotated."""
  size = 2 * cos.shape[-1]
  first, second = jnp.split(x[..., :size].astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  kept = [x[..., size:].astype(jnp.float32)] if size < x.shape[-1] else []
  return jnp.concatenate(turned + kept, axis=-1).astype(x.dtype)
