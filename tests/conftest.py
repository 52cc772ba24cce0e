"""What has to be set before jax is imported: the CPU, as eight devices (plain tests use one)."""

import os

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') +
                             ' --xla_force_host_platform_device_count=8').strip()


@pytest.fixture(scope='package')
def quick_compilation():
  """Compiles with few optimizations, twice as fast: for tests that compile more than they run."""
  import jax
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)
