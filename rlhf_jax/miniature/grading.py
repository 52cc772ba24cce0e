"""What a rubric says of a response, and the questions that several rubrics ask of it.

In: a task and a `Reading`. Out: `Grade` and its parts.
Left out: the rubrics themselves (rubric_open.py, rubric_questions.py, rubric_texts.py).
"""

import dataclasses
from collections.abc import Sequence

from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature.grammar import Reading
from rlhf_jax.miniature.tasks import Task

OPEN_NEED, SHORT_NEED = 23, 14  # words beyond which a response is longer than its task needs


@dataclasses.dataclass
class Grade:
  """What one rubric says of one response."""

  task: float  # 0: not done … 1: done
  rich: float = 0.0  # 0: says nothing … 1: says all that is worth saying
  beside: float = 0.0  # sentences that belong to something else
  false: float = 0.0  # false claims about the world
  made_up: bool | None = None  # says what the passage does not; None: there is no passage
  truthful: bool | None = None  # asserts nothing false; None: no fact is asked for
  accepts: bool | None = None  # goes along with a false premise; None: there is none
  refuses: bool = False  # answers that it does not know or that the text does not say
  need: int = SHORT_NEED


def declines(reading: Reading) -> bool:
  return any(
    'not' in s.words and {'say', 'know', 'tell', 'help'} & set(s.words) for s in reading.sentences
  )


def asked_for(task: Task) -> set[str]:
  return {task[slot] for slot in ('topic', 'with', 'place', 'thing', 'to') if slot in task}


def judged(
  task: Task, reading: Reading, subjects: set[str]
) -> tuple[list[tuple[str, str, str, bool]], float, float]:
  """(true claims about the subjects, false claims, claims about others), 'it' taken as the subject
  last named.
  """
  true, false, others = [], 0.0, 0.0
  last = task['topic']
  for sentence in reading.sentences:
    for subject, relation, value, affirmed in sentence.claims:
      subject = last if subject == 'it' else subject
      if (subject, relation) not in lang.facts():
        others += relation in ('eat', 'grow', 'home') and subject not in lang.THINGS
      elif (lang.truth(subject, relation) == value) != affirmed:
        false += 1
        others += subject not in subjects
      elif subject in subjects:
        true.append((subject, relation, value, affirmed))
      else:
        others += 1
    named = [word for word in sentence.words if word in lang.ANIMALS or word in lang.LANDS]
    last = named[-1] if named else last
  return true, false, others


def stray(reading: Reading, useful: int) -> float:
  """Sentences beyond the useful ones, in an answer that needs no more."""
  return float(max(0, len(reading.sentences) - useful))


def overlap(words: Sequence[str], target: Sequence[str]) -> float:
  """Share of the target's words that occur in order (longest common subsequence)."""
  row = [0] * (len(target) + 1)
  for word in words:
    previous = 0
    for j, other in enumerate(target):
      previous, row[j + 1] = row[j + 1], previous + 1 if word == other else max(row[j + 1], row[j])
  return row[-1] / max(1, len(target))


def alien_words(task: Task, reading: Reading) -> set[str]:
  """Things said that are not in the passage."""
  return (reading.mentions | set(reading.words) & set(lang.FILLERS.values())) - set(
    task['text'].split()
  )
