"""Which programs share an executable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from rlhf_jax.runtime import executables


@pytest.fixture(autouse=True)
def none_held(monkeypatch):
  monkeypatch.setattr(executables, '_held', {})


def compiled(function):
  return executables.compiled(jax.jit(function).lower(jax.ShapeDtypeStruct((3,), jnp.float32)))


def test_the_same_program_is_compiled_once():
  first, second = (compiled(lambda x: 2 * x) for _ in range(2))
  assert first is second
  np.testing.assert_array_equal(compiled(lambda x: 3 * x)(np.ones(3, np.float32)), 3)


@pytest.mark.parametrize('call', [jax.pure_callback, io_callback])
def test_programs_that_call_the_host_call_their_own_function(call):
  """As rewards of two runs may: their programs differ in nothing but the function called."""
  def times(factor):
    host = lambda x: np.float32(factor) * np.asarray(x)
    return lambda x: call(host, jax.ShapeDtypeStruct((3,), jnp.float32), x)

  for factor in (2, 3):
    np.testing.assert_array_equal(compiled(times(factor))(np.ones(3, np.float32)), factor)
