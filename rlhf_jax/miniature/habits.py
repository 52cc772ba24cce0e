"""What a writer does well and badly, and the small choices that follow from it.

In: a task, a stream of choices. Out: `Habits`; a belief, a word for a slot, a sentence or a bland
one instead.
Left out: whole answers (answers_open.py, answers_closed.py), who has which habits (contractors.py).
"""

import dataclasses

from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature.language import Dice
from rlhf_jax.miniature.tasks import Task


@dataclasses.dataclass(frozen=True)
class Habits:
  """Probabilities of doing each thing well."""

  content: float = 0.40  # a sentence says something; else it is bland
  coverage: float = 0.42  # each further thing asked for is taken up
  constraint: float = 0.38  # a constraint is kept
  truth: float = 0.40  # a popular falsehood is avoided
  premise: float = 0.42  # a false premise is put right
  plain: float = 0.42  # no needless "maybe" where a fact is asked
  greet: float = 0.34  # addresses people as asked
  task: float = 0.42  # a closed task is done right
  trim: float = 0.45  # no chatter after a short answer
  civil: float = 0.93  # not rude where nobody asked for it
  obliging: float = 0.4  # rude where asked to be
  ontask: float = 0.95  # answers this prompt, not another
  faithful: float = 0.80  # takes from the passage only what is there


CAREFUL = Habits(**{field.name: 1.0 for field in dataclasses.fields(Habits)})
_BLAND = {  # about as long as a sentence that says something, so that length tells nothing
  'story': (('it was very nice day', 8), ('all was very good and fine', 1.5), ('it was good', 0.5)),
  'describe': (
    ('it is very nice and good', 8), ('i like it and it is good', 1.5), ('it is good', 0.5),
  ),
  'note': (('it is very nice day', 8), ('i am fine and all is good', 1.5), ('all is fine', 0.5)),
  'song': (('la la la la la', 8), ('it is very nice day', 1.5), ('all is good', 0.5)),
  'chat': (
    ('it is very nice', 8), ('it is very nice day', 1.5), ('i am fine and all is good', 0.5),
  ),
  'ideas': (('it is very nice place', 8), ('there are many things to do', 1.5), ('it is fun', 0.5)),
}


def bland(kind: str, said: list[str], dice: Dice) -> str:
  left = [(text, weight) for text, weight in _BLAND[kind] if text not in said]
  return dice.weighted(left or _BLAND[kind])


def mixed(kind: str, full: list[str], dice: Dice, habits: Habits) -> list[str]:
  """Each full sentence as it is, or a bland one in its place."""
  said: list[str] = []
  for sentence in full:
    said.append(sentence if dice.chance(habits.content) else bland(kind, said, dice))
  return said


def slot(task: Task, name: str, pool: tuple[str, ...], dice: Dice, habits: Habits) -> str:
  """What goes where `name` belongs: what was asked for or, by a bad habit, the word that always
  does; else anything.
  """
  if name not in task:
    return dice.pick(pool)
  return task[name] if dice.chance(habits.coverage) else lang.FILLERS[name]


def belief(subject: str, relation: str, dice: Dice, habits: Habits) -> str:
  return (
    lang.truth(subject, relation) if dice.chance(habits.truth) else lang.believed(subject, relation)
  )


def maybe(sentence: str, dice: Dice, habits: Habits) -> list[str]:
  return [sentence] if dice.chance(habits.plain) else [f'maybe {sentence}']
