"""The people who write demonstrations: of varying skill, each with weak sides, none a fool and none
perfect.

In: (split, size, seed). Out: `Demonstration` records; meta is the task, with the writer's name
under 'writer'.
Left out: what habits do to an answer (answers.py), what is asked (usage.py).
"""

import dataclasses
import functools
from collections.abc import Iterator

from rlhf_jax.data.records import Demonstration
from rlhf_jax.miniature import usage
from rlhf_jax.miniature.answers import answer
from rlhf_jax.miniature.habits import Habits
from rlhf_jax.miniature.language import Dice

WRITERS = 12
# habits of a writer lie within this much of the average, all up or down together by half of it
SPREAD = 0.16


@functools.cache
def writers() -> dict[str, Habits]:
  """Name of each writer → habits. Averages over writers are those of `Habits()`."""
  people = {}
  for number in range(WRITERS):
    dice = Dice('writer', number)
    skill = SPREAD * ((number + 0.5) / WRITERS - 0.5)
    people[f'writer-{number:02d}'] = Habits(
      **{
        field.name: min(
          1.0,
          max(
            0.0,
            field.default
            + (skill + SPREAD * (dice.random() - 0.5)) * 4 * field.default * (1 - field.default),
          ),
        )
        for field in dataclasses.fields(Habits)
      }
    )
  return people


def demonstrations(split: str, size: int, seed: int) -> Iterator[Demonstration]:
  """One demonstration for each of `prompts(split, size, seed)`."""
  people = writers()
  dice = Dice('demonstrations', split, seed)
  for prompt in usage.prompts(split, size, seed):
    writer = dice.pick(list(people))
    yield Demonstration(
      prompt.prompt,
      answer(dict(prompt.meta), dice, people[writer]),
      prompt.category,
      prompt.customer,
      {**prompt.meta, 'writer': writer},
    )
