"""What gpu.py's programs hold and move on a GPU that is not here: compiled for it, not executed.

  python experiments/bench/gpu_compiled.py [--parts gpt2_124m/sft,…] [--no-kernel] [--top 8]

Needs jax with its CUDA plugin (`pip install "jax[cuda12]"`), neither a GPU nor a driver. The target
is an H200 as its maker describes it. A part's line: kernels started, bytes read and written by
them, matrix FLOPs, temporary memory, and the seconds that the bytes or the FLOPs take at the
target's own rates, whichever are more: a floor, not a forecast. --top names what moves most.
Bytes are those of every kernel's arguments and results; of a slice, a gather or an update in place
those that it touches. Last line: RESULT {json}.
Left out: how fast kernels are, the choices that XLA makes by trying them on the device.
"""

import argparse
import collections
import dataclasses
import functools
import re
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import gpu
import work

sys.path.insert(0, str(work.ROOT))

import gpu_part
import jax
import jax.numpy as jnp
import measure
import ppo_update
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax import configs
from rlhf_jax.model import attention, generate
from rlhf_jax.runtime import collectives

FLOPS, BANDWIDTH = 989e12, 4.8e12  # NVIDIA H200, SXM: dense bfloat16 a second, bytes a second
TARGET = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  memory_bandwidth: 4800000000000 device_memory_size: 150000000000
}
platform_name: "CUDA" device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
"""
NOTHING = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all',
           'partition-id', 'opt-barrier')  # start no kernel
PARTLY = ('slice', 'dynamic-slice', 'gather')  # read of their first argument what they give


# ----- bytes of a compiled program


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One instruction of the program, and how often it runs."""
  name: str
  path: str  # jax's name stack
  times: float
  moved: float  # bytes, all times together


def kernels(text: str, trips: float = 0) -> Iterator[Kernel]:
  """What a program runs.

  Args:
    text: of the optimized module.
    trips: how often a loop runs whose count is not in the text.
  """
  program = collectives.Program(text, 'scoring')
  yield from _of(program, program.entry, 1.0, trips)


def _of(program: Any, computation: str, times: float, trips: float) -> Iterator[Kernel]:
  instructions = program.instructions(computation)
  for made in instructions.values():
    if made.opcode == 'while':
      known = re.search(r'known_trip_count[^0-9]*(\d+)', made.rest)
      inside = int(known[1]) if known else trips
      yield from _of(program, made.attribute('body'), times * inside, trips)
    elif made.opcode == 'conditional':  # the dearest branch
      branches = [list(_of(program, name, times, trips)) for name in program.called(made)]
      yield from max(branches, key=lambda found: sum(kernel.moved for kernel in found))
    elif made.opcode in ('call', 'async-start'):
      for name in program.called(made):
        yield from _of(program, name, times, trips)
    elif made.opcode not in NOTHING and not made.opcode.endswith(('-done', '-update')):
      path = re.search(r'op_name="([^"]*)"', made.rest)
      yield Kernel(made.name, path[1] if path else '', times,
                   times * _bytes(program, instructions, made))


def _size(shape: str) -> float:
  return sum(collectives.sizes(shape))


def _bytes(program: Any, instructions: dict[str, Any], made: Any) -> float:
  """Bytes one instruction reads and writes."""
  shape_of = lambda name: instructions[name].shape if name in instructions else ''
  whole = [_size(shape_of(name)) for name in made.operands]
  if made.opcode != 'fusion':
    if made.opcode == 'dynamic-update-slice':
      return 2 * whole[1]
    return _size(made.shape) + (_size(made.shape) + sum(whole[1:]) if made.opcode in PARTLY
                                else sum(whole))
  inner = program.instructions(made.attribute('calls'))
  users = collections.defaultdict(list)
  for other in inner.values():
    for place, name in enumerate(other.operands):
      users[name].append((other, place))

  def read(name, size):
    """Bytes of an argument that the fusion reads; 0 of what it updates in place."""
    total = 0.0
    for user, place in users[name]:
      if user.opcode in PARTLY and place == 0:
        total += _size(user.shape)
      elif user.opcode == 'dynamic-update-slice' and place == 0:
        continue
      elif user.opcode in ('bitcast', 'copy', 'convert') and user.name in users:
        total += read(user.name, size)
      else:
        return size
    return min(size, total)

  arguments = {int(x.inside): name for name, x in inner.items() if x.opcode == 'parameter'}
  total = sum(read(arguments[place], size) for place, size in enumerate(whole))
  updates = [x for x in inner.values() if x.opcode == 'dynamic-update-slice']
  written = _size(made.shape) - sum(_size(x.shape) - _size(inner[x.operands[1]].shape)
                                    for x in updates)
  return total + max(written, 0.0)


# ----- programs


