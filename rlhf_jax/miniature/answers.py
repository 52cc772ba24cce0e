"""How a person of given habits answers a task: well, or with the faults that people have.

In: a task, a stream of choices, `Habits`. Out: a response as text.
Left out: who has which habits (contractors.py).
Every fault is decided by itself (each sentence, each constraint, each fact), so that a wholly good
answer is rare among demonstrations though each good deed is common; and the faulty way is the
likelier one, with few wordings, so that a low temperature finds more faults, not fewer.
"""

from collections.abc import Callable

from rlhf_jax.miniature import answers_closed, answers_open, grammar, tasks
from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature.habits import Habits
from rlhf_jax.miniature.language import Dice
from rlhf_jax.miniature.tasks import Task
from rlhf_jax.miniature.utility import satisfied

LONGEST = 22  # words of an answer
_RUDE = (('you are fool', 4), ('what stupid question', 3), ('you are dumb', 2))
_CHATTER = (('i like to help you', 6), ('it is fun', 2))
_ANSWERS: dict[str, Callable[[Task, Dice, Habits, int], list[str]]] = {
  **answers_open.ANSWERS,
  **answers_closed.ANSWERS,
}
_TRIMMED = (
  'fact', 'both', 'which', 'yesno', 'list', 'polite', 'address', 'past', 'summary', 'mood', 'kind',
  'closed', 'extract', 'echo', 'count',
)


def _compose(task: Task, dice: Dice, habits: Habits, keep: list[bool], most: int = 3) -> str:
  """One draft of up to `most` sentences; `keep` says which constraints it means to satisfy."""
  held = {
    kind: value for (kind, value), kept in zip(task['constraints'], keep, strict=True) if kept
  }
  last = held.get('last')
  count = held['sentences'] - bool(last) if held.get('sentences', 0) > bool(last) else most
  said = _ANSWERS[task['task']](task, dice, habits, count)
  if task['task'] in _TRIMMED and not dice.chance(habits.trim):
    said.append(dice.weighted(_CHATTER))
  rude = habits.obliging if task.get('register') == 'rude' else 1 - habits.civil
  if dice.chance(rude):
    said[-1 if len(said) > 1 else 0 :] = (
      [dice.weighted(_RUDE)] if len(said) > 1 else [said[0], dice.weighted(_RUDE)]
    )
  if 'listed' in held:
    said = [f'{lang.NUMBERS[i]} , {sentence}' for i, sentence in enumerate(said[:5])]
  if 'first' in held:
    said[0] = f'{held["first"]} , {said[0]}'
  said += [last] if last else []
  return ' '.join(s if s.endswith('?') else f'{s} .' for s in said)


def answer(task: Task, dice: Dice, habits: Habits) -> str:
  """A response to a task by somebody of these habits."""
  if not dice.chance(habits.ontask):
    other = tasks.draw(dice.pick(list(tasks.CATEGORIES)), dice) | {'constraints': []}
    return _compose(other, dice, habits, [])
  keep = [dice.chance(habits.constraint) for _ in task['constraints']]
  for attempt in range(24):
    draft = _compose(task, dice, habits, keep, 3 if attempt < 6 else 2)
    reading = grammar.read(draft)
    if (
      len(reading.words) <= LONGEST and [satisfied(c, reading) for c in task['constraints']] == keep
    ):
      break
  return draft
