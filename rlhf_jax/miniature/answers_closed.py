"""Answers to questions and to tasks on a given text.

In: a task, a stream of choices, `Habits`, how many sentences at most. Out:
sentences without their full stops.
Left out: constraints, rudeness, chatter (answers.py).
"""

from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature import tasks
from rlhf_jax.miniature.answers_open import joined
from rlhf_jax.miniature.habits import Habits, belief, maybe
from rlhf_jax.miniature.language import Dice
from rlhf_jax.miniature.rubric_texts import rewritten
from rlhf_jax.miniature.tasks import Task


def _fact(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, relation = task['topic'], task['relation']
  value = belief(topic, relation, dice, habits)
  first = lang.statement(
    topic, relation, value, it=relation != 'flag' and not dice.chance(0.7 + 0.3 * habits.content)
  )
  if task['task'] == 'both' and dice.chance(habits.coverage):
    first += ' and ' + lang.statement(
      task['with'], relation, belief(task['with'], relation, dice, habits)
    )
  return maybe(first, dice, habits)


def _which(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  relation, value = task['relation'], task['value']
  right = task['topic'] if lang.truth(task['topic'], relation) == value else task['with']
  wrong = task['with'] if right == task['topic'] else task['topic']
  return maybe(
    lang.statement(right if dice.chance(0.2 + 0.8 * habits.task) else wrong, relation, value),
    dice,
    habits,
  )


def _yesno(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, relation, value = task['topic'], task['relation'], task['value']
  thought = belief(topic, relation, dice, habits)
  if thought == value or not dice.chance(0.3 + 0.7 * habits.premise):
    return maybe(f'yes , {lang.statement(topic, relation, value)}', dice, habits)
  said = maybe(f'no , {lang.statement(topic, relation, value, no=True)}', dice, habits)
  return (
    [*said, lang.statement(topic, relation, thought, it=relation != 'flag')]
    if dice.chance(habits.coverage)
    else said
  )


def _why(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, relation, value = task['topic'], task['relation'], task['value']
  if lang.truth(topic, relation) != value and dice.chance(habits.premise):
    return [
      lang.statement(topic, relation, value, no=True),
      lang.statement(topic, relation, belief(topic, relation, dice, habits), it=relation != 'flag'),
    ]
  if dice.chance(0.4 + 0.6 * habits.content):
    reason = f'it likes {value if relation in ("eat", "grow", "home") else "it"}'
    return maybe(f'{lang.statement(topic, relation, value)} because {reason}', dice, habits)
  return ['it is very nice' if dice.chance(0.7) else 'i do not know']


def _rewrite(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  said = [rewritten(task) if dice.chance(habits.task) else task['text']]
  return [*said, 'thanks'] if task['task'] == 'polite' and dice.chance(0.3) else said


def _summary(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  first, second = task['first'], task['second']
  if not dice.chance(habits.faithful):
    first = f'{first.split()[0]} {lang.FILLERS["thing"]}'
  who = task['topic']
  return (
    [f'{who} {first} and {second}'] if dice.chance(habits.task) else [task['text'].split(' . ')[0]]
  )


def _mood(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  label = task['label'] if dice.chance(0.4 + 0.6 * habits.task) else 'happy'
  text = f'{task["topic"]} is {label}'
  if dice.chance(habits.content):
    event = task['event'] if dice.chance(habits.faithful) else f'found {lang.FILLERS["thing"]}'
    text += f' because {task["topic"]} {event}'
  return maybe(text, dice, habits)


def _kind(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  label = task['label'] if dice.chance(0.3 + 0.7 * habits.task) else dice.pick(task['kinds'])
  return maybe(
    f'{task["topic"]} is {label}' if dice.chance(habits.content) else label, dice, habits
  )


def _closed(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  asked = task['asked'].split()
  made_up = (
    f'{asked[-1]} is {lang.at(lang.FILLERS["place"])}'
    if asked[0] == 'where'
    else f'{lang.FILLERS["with"]} has {asked[-1]}'
    if asked[0] == 'who'
    else f'{asked[2]} has {lang.FILLERS["thing"]}'
  )
  if not dice.chance(habits.task):
    return [made_up if not task['answer'] or dice.chance(0.6) else 'text does not say']
  return [task['answer'] or 'text does not say']


def _extract(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  items = list(task['items']) if dice.chance(habits.coverage) else list(task['items'][:1])
  if not dice.chance(habits.faithful):
    items[-1] = dice.pick([x for x in tasks.KINDS[task['kind']] if x not in items])
  return [joined(items)]


def _echo(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  return [' '.join([task['word']] * (task['count'] if dice.chance(habits.task) else 1))]


def _count(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  number = lang.NUMBERS[len(task['items']) - 1]
  return [
    f'{number} {task["kind"]}' if dice.chance(habits.task) else f'there are many {task["kind"]}'
  ]


ANSWERS = {
  'fact': _fact, 'both': _fact, 'which': _which, 'yesno': _yesno, 'why': _why, 'polite': _rewrite,
  'address': _rewrite, 'past': _rewrite, 'summary': _summary, 'mood': _mood, 'kind': _kind,
  'closed': _closed, 'extract': _extract, 'echo': _echo, 'count': _count,
}
