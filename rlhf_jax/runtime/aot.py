"""One compilation for a slice that is not there, in a process of its own.

Enter: a request as JSON on stdin, the arguments of `compiled`. Leave: what the compiler says, as
JSON in the file that the first argument names. The program is the one the loop runs
(executables.update), or a part of it; nothing is executed. A process of its own, because libtpu can
be loaded once, may abort, and because a compilation of minutes must be possible to end.
Left out: caching: jax cannot read back what was compiled for another machine.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from rlhf_jax import configs
from rlhf_jax.model import experience, generate, sharding
from rlhf_jax.runtime import abstract, chips, collectives, executables, layout, meshes
from rlhf_jax.runtime import experiment as experiments
from rlhf_jax.runtime import overrides as changes
from rlhf_jax.runtime.flops import Incomplete, phase
from rlhf_jax.stages import ppo

PARTS = ('update', 'rollout', 'minibatch')  # the whole; PPO's two phases that need most memory
LARGEST = 3  # temporaries that are named


def main() -> None:
  """Reads the request, compiles, writes the answer; BadInput becomes {'error': …}."""
  request = json.load(sys.stdin)
  try:
    told = compiled(**request)
  except configs.BadInput as error:
    told = {'error': str(error)}
  Path(sys.argv[1]).write_text(json.dumps(told), encoding='utf-8')


def compiled(file: str, given: dict, overrides: list, run: str, topology: str, mesh: list[int],
             part: str, hbm: float, data: str | None) -> dict[str, Any]:
  """Compiles a run's update, or a part of it.

  Args:
    given: values of the experiment file's own options.
    overrides: [path, value as text] pairs.
    mesh: data, fsdp, tensor.
    part: of PARTS.
    hbm: bytes a device, 0: what the chip has.
    data: what relative model folders are below.

  Returns:
    'seconds' to compile; 'peak' bytes a device, or 'needed' where it does not fit; 'largest'
    temporaries; 'moved': collectives.Moved.phases, or 'refused': why they were not counted.
  """
  where = chips.topology(topology, hbm)
  devices = _devices(where)  # before anything else asks for a device
  experiment = changes.apply(experiments.load(Path(file), given), [(a, b) for a, b in overrides])
  made = abstract.make(experiment, run, None if data is None else Path(data))
  grid = meshes.make_mesh(configs.Mesh(*mesh), devices)
  otherwise = otherwise_of(made.config)
  with jax.set_mesh(grid), tempfile.TemporaryDirectory() as folder:
    with abstract.traced_for(where.kind):
      lowered = program(made, grid, part)
    options = {}
    if where.kind != 'cpu':
      options['xla_dump_to'] = folder
      if hbm:
        options['xla_tpu_max_hbm_size_mib'] = str(int(hbm) >> 20)
    started = time.monotonic()
    try:
      done = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      return _too_large(str(error), Path(folder), otherwise) | {
        'seconds': time.monotonic() - started}
    told = {'seconds': time.monotonic() - started} | _memory(done.memory_analysis(), where.kind)
    text = _dumped(Path(folder), 'after_optimizations') or done.as_text()
    told['largest'] = largest(_dumped(Path(folder), 'after_optimizations-buffer-assignment'), text,
                              otherwise)
    try:
      told['moved'] = collectives.count(text, otherwise).phases
    except Incomplete as error:
      told['refused'] = str(error)
  return told


def otherwise_of(config: configs.Run) -> str:
  """The phase of what stands in no scope: in PPO's update that is scoring."""
  return 'scoring' if isinstance(config, configs.PPO) else 'training'


def program(made: abstract.Abstract, grid: jax.sharding.Mesh, part: str = 'update') -> Any:
  """The lowered program, its arguments shapes that lie as the loop places them."""
  stage, config = made.stage, made.config
  state, frozen = layout.shapes(made)
  at = sharding.state_shardings(grid, state, stage.axes)
  state = placed(state, at)
  frozen = placed(frozen, sharding.state_shardings(grid, frozen, stage.axes))
  batch = placed(stage.batch_shapes, sharding.batch_shardings(grid, stage.batch_shapes))
  alone = jax.sharding.NamedSharding(grid, jax.sharding.PartitionSpec())
  key = placed(jax.eval_shape(lambda: jax.random.key(0)), alone)
  step = jax.ShapeDtypeStruct((), np.int32, sharding=alone)
  if part == 'update':
    return executables.update(stage, at).lower(state, frozen, batch, key, step)
  if not isinstance(config, configs.PPO):
    raise configs.BadInput(f'part {part!r}: only the update of a PPO run has parts')
  if part == 'rollout':  # what a length depends on; the compiler drops the rest
    rollout = lambda *given: stage.update(*given)[1]['response_length']
    return jax.jit(rollout, keep_unused=True).lower(state, frozen, batch, key)
  models = stage.update.args[1]
  step_of = lambda state, frozen, seen, text: ppo.minibatch(config, models, state, seen, text)
  seen, text = minibatch_shapes(config)
  rows = lambda tree: placed(tree, sharding.batch_shardings(grid, tree))
  return jax.jit(step_of, donate_argnums=0, out_shardings=(at, None), keep_unused=True).lower(
    state, frozen, rows(seen), rows(text))


