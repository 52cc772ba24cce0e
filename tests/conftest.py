"""jax as the tests want it: on the CPU, with eight devices of which plain tests use one."""

import gc
import importlib.metadata
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Read when gcsfs is imported: it would ask over gRPC, which tests/object_store.py does not speak.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'
_outside = os.environ.get('XLA_FLAGS')
# Tiny programs compile three times as fast so; jaxlib 0.11 no longer knows the flag and aborts.
_quick = importlib.metadata.version('jaxlib') < '0.11' and '--xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = ' '.join(
  filter(None, (_outside, '--xla_force_host_platform_device_count=8', _quick)))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from rlhf_jax.model import transformer  # noqa: E402
from rlhf_jax.runtime import meshes  # noqa: E402

gc.set_threshold(20_000)  # as __main__ does: tracing makes much that stays
jax.devices()  # reads XLA_FLAGS; the processes that tests start get what was there before
if _outside is None:
  del os.environ['XLA_FLAGS']
else:
  os.environ['XLA_FLAGS'] = _outside


# Files that take minutes begin first (--no-loadscope-reorder), so that all workers end together.
SLOW = ('test_experiments.py', 'test_processes.py', 'test_preflight.py', 'test_kill.py',
        'test_bench.py', 'test_object_store.py', 'test_slurm.py')


def pytest_collection_modifyitems(items):
  last = len(SLOW)
  items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else last)


@pytest.fixture(scope='module', autouse=True)
def room_for_programs():
  """A compiled program takes several of the 65,530 mappings that Linux gives a process, and XLA
  ends in a segmentation fault where there are no more: after some 2000 tests in one process.
  """
  yield
  if os.path.exists('/proc/self/maps'):
    with open('/proc/self/maps') as file:
      many = sum(1 for _ in file) > 30_000
    if many:
      jax.clear_caches()


@pytest.fixture(scope='session', autouse=jax.device_count() < 8)
def skipped_without_devices():
  """On one GPU: a test that wants a mesh of more is skipped."""
  patch, make = pytest.MonkeyPatch(), meshes.make_mesh

  def made(mesh, devices=None):
    if len(devices or jax.devices()) < 8 and mesh.data * mesh.fsdp * mesh.tensor not in (1, -1):
      pytest.skip('wants more devices')
    return make(mesh, devices)

  patch.setattr(meshes, 'make_mesh', made)
  yield
  patch.undo()


@pytest.fixture(scope='package')
def quick_compilation():
  """Compiles with few optimizations, twice as fast; for packages of very many tiny programs."""
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='session')
def random_params():
  """(model, scalar, seed) -> parameters in which no norm is one and no bias zero, uncompiled."""
  def make(model, scalar, seed):
    shapes = jax.eval_shape(lambda key: transformer.init(model, key, scalar), jax.random.key(0))
    random = np.random.default_rng(seed)

    def leaf(path, s):
      centre = 1.0 if path[-1].key == 'scale' else 0.0
      spread = model.init_std if len(s.shape) > 1 else 0.1
      return jax.numpy.asarray(random.normal(centre, spread, s.shape), s.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)

  return make
