"""Clocks and rates that the benchmark programs share: steps of a stage, matmuls, copies, FLOPs.

Enter: a stage of the product, or a jitted function. Leave: seconds, rates, counted FLOPs.
A stage's update is compiled as runtime/loop.py compiles it (`executables.update`).
Left out: several devices; what a program prints (each for itself).
"""

import contextlib
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

from rlhf_jax import configs
from rlhf_jax.model import attention, generate, transformer
from rlhf_jax.runtime import executables, flops, pages


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


def in_a_row(function: Callable[[Any], Any], x: Any, repeats: int, count: int = 4) -> float:
  """Median seconds of a call among `count`, each given the result before it: the host, slow
  beside a GPU, waits once for all of them.
  """
  def row():
    y = x
    for _ in range(count):
      y = function(y)
    return y

  return timed(row, repeats) / count


def matmul_rate(size: int = 2048, repeats: int = 5, dtype: str = 'float32') -> float:
  """FLOP/s of a large matrix product of random numbers on this machine, now."""
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(jnp.matmul)
  return 2 * size**3 / in_a_row(lambda b: product(a, b), a, repeats)


def copy_rate(count: int = 2**28, repeats: int = 5) -> float:
  """Bytes a second, read and written both counted, of a large copy (float32, negated on the way,
  so that nothing may be aliased).
  """
  x = jnp.ones((count,), jnp.float32)
  return 2 * x.nbytes / in_a_row(jax.jit(jnp.negative), x, repeats)


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
          warm: int = 2, ppo: bool = False) -> Steps:
  """Compiles a stage's update and runs it `warm + count` times; the state is donated.

  Args:
    batches: what the steps are given, in turns.
    ppo: pages as a PPO run has them.
  """
  key, walls, cpus, rows = jax.random.key(3), [], [], []
  started = time.perf_counter()
  update = executables.update(stage, None).lower(
    state, frozen, batches[0], key, np.int32(0)).compile()
  compile_seconds = time.perf_counter() - started
  pages.suit(update, ppo)
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


def _half(query: Any, key: Any, value: Any) -> Any:
  """In the place of `attention.causal`: as many products as it makes, with half of the keys."""
  near = [x[:, :x.shape[1] // 2] for x in (key, value)]
  return jax.nn.dot_product_attention(query, *near, implementation='xla')


def counted(function: Callable[..., Any], *arguments: Any, trips: int | None = None,
            otherwise: str = 'scoring', kernel: bool = False) -> flops.Counts:
  """FLOPs of the matrix products of one call, by phase; what is computed of masked attention is
  counted too.

  Args:
    trips: passes that decoding makes, in all of its loops.
    otherwise: the phase of what stands in no scope.
    kernel: attention is a kernel where one takes it, which computes half of a square; else it is
      XLA's operations everywhere.
  """
  fresh = lambda *given: function(*given)  # jax keeps what it traced
  here = {jax.default_backend(): 'counted'} if kernel else {}
  with contextlib.ExitStack() as stack:
    stack.enter_context(mock.patch.dict(attention.KERNELS, here, clear=True))
    stack.enter_context(mock.patch.object(generate, 'UNROLLED', ()))  # traced sooner
    if kernel:
      stack.enter_context(mock.patch.object(attention, '_trial', lambda *given: True))
      stack.enter_context(mock.patch.object(transformer, 'causal', _half))
    traced = jax.jit(fresh).trace(*arguments)
  each = trips and trips / len(generate.loops(trips + 1))
  return flops.count(traced.jaxpr.jaxpr, each, otherwise)


def by_layers(count: Callable[[configs.Model], flops.Counts],
              model: configs.Model) -> flops.Counts:
  """What `count` tells of a model, unrolled layers soon: from two and three of them, since all but
  the last are alike.
  """
  if model.scan or model.layers < 4:
    return count(model)
  two, three = (count(dataclasses.replace(model, layers=layers)) for layers in (2, 3))
  along = lambda a, b: a + (model.layers - 2) * (b - a)
  return flops.Counts({name: along(two.phases[name], three.phases[name]) for name in two.phases},
                      along(two.decoding, three.decoding), along(two.recomputed, three.recomputed))


def parameters(params: Any) -> int:
  """How many numbers a tree holds."""
  return sum(x.size for x in jax.tree.leaves(params))


def here() -> dict[str, Any]:
  """The machine and its load, for a RESULT line."""
  return {
    'jax': jax.__version__, 'device': jax.devices()[0].device_kind, 'cores': os.cpu_count(),
    'peak_rss_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    'loadavg': [round(x, 2) for x in os.getloadavg()]}