def minibatch_shapes(config: configs.PPO) -> tuple[experience.Experience, dict | None]:
  """What one optimizer step of PPO sees: experience, and its share of pretraining text."""
  rows, prompt, length = config.minibatch, config.prompt_length, config.response_length
  shape = lambda kind, *sizes: jax.ShapeDtypeStruct((rows, *sizes), kind)
  a_token = shape(np.float32, length)
  rollout = generate.Rollout(tokens=shape(np.int32, prompt + length),
                             valid=shape(np.bool_, prompt + length), mask=shape(np.bool_, length),
                             logprobs=a_token)
  seen = experience.Experience(rollout=rollout, score=shape(np.float32), kl=a_token,
                               values=a_token, advantages=a_token, returns=a_token)
  texts = (round(config.ptx_ratio * rows), config.text_length)
  if not texts[0]:
    return seen, None
  return seen, {'tokens': jax.ShapeDtypeStruct(texts, np.int32),
                'valid': jax.ShapeDtypeStruct(texts, np.bool_),
                'mask': jax.ShapeDtypeStruct(texts, np.bool_)}


def placed(tree: Any, at: Any) -> Any:
  """ShapeDtypeStructs with their shardings; `at` is one sharding, or a tree of them."""
  place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  if isinstance(at, jax.sharding.Sharding):
    return jax.tree.map(lambda leaf: place(leaf, at), tree)
  return jax.tree.map(place, tree, at)


def largest(assignment: str, text: str, otherwise: str) -> list[dict[str, Any]]:
  """The largest temporaries of a TPU program: bytes, shape, what computes them and in which phase.

  Args:
    assignment: the compiler's buffer-assignment dump; '' gives no answer.
    text: the optimized module.
  """
  values = re.findall(r'value: <\d+ ([\w.\-]+)(?:\{[\d,]*\})? @\d+> \(size=(\d+),offset=\d+\): '
                      r'(\w+\[[\d,]*\])(\S*)', assignment)
  found: dict[tuple[str, str], dict[str, Any]] = {}
  for name, size, shape, where in sorted(values, key=lambda v: -int(v[1]))[:400]:
    line = re.search(rf'%{re.escape(name)} = .*', text)
    path = re.search(r'op_name="([^"]*)"', line[0]) if line else None
    # S(1) and above are not the device's main memory; 'state…' and the like are arguments.
    if re.search(r'S\(\d+\)', where) or not path or not path[1].startswith('jit('):
      continue
    operation = path[1].split('/')[-2:]
    found.setdefault((shape, '/'.join(operation)), {
      'bytes': int(size), 'shape': shape, 'operation': '/'.join(operation),
      'phase': phase(path[1], otherwise)})
    if len(found) == LARGEST:
      break
  return list(found.values())


def _devices(where: chips.Topology) -> list:
  if where.kind == 'cpu':
    jax.config.update('jax_num_cpu_devices', where.devices)
    return jax.devices('cpu')
  options: dict[str, Any] = {'chip_config_name': 'megacore'} if where.kind == 'v4' else {}
  if where.name.endswith(':1x1'):  # else libtpu divides the slice into hosts of four chips
    options['chips_per_host_bounds'] = [1, 1, 1]
  return list(topologies.get_topology_desc(where.name, platform='tpu', **options).devices)


def _memory(analysis: Any, kind: str) -> dict[str, int]:
  given = analysis.argument_size_in_bytes
  peak = analysis.peak_memory_in_bytes
  if kind == 'cpu':  # its compiler leaves temporaries out of the peak
    peak = (given + analysis.output_size_in_bytes - analysis.alias_size_in_bytes +
            analysis.temp_size_in_bytes)
  return {'peak': peak, 'arguments': given}


def _too_large(message: str, folder: Path, otherwise: str) -> dict[str, Any]:
  """What an out-of-memory error tells; any other error is passed on."""
  number = r'\(([\d.]+)([KMGT])\)'
  found = re.search(rf'temporaries {number} exceeds available HBM {number}', message)
  if not found:
    raise configs.BadInput(f'the compiler failed: {message.splitlines()[0]}')
  scale = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
  text = _dumped(folder, 'after_optimizations')
  return {'needed': float(found[1]) * scale[found[2]],
          'available': float(found[3]) * scale[found[4]],
          'largest': largest(_dumped(folder, 'after_optimizations-buffer-assignment'), text,
                             otherwise)}


def _dumped(folder: Path, kind: str) -> str:
  """A dump of the largest module that was compiled; '' if there is none."""
  files: list[Path] = sorted(folder.glob(f'*.{kind}.txt'), key=lambda path: path.stat().st_size)
  return files[-1].read_text(encoding='utf-8', errors='replace') if files else ''


if __name__ == '__main__':
  main()
