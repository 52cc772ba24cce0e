"""Clocks and rates that the benchmark programs share: steps of a stage, matmuls, copies, FLOPs.

Enter: a stage of the product, or a jitted function. Leave: seconds, rates, counted FLOPs.
A stage's update is compiled as runtime/loop.py compiles it (`executables.update`).
Left out: several devices; what a program prints (each for itself).
"""

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import work

sys.path.insert(0, str(work.ROOT))

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.model import attention, generate
from rlhf_jax.runtime import executables, flops


class Endless:
  """A tokenizer whose end token lies outside the vocabulary: every response has its full length."""
  identity, pad = '', 0

  def __init__(self, vocabulary: int):
    self.eos, self.ends = vocabulary + 1, (vocabulary + 1,)


# ----- rates of the machine


def timed(function: Callable[[], Any], repeats: int) -> float:
  """Median seconds of a call that returns arrays, after one call to warm up."""
  jax.block_until_ready(function())
  walls = []
  for _ in range(repeats):
    started = time.perf_counter()
    jax.block_until_ready(function())
    walls.append(time.perf_counter() - started)
  return float(np.median(walls))


def matmul_rate(size: int = 2048, repeats: int = 5, dtype: str = 'float32') -> float:
  """FLOP/s of a large matrix product of random numbers on this machine, now."""
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(jnp.matmul)
  return 2 * size**3 / timed(lambda: product(a, a), repeats)


def copy_rate(count: int = 2**28, repeats: int = 5) -> float:
  """Bytes a second, read and written both counted, of a large copy (float32, negated on the way,
  so that nothing may be aliased).
  """
  x = jnp.ones((count,), jnp.float32)
  copy = jax.jit(jnp.negative)
  return 2 * x.nbytes / timed(lambda: copy(x), repeats)


# ----- steps of a stage


@dataclasses.dataclass
class Steps:
  """What so many steps took, those to warm up left out."""
  walls: list[float]
  cpus: list[float]  # seconds of this process on all cores
  compile_seconds: float
  program_bytes: int  # arguments, results and temporaries, by the compiler; 0 where it does not say
  metrics: dict[str, float]  # of the last step
  first: dict[str, float]  # of the first step
  state: Any
  update: Any  # compiled; takes what stage.update takes, and the number of the step

  @property
  def seconds(self) -> float:
    """Median."""
    return float(np.median(self.walls))


def steps(stage: Any, state: Any, frozen: Any, batches: Sequence[Any], count: int,
          warm: int = 2) -> Steps:
  """Compiles a stage's update and runs it `warm + count` times; the state is donated.

  Args:
    batches: what the steps are given, in turns.
  """
  key, walls, cpus, rows = jax.random.key(3), [], [], []
  started = time.perf_counter()
  update = executables.update(stage, None).lower(
    state, frozen, batches[0], key, np.int32(0)).compile()
  compile_seconds = time.perf_counter() - started
  for number in range(warm + count):
    wall, cpu = time.perf_counter(), time.process_time()
    state, metrics = update(state, frozen, batches[number % len(batches)], key, np.int32(number))
    jax.block_until_ready(metrics)
    walls.append(time.perf_counter() - wall)
    cpus.append(time.process_time() - cpu)
    if number in (0, warm + count - 1):
      rows.append({name: float(value) for name, value in metrics.items() if not np.ndim(value)
                   and name != 'samples'})
  return Steps(walls[warm:], cpus[warm:], compile_seconds, program_bytes(update), rows[-1],
               rows[0], state, update)


def program_bytes(compiled: Any) -> int:
  """Bytes that a compiled program needs at once, what is donated counted once."""
  sizes = compiled.memory_analysis()
  if sizes is None:
    return 0
  return (sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
          - sizes.alias_size_in_bytes)


def counted(function: Callable[..., Any], *arguments: Any, trips: int | None = None,
            otherwise: str = 'scoring') -> flops.Counts:
  """FLOPs of the matrix products of one call, by phase; what is computed of masked
  attention is counted too, and a fused kernel as XLA's operations that it stands for.

  Args:
    trips: passes that decoding makes, in all of its loops.
    otherwise: the phase of what stands in no scope.
  """
  fresh = lambda *given: function(*given)  # jax keeps what it traced
  with mock.patch.dict(attention.KERNELS, clear=True), \
       mock.patch.object(generate, 'UNROLLED', ()):  # traced sooner
    traced = jax.jit(fresh).trace(*arguments)
  each = trips and trips / len(generate.loops(trips + 1))
  return flops.count(traced.jaxpr.jaxpr, each, otherwise)


def parameters(params: Any) -> int:
  """How many numbers a tree holds."""
  return sum(x.size for x in jax.tree.leaves(params))


def here() -> dict[str, Any]:
  """The machine and its load, for a RESULT line."""
  return {
    'jax': jax.__version__, 'device': jax.devices()[0].device_kind, 'cores': os.cpu_count(),
    'peak_rss_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    'loadavg': [round(x, 2) for x in os.getloadavg()]}
