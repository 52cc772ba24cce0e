"""A run's update on a slice that is not here: does it fit, what does it cost, how fast can it be.

Enter: an Experiment, a run, a topology. Leave: a report, as text and as JSON, and an exit code.
Shapes and FLOPs are worked out in this process, on its CPU; each compilation has one of its own
(aot.py), with the environment that libtpu needs.
Left out: time that is lost (this is a floor), input pipelines, checkpoints, the first placing of
weights.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import configs
from rlhf_jax.runtime import abstract, advice, aot, chips, flops, layout, overrides
from rlhf_jax.runtime import experiment as experiments
from rlhf_jax.runtime.abstract import Abstract
from rlhf_jax.runtime.chips import GIB, Topology

DAY = 86400 * 1e15  # FLOPs of a petaflop/s-day
# What libtpu asks of a machine that has no TPU; several may be loaded, since none touches a device.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': '0', 'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_MIN_LOG_LEVEL': '3'}


@dataclasses.dataclass(frozen=True)
class Wish:
  """What is asked: a run of an experiment file, with changes, on a topology."""
  file: Path
  run: str
  overrides: tuple[tuple[str, str], ...]
  topology: Topology
  given: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the file's own options
  part: str = 'update'  # of aot.PARTS
  hbm: float = 0.0  # bytes, in the place of the device's memory
  data: Path | None = None  # what relative model folders are below

  def changed(self, changes: Mapping[str, Any]) -> 'Wish':
    """With further fields of the run set."""
    more = tuple((f'{self.run}.{field}', str(value)) for field, value in changes.items())
    return dataclasses.replace(self, overrides=(*self.overrides, *more))

  def made(self) -> Abstract:
    """The run by shapes, with the changes. Raises BadInput."""
    experiment = overrides.apply(experiments.load(self.file, self.given), self.overrides)
    return abstract.make(experiment, self.run, self.data)


def preflight(wish: Wish) -> dict[str, Any]:
  """Everything that is reported, JSON-ready.

  Raises:
    BadInput: a run that cannot be, a mesh that does not divide it, no libtpu for a TPU.
  """
  made = wish.made()
  if wish.topology.kind != 'cpu' and not importlib.util.find_spec('libtpu'):
    raise configs.BadInput(f'--topology {wish.topology.name}: compiling for a TPU needs the libtpu '
                           "wheel: pip install -e '.[tpu]' (or --topology cpu:8)")
  mesh, held = layout.mesh_of(made, wish.topology.devices, wish.topology.memory)
  told = described(made, wish, mesh, held)
  if held.arguments > wish.topology.memory:  # the compiler need not be asked
    told['compiled'] = {'needed': held.arguments, 'by': 'arguments alone', 'largest': []}
  else:
    told['compiled'] = compiled(wish, mesh)
  answer = told['compiled']
  needed = answer.get('needed', answer.get('peak', 0))
  told['fits'] = 'needed' not in answer and needed <= wish.topology.memory
  own = chips.topology(wish.topology.name).memory
  if 'needed' in answer and own < needed <= wish.hbm:  # libtpu goes by the chip all the same
    told['device_bytes'], answer['by'] = own, "--hbm above the chip's own counts for nothing"
  told['needed_bytes'] = needed
  if not told['fits']:
    told['first_change'] = advice.first_change(
      made, wish.run, wish.topology, mesh, held, answer['largest'])
  return told


def described(made: Abstract, wish: Wish, mesh: configs.Mesh,
              held: layout.Held) -> dict[str, Any]:
  """What is known without a compiler."""
  where, config = wish.topology, made.config
  chosen = {f'mesh.{axis}': size for axis, size in dataclasses.asdict(mesh).items()}
  for field in ('rollout_chunks', 'microbatch'):
    if hasattr(config, field):
      chosen[field] = getattr(config, field)
  return {
    'run': wish.run, 'part': wish.part, 'topology': where.name, 'devices': where.devices,
    'device_bytes': where.memory, 'chosen': chosen,
    'bytes': held.parts | {'arguments': held.arguments},
    'rollout': {'decoding weights': held.decoding, 'KV cache': held.cache},
    'updates': _updates(made)} | cost(made, where, mesh, held)


def _updates(made: Abstract) -> int | None:
  """Of the whole run; None where they follow from the data."""
  config = made.config
  counted = isinstance(config, configs.PPO) or getattr(config, 'steps', 0)
  return made.stage.steps if counted else None


def cost(made: Abstract, where: Topology, mesh: configs.Mesh, held: layout.Held) -> dict[str, Any]:
  """FLOPs of an update by phase, bytes that decoding streams, and the floor in seconds."""
  state, frozen = layout.shapes(made)
  key = jax.eval_shape(lambda: jax.random.key(0))
  update = lambda *given: made.stage.update(*given)  # a new one: jax keeps what it traced
  with abstract.traced_for(where.kind), jax.sharding.use_abstract_mesh(layout.abstract_mesh(mesh)):
    traced = jax.jit(update).trace(state, frozen, made.stage.batch_shapes, key)
  ppo = isinstance(made.config, configs.PPO)
  passes = made.config.response_length - 1 if ppo else None  # the last token is not read again
  counts = flops.count(traced.jaxpr.jaxpr, passes, aot.otherwise_of(made.config))
  streamed = 0.0
  if ppo:
    # Every step of every chunk reads the weights and, masked or not, the whole cache.
    read = layout.decoding_bytes(made, layout.abstract_mesh(mesh))['read']
    streamed = made.config.rollout_chunks * passes * (read + held.cache)
  told = {'flops': dict(counts.phases), 'flops_total': counts.total,
          'flops_recomputed': counts.recomputed, 'streamed_bytes': streamed,
          'petaflop_days': None, 'petaflop_days_without_recomputation': None}
  updates = _updates(made)
  if updates:
    told['petaflop_days'] = counts.total * updates / DAY
    told['petaflop_days_without_recomputation'] = (
      counts.total - counts.recomputed) * updates / DAY
  if where.flops:
    rate = where.flops * where.devices
    decoding = max(counts.decoding / rate, streamed / where.bandwidth)
    told['floor_seconds'] = {'decoding': decoding, 'all else': (counts.total - counts.decoding)
                             / rate}
    told['floor_seconds']['update'] = sum(told['floor_seconds'].values())
  return told


def compiled(wish: Wish, mesh: configs.Mesh) -> dict[str, Any]:
  """The compiler's answer (aot.compiled), from a process of its own."""
  request = {
    'file': str(wish.file), 'given': dict(wish.given), 'overrides': list(wish.overrides),
    'run': wish.run, 'topology': wish.topology.name, 'mesh': list(dataclasses.astuple(mesh)),
    'part': wish.part, 'hbm': wish.hbm, 'data': None if wish.data is None else str(wish.data)}
  left = {name: value for name, value in os.environ.items()
          if not name.startswith(('XLA_', 'LIBTPU', 'TPU_', 'JAX_'))}
  here = str(Path(__file__).resolve().parents[2])
  left['PYTHONPATH'] = os.pathsep.join(filter(None, (here, left.get('PYTHONPATH'))))
  with tempfile.TemporaryDirectory() as folder:
    answer = Path(folder) / 'answer.json'
    done = subprocess.run([sys.executable, '-m', 'rlhf_jax.runtime.aot', str(answer)],
                          input=json.dumps(request), text=True, env=left | ENVIRONMENT,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode or not answer.exists():
      lines = done.stderr.strip().splitlines() or ['it said nothing']
      raise configs.BadInput(f'compiling for {wish.topology.name} ended with '
                             f'{done.returncode}: {lines[-1]}')
    told = json.loads(answer.read_text(encoding='utf-8'))
  if 'error' in told:
    raise configs.BadInput(told['error'])
  return told


# ---------------------------------------------------------------- as text


def text(told: Mapping[str, Any]) -> str:
  """The report for a reader; bytes are a device's."""
  answer, limit, needed = told['compiled'], told['device_bytes'], told['needed_bytes']
  where = f"{told['run']} on {told['topology']}"
  if told['part'] != 'update':
    where += f" ({told['part']} only)"
  if told['fits']:
    lines = [f'{where}: fits, {_size(needed)} of {_size(limit)} a device at the peak']
  else:
    by = f" ({answer['by']})" if 'by' in answer else ''
    lines = [f'{where}: does not fit, {_size(needed)}{by} of {_size(limit)} a device, '
             f'{_size(needed - limit)} too much', f"  change first: {told['first_change']}"]
  lines.append(f"  {told['devices']} devices: " + ' '.join(
    f"--{told['run']}.{field} {value}" for field, value in told['chosen'].items()))
  return '\n'.join([*lines, '', 'memory a device', *_memory(told, answer), '', 'an update',
                    *_work(told, answer), *_time(told, answer)])


def _memory(told: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
  lines = [_row(name, _size(size)) for name, size in told['bytes'].items() if size]
  if 'peak' in answer:
    beside = answer['peak'] - told['bytes']['arguments']
    lines.append(_row('temporaries at the peak', _size(beside)))
  lines += [_row(name, _size(size), 'among the temporaries of the rollout')
            for name, size in told['rollout'].items() if size]
  lines += [_row(f"a temporary of {one['phase']}", _size(one['bytes']),
                 f"{one['shape']} {one['operation']}") for one in answer['largest']]
  return lines


def _work(told: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
  lines = [_row(f'FLOPs, {name}', f'{count:.3g}') for name, count in told['flops'].items() if count]
  lines.append(_row('FLOPs', f"{told['flops_total']:.3g}",
                    f"of them computed a second time {told['flops_recomputed']:.3g}"))
  if told['streamed_bytes']:
    lines.append(_row('decoding reads', _size(told['streamed_bytes']), 'a device'))
  for name, kinds in answer.get('moved', {}).items():
    most = sorted(kinds.items(), key=lambda item: -item[1])[:3]
    lines.append(_row(f'collectives, {name}', _size(sum(kinds.values())), 'a device sends: '
                      + ', '.join(f'{kind} {_size(size)}' for kind, size in most)))
  if 'refused' in answer:
    lines.append(_row('collectives', 'not counted', answer['refused']))
  return lines


def _time(told: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
  floor, updates, lines = told.get('floor_seconds'), told['updates'], []
  if floor is not None:
    lines.append(_row('floor', f'{floor["update"]:.3g} s', f'decoding {floor["decoding"]:.3g}, all '
                      f'else {floor["all else"]:.3g}; collectives taken as hidden'))
  if updates is not None:
    lines.append(_row(f'{updates} updates', f'{told["petaflop_days"]:.3g}', 'petaflop/s-days, '
                      f'without recomputation {told["petaflop_days_without_recomputation"]:.3g}' + (
                        '' if floor is None else
                        f'; {floor["update"] * updates / 3600:.3g} hours at least')))
  if 'seconds' in answer:
    lines.append(_row('compiled in', f'{answer["seconds"]:.0f} s'))
  return lines


def _row(name: str, value: str, comment: str = '') -> str:
  return f'  {name:<26}{value:>12}  {comment}'.rstrip()


def _size(size: float) -> str:
  for unit, name in ((2**50, 'PiB'), (2**40, 'TiB'), (GIB, 'GiB')):
    if size >= unit:
      return f'{size / unit:.2f} {name}'
  return f'{size / 2**20:.2f} MiB'
