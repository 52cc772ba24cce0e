"""What to change first where an update does not fit.

Enter: a stage by shape, a mesh, what it holds, the largest temporaries. Leave: one line.
Left out: trying it (search.py does).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax import configs
from rlhf_jax.runtime import chips, layout
from rlhf_jax.runtime.abstract import Abstract


def first_change(made: Abstract, run: str, where: chips.Topology, mesh: configs.Mesh,
                 held: layout.Held, largest: Sequence[Mapping[str, Any]]) -> str:
  """The first thing to change, as an option of the command line where it is one.

  Args:
    largest: the largest temporaries, as aot.largest tells them; may be empty.
  """
  config = made.config
  if held.arguments > where.memory:
    return larger_slice(made, where)
  phase = largest[0]['phase'] if largest else ''
  wider = next((f'--{run}.mesh.fsdp {found.fsdp} --{run}.mesh.tensor {found.tensor}'
                for found, there in layout.meshes(made, where.devices)
                if found.tensor > mesh.tensor and there.arguments <= where.memory), '')
  split = f'{wider}: less of every layer on each device' if wider else larger_slice(made, where)
  if isinstance(config, configs.PPO) and phase in ('rollout', ''):
    more = dataclasses.replace(config, rollout_chunks=config.rollout_chunks * 2)
    if _divides(more, mesh) and (held.cache > held.decoding or not wider):
      return f'--{run}.rollout_chunks {more.rollout_chunks}: a smaller cache'
    return split
  size = config.microbatch or getattr(config, 'minibatch', 0) or config.batch
  if size % 2 == 0 and _divides(dataclasses.replace(config, microbatch=size // 2), mesh):
    return f'--{run}.microbatch {size // 2}: fewer rows at once'
  if not made.stage.model.remat:
    return 'remat = True in the model: activations are computed again instead of kept'
  if not made.stage.model.logits_chunk:
    return 'logits_chunk = 256 in the model: logits of a piece of each row at a time'
  return split


def larger_slice(made: Abstract, where: chips.Topology) -> str:
  """The smallest slice of the kind on which the least that is held at once would fit, with as much
  memory a device as here.
  """
  if where.kind == 'cpu':
    return 'more memory, or a smaller model'
  for shape in chips.CHIPS[where.kind].slices:
    there = chips.topology(f'{where.kind}:{shape}')
    if there.devices <= where.devices:
      continue
    if any(held.least <= where.memory for _, held in layout.meshes(made, there.devices)):
      return f'--topology {there.name}: what is held at once could fit there'
  return f'another chip: no slice of {where.kind} holds it'


def _divides(config: configs.Run, mesh: configs.Mesh) -> bool:
  counts = layout.rows(config).values()
  return all(count and count % (mesh.data * mesh.fsdp) == 0 for count in counts)
