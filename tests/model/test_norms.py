"""The norms' own gradient, against finite differences in float64 and jax's own derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.model import norms

EPSILON = 0.03  # large, so that leaving it out is seen


def plain(x, scale, center):
  """The formula, by numpy or jax.numpy."""
  y = x - x.mean(-1, keepdims=True) if center else x
  return y / ((y * y).mean(-1, keepdims=True) + EPSILON)**0.5 * scale


@pytest.fixture(scope='module')
def drawn():
  random = np.random.default_rng(0)
  # A mean far from 0, and rows of different size.
  x = (random.normal(size=(2, 3, 5)) + 0.7) * np.array([0.2, 1.0, 4.0])[:, None]
  return x, random.normal(size=5), random.normal(size=x.shape)


@pytest.mark.parametrize('center', [True, False])
def test_the_value_and_its_gradient(drawn, center):
  x, scale, weights = drawn
  own = lambda x, scale: jnp.sum(weights * norms.normalize(x, scale, center, EPSILON))
  given = jnp.float32(x), jnp.float32(scale)
  np.testing.assert_allclose(norms.normalize(*given, center, EPSILON), plain(x, scale, center),
                             rtol=1e-5, atol=1e-6)
  found = jax.grad(own, argnums=(0, 1))(*given)
  other = jax.grad(lambda x, scale: jnp.sum(weights * plain(x, scale, center)), argnums=(0, 1))(
    *given)
  loss = lambda x, scale: np.sum(weights * plain(x, scale, center))

  def differences(array, moved):
    result = np.zeros_like(array)
    for index in np.ndindex(array.shape):
      step = np.zeros_like(array)
      step[index] = 1e-6
      result[index] = (moved(array + step) - moved(array - step)) / 2e-6
    return result

  wanted = (differences(x, lambda moved: loss(moved, scale)),
            differences(scale, lambda moved: loss(x, moved)))
  for ours, numbers, derived in zip(found, wanted, other, strict=True):
    np.testing.assert_allclose(ours, numbers, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours, derived, rtol=1e-4, atol=1e-5)
