"""Answers to open tasks: stories, notes, songs, descriptions, lists, ideas, chat.

In: a task, a stream of choices, `Habits`, how many sentences. Out: sentences without
their full stops.
Left out: constraints, rudeness, chatter (answers.py).
"""

from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature import tasks
from rlhf_jax.miniature.habits import Habits, belief, bland, mixed, slot
from rlhf_jax.miniature.language import Dice
from rlhf_jax.miniature.tasks import Task


def _story(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  who = task['topic']
  place = lang.at(slot(task, 'place', lang.PLACES, dice, habits))
  other = slot(task, 'with', lang.ANIMALS + lang.NAMES, dice, habits)
  thing = slot(task, 'thing', lang.THINGS, dice, habits)
  pair = f'{who} and {other}' if 'with' in task else who
  deed = dice.pick(('danced', 'sang', 'played', 'slept', f'ate {dice.pick(lang.FOODS)}'))
  if count == 1:
    what = f'found {thing}' if 'thing' in task else deed
    return mixed('story', [f'{dice.pick(("once", "one day"))} {pair} {what} {place}'], dice, habits)
  if 'thing' in task:
    second = f'{pair} {dice.pick(("found", "took"))} {thing}'
  else:
    second = (
      f'{who} {dice.pick(("saw", "met"))} {other}'
      if 'with' in task or dice.chance(0.5)
      else f'{who} found {thing}'
    )
  third = f'then {dice.pick(("they", pair)) if "with" in task else who} {deed}'
  first = dice.pick(
    (f'once {who} was {place}', f'one day {who} played {place}', f'once {who} lived {place}')
  )
  return mixed('story', [first, second, third][:count], dice, habits)


def _describe(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topics = [task['topic']] * count
  if 'with' in task and dice.chance(habits.coverage):
    topics = [(task['topic'], task['with'])[i % 2] for i in range(count)]
  unused = {topic: dice.some(lang.relations(topic), 4) for topic in dict.fromkeys(topics)}
  full = []
  for i, topic in enumerate(topics):
    relation = unused[topic].pop()
    it = i > 0 and topics[i - 1] == topic and relation != 'flag' and dice.chance(0.4)
    full.append(lang.statement(topic, relation, belief(topic, relation, dice, habits), it=it))
  if 'with' in task and count == 1 and dice.chance(habits.coverage):
    other = task['with']
    relation = dice.pick(lang.relations(other))
    full = [
      f'{full[0]} and {lang.statement(other, relation, belief(other, relation, dice, habits))}'
    ]
  said = mixed('describe', full, dice, habits)
  if said[0].startswith('it ') and task['topic'] not in said[0] and said[0] in full:
    said[0] = said[0].replace('it', topics[0], 1)
  first = next((i for i, s in enumerate(said) if s in full), None)
  if first is not None and said[first].startswith('it '):  # 'it' needs a name before it
    said[first] = said[first].replace('it', topics[first], 1)
  return (
    [f'{task["to"]} , {said[0]}', *said[1:]] if 'to' in task and dice.chance(habits.greet) else said
  )


def _note(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, place = task['topic'], lang.at(slot(task, 'place', lang.PLACES, dice, habits))
  first = dice.pick((f'{topic} is {place}', f'i found {topic} {place}', f'i saw {topic} {place}'))
  second = dice.pick(
    (
      f'please come and see {topic}', f'you can play with {topic}',
      f'will you help me find {topic} ?',
    )
  )
  said = mixed(
    'note',
    [first, second, f'we can take it to {dice.pick(lang.PLACES)}'][
      : min(count, 2 + dice.chance(0.3))
    ],
    dice,
    habits,
  )
  return [f'dear {task["to"]} , {said[0]}', *said[1:]] if dice.chance(habits.greet) else said


def _song(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, place = task['topic'], lang.at(slot(task, 'place', lang.PLACES, dice, habits))
  partner = task['to'] if 'to' in task and dice.chance(habits.coverage) else 'me'
  verb = dice.pick(('sing', 'play', 'run'))
  does = dice.pick(('you can sing', 'come and play', 'i see you', 'you are big'))
  first = f'oh {topic} , {topic} , {does} {place}'
  second = dice.pick((f'come and {verb} with {partner}', f'please {verb} with {partner} , {topic}'))
  if count == 1:
    first = f'oh {topic} , {topic} , come and {verb} with {partner} {place}'
  return mixed(
    'song',
    [first, second, f'we will {verb} with {topic}'][: min(count, 2 + dice.chance(0.2))],
    dice,
    habits,
  )


def joined(items: list[str]) -> str:
  """'red', 'red and blue', 'red , blue and green'."""
  return ' and '.join([' , '.join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _list(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  if not dice.chance(0.25 + 0.75 * habits.content):
    return [f'there are many {task["kind"]} and all are nice']
  wanted = (
    task['count']
    if dice.chance(habits.coverage)
    else max(1, task['count'] - 1)
    if task['count'] > 2
    else 1
  )
  heeds = 'without' not in task or dice.chance(habits.coverage)
  items = dice.some([x for x in tasks.KINDS[task['kind']] if x != task.get('without')], wanted)
  if not heeds:
    items[int(dice.random() * len(items))] = task['without']
  return [joined(items)]


def _ideas(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  if not dice.chance(0.2 + 0.8 * habits.content):
    return [bland('ideas', [], dice)]
  wanted = task['count'] if dice.chance(habits.coverage) else task['count'] - 1
  place = lang.at(slot(task, 'place', lang.PLACES, dice, habits))
  who = (
    f'{task["topic"]} and {task["with"]}'
    if 'with' in task and dice.chance(habits.coverage)
    else task['topic']
  )
  deeds = dice.some(lang.SKILLS, wanted)
  if dice.chance(0.4):
    deeds[-1] = f'play with {dice.pick(lang.THINGS)}'
  if dice.chance(0.7 * any(kind == 'listed' for kind, _ in task['constraints'])):
    return [
      f'{who} can {deed} {place}' if i == 0 else f'{who} can {deed}' for i, deed in enumerate(deeds)
    ]
  return [f'{who} can {joined(deeds)} {place}']


def _chat(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic = task['topic']
  taken = {
    'lost': (f'i am sorry about {topic}', f'i am sad about {topic}'),
    'want': (f'i can help you find {topic}', f'i can give you {topic}'),
    'found': (f'it is good that you found {topic}', f'it is nice that you found {topic}'),
    'like': (f'{topic} is very nice', f'i like {topic}'),
  }[task['event']]
  asks = {
    'lost': ('where did you lose it ?', 'can i help you find it ?'),
    'want': ('what do you want to do with it ?', 'where can we find it ?'),
    'found': ('where did you find it ?', 'what will you do with it ?'),
    'like': ('do you play with it ?', 'where is it now ?'),
  }[task['event']]
  parts = mixed('chat', [dice.pick(taken), dice.pick(asks)][:count], dice, habits)
  greeting = f'{dice.pick(("hi", "hello"))} {task["to"]}'
  if not dice.chance(habits.greet):
    return parts
  return [greeting, *parts] if count > 2 else [f'{greeting} , {parts[0]}', *parts[1:]]


ANSWERS = {
  'story': _story, 'describe': _describe, 'note': _note, 'song': _song, 'list': _list,
  'ideas': _ideas, 'chat': _chat,
}