def flops_of(wish: dict[str, Any], kernel: bool) -> float:
  """Of one part's largest program, what remat computes twice left out."""
  if wish['part'] == 'ppo':
    (config, _), model = gpu_part.ppo_config(wish), configs.Model(**wish['model'])
    found = measure.by_layers(functools.partial(
      gpu_part.update_flops, config, ppo_update.batch_of(model, config), kernel), model)
  else:
    run, given = gpu_part.programs(wish)[-1]
    found = measure.counted(run, *given, trips=trips_of(wish), kernel=kernel)
  return found.total - found.recomputed


def trips_of(wish: dict[str, Any]) -> int:
  """How often the decoding loop of a part's program runs; 0 where it has none."""
  return wish.get('response', wish.get('response_length', 1)) - 1


def compiled(wish: dict[str, Any], place: Any, kernel: bool, top: int) -> dict[str, Any]:
  """Compiles one part for the target, and what the program is like."""
  run, given = gpu_part.programs(wish)[-1]
  trips, here = trips_of(wish), jax.default_backend()
  there = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=place), given)
  started = time.monotonic()
  with mock.patch.dict(attention.KERNELS, {here: 'cudnn'} if kernel else {}, clear=True), \
       mock.patch.dict(generate.LOOPS, {here: generate.LOOPS['gpu']}), \
       mock.patch.object(generate, 'UNROLLED', (here,)), \
       mock.patch.object(attention, '_trial', lambda *given: True):
    done = run.lower(*there).compile()
    seconds, flops = time.monotonic() - started, flops_of(wish, kernel)
    loops = len(generate.loops(trips + 1))
  found = list(kernels(done.as_text(), trips / loops))
  moved, movers = sum(x.moved for x in found), collections.Counter()
  for x in found:
    movers[f'{re.sub(r"[.0-9]+$", "", x.name)} {"/".join(x.path.split("/")[-3:])}'] += x.moved
  return {
    'kernels': round(sum(x.times for x in found)), 'moved_gb': round(moved / 1e9, 2),
    'gflop': round(flops / 1e9, 1), 'temporary_gib': round(
      done.memory_analysis().temp_size_in_bytes / 2**30, 3),
    'bytes_seconds': round(moved / BANDWIDTH, 5), 'flops_seconds': round(flops / FLOPS, 5),
    'compile_seconds': round(seconds, 1),
    'top_gb': {name: round(size / 1e9, 2) for name, size in movers.most_common(top)}}


def target() -> Any:
  """Where arrays lie on the GPU that is not here."""
  from jax._src import xla_bridge  # no public way: jax takes 'cuda' for 'gpu' only where one is
  known = xla_bridge.canonicalize_platform

  def canonical(platform):
    return 'cuda' if platform in ('gpu', 'cuda') else known(platform)

  xla_bridge.canonicalize_platform = canonical
  try:
    there = topologies.get_topology_desc(platform='cuda', target_config=TARGET, topology='1x1x1')
  except Exception as error:
    work.refuse(f'jax of {sys.executable} cannot compile for a GPU ({str(error).splitlines()[0]}): '
                'pip install "jax[cuda12]"')
  return NamedSharding(topologies.make_mesh(there, (1,), ('gpu',)), PartitionSpec())


def main() -> None:
  """Compiles and prints."""
  names = [name for name in gpu.names(gpu.MODELS) if '/' in name]
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--parts', default='', help='some of them, separated by commas')
  parser.add_argument('--no-kernel', action='store_true', help='attention in XLA\'s operations')
  parser.add_argument('--top', type=int, default=0, help='so many of those that move most')
  options = parser.parse_args()
  wanted = options.parts.split(',') if options.parts else names
  if unknown := set(wanted) - set(names):
    work.refuse(f'--parts: {", ".join(sorted(unknown))} is none of {", ".join(names)}')
  place, told, left = target(), {}, work.Left(len(wanted))
  for name in wanted:
    told[name] = compiled(gpu.wish_of(name, gpu.MODELS, False), place, not options.no_kernel,
                          options.top)
    row = told[name]
    left.step(name)
    print(f'{name:20s} {row["kernels"]:6d} kernels, {row["moved_gb"]:8.1f} GB, '
          f'{row["gflop"] / 1e3:7.2f} TFLOP, {row["temporary_gib"]:6.2f} GiB, at least '
          f'{max(row["bytes_seconds"], row["flops_seconds"]):.4f} s '
          f'(bytes {row["bytes_seconds"]:.4f}, FLOPs {row["flops_seconds"]:.4f})', flush=True)
    for mover, size in row['top_gb'].items():
      print(f'  {size:8.2f} GB  {mover}', flush=True)
  work.tell({'impl': 'rlhf_jax', 'task': 'gpu_compiled', 'jax': jax.__version__,
             'kernel': not options.no_kernel, 'parts': told})


if __name__ == '__main__':
  main()
