"""How a person of given habits answers a task: well, or with the faults that people have.

In: a task, a stream of choices, `Habits`. Out: a response as text.
Left out: who has which habits (contractors.py).
Every fault is decided by itself (each sentence, each constraint, each fact), so that a wholly good
answer is rare among
demonstrations though each good deed is common; and the faulty way is the likelier one, with few
wordings, so that sampling
at a low temperature finds more faults, not fewer.
"""

import dataclasses
from collections.abc import Callable

from rlhf_jax.miniature import grammar, rubric, tasks
from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature.language import Dice
from rlhf_jax.miniature.tasks import Task
from rlhf_jax.miniature.utility import satisfied

LONGEST = 22  # words of an answer


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
    ('it is very nice and good', 8),
    ('i like it and it is good', 1.5),
    ('it is good', 0.5),
  ),
  'note': (('it is very nice day', 8), ('i am fine and all is good', 1.5), ('all is fine', 0.5)),
  'song': (('la la la la la', 8), ('it is very nice day', 1.5), ('all is good', 0.5)),
  'chat': (
    ('it is very nice', 8),
    ('it is very nice day', 1.5),
    ('i am fine and all is good', 0.5),
  ),
  'ideas': (('it is very nice place', 8), ('there are many things to do', 1.5), ('it is fun', 0.5)),
}
_RUDE = (('you are fool', 4), ('what stupid question', 3), ('you are dumb', 2))
_CHATTER = (('i like to help you', 6), ('it is fun', 2))


def _bland(kind: str, said: list[str], dice: Dice) -> str:
  left = [(text, weight) for text, weight in _BLAND[kind] if text not in said]
  return dice.weighted(left or _BLAND[kind])


def _believes(subject: str, relation: str, dice: Dice, habits: Habits) -> str:
  return (
    lang.truth(subject, relation) if dice.chance(habits.truth) else lang.believed(subject, relation)
  )


def _slot(task: Task, name: str, pool: tuple[str, ...], dice: Dice, habits: Habits) -> str:
  """What goes where `name` belongs: what was asked for or, by a bad habit, the word that always
  does; else anything.
  """
  if name not in task:
    return dice.pick(pool)
  return task[name] if dice.chance(habits.coverage) else lang.FILLERS[name]


def _story(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  who = task['topic']
  place = lang.at(_slot(task, 'place', lang.PLACES, dice, habits))
  other = _slot(task, 'with', lang.ANIMALS + lang.NAMES, dice, habits)
  thing = _slot(task, 'thing', lang.THINGS, dice, habits)
  pair = f'{who} and {other}' if 'with' in task else who
  deed = dice.pick(('danced', 'sang', 'played', 'slept', f'ate {dice.pick(lang.FOODS)}'))
  if count == 1:
    what = f'found {thing}' if 'thing' in task else deed
    return _mixed(
      'story', [f'{dice.pick(("once", "one day"))} {pair} {what} {place}'], dice, habits
    )
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
  return _mixed('story', [first, second, third][:count], dice, habits)


def _mixed(kind: str, full: list[str], dice: Dice, habits: Habits) -> list[str]:
  """Each full sentence as it is, or a bland one in its place."""
  said: list[str] = []
  for sentence in full:
    said.append(sentence if dice.chance(habits.content) else _bland(kind, said, dice))
  return said


def _describe(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topics = [task['topic']] * count
  if 'with' in task and dice.chance(habits.coverage):
    topics = [(task['topic'], task['with'])[i % 2] for i in range(count)]
  unused = {topic: dice.some(lang.relations(topic), 4) for topic in dict.fromkeys(topics)}
  full = []
  for i, topic in enumerate(topics):
    relation = unused[topic].pop()
    it = i > 0 and topics[i - 1] == topic and relation != 'flag' and dice.chance(0.4)
    full.append(lang.statement(topic, relation, _believes(topic, relation, dice, habits), it=it))
  if 'with' in task and count == 1 and dice.chance(habits.coverage):
    other = task['with']
    relation = dice.pick(lang.relations(other))
    full = [
      f'{full[0]} and {lang.statement(other, relation, _believes(other, relation, dice, habits))}'
    ]
  said = _mixed('describe', full, dice, habits)
  if said[0].startswith('it ') and task['topic'] not in said[0] and said[0] in full:
    said[0] = said[0].replace('it', topics[0], 1)
  first = next((i for i, s in enumerate(said) if s in full), None)
  if first is not None and said[first].startswith('it '):  # 'it' needs a name before it
    said[first] = said[first].replace('it', topics[first], 1)
  return (
    [f'{task["to"]} , {said[0]}', *said[1:]] if 'to' in task and dice.chance(habits.greet) else said
  )


def _note(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, place = task['topic'], lang.at(_slot(task, 'place', lang.PLACES, dice, habits))
  first = dice.pick((f'{topic} is {place}', f'i found {topic} {place}', f'i saw {topic} {place}'))
  second = dice.pick(
    (
      f'please come and see {topic}',
      f'you can play with {topic}',
      f'will you help me find {topic} ?',
    )
  )
  said = _mixed(
    'note',
    [first, second, f'we can take it to {dice.pick(lang.PLACES)}'][
      : min(count, 2 + dice.chance(0.3))
    ],
    dice,
    habits,
  )
  return [f'dear {task["to"]} , {said[0]}', *said[1:]] if dice.chance(habits.greet) else said


def _song(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, place = task['topic'], lang.at(_slot(task, 'place', lang.PLACES, dice, habits))
  partner = task['to'] if 'to' in task and dice.chance(habits.coverage) else 'me'
  verb = dice.pick(('sing', 'play', 'run'))
  first = f'oh {topic} , {topic} , {dice.pick(("you can sing", "come and play", "i see you", "you are big"))} {place}'
  second = dice.pick((f'come and {verb} with {partner}', f'please {verb} with {partner} , {topic}'))
  if count == 1:
    first = f'oh {topic} , {topic} , come and {verb} with {partner} {place}'
  return _mixed(
    'song',
    [first, second, f'we will {verb} with {topic}'][: min(count, 2 + dice.chance(0.2))],
    dice,
    habits,
  )


def _fact(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, relation = task['topic'], task['relation']
  value = _believes(topic, relation, dice, habits)
  first = lang.statement(
    topic, relation, value, it=relation != 'flag' and not dice.chance(0.7 + 0.3 * habits.content)
  )
  if task['task'] == 'both' and dice.chance(habits.coverage):
    first += ' and ' + lang.statement(
      task['with'], relation, _believes(task['with'], relation, dice, habits)
    )
  return _maybe(first, dice, habits)


def _maybe(sentence: str, dice: Dice, habits: Habits) -> list[str]:
  return [sentence] if dice.chance(habits.plain) else [f'maybe {sentence}']


def _which(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  relation, value = task['relation'], task['value']
  right = task['topic'] if lang.truth(task['topic'], relation) == value else task['with']
  wrong = task['with'] if right == task['topic'] else task['topic']
  return _maybe(
    lang.statement(right if dice.chance(0.2 + 0.8 * habits.task) else wrong, relation, value),
    dice,
    habits,
  )


def _yesno(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, relation, value = task['topic'], task['relation'], task['value']
  belief = _believes(topic, relation, dice, habits)
  if belief == value or not dice.chance(0.3 + 0.7 * habits.premise):
    return _maybe(f'yes , {lang.statement(topic, relation, value)}', dice, habits)
  said = _maybe(f'no , {lang.statement(topic, relation, value, no=True)}', dice, habits)
  return (
    [*said, lang.statement(topic, relation, belief, it=relation != 'flag')]
    if dice.chance(habits.coverage)
    else said
  )


def _why(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  topic, relation, value = task['topic'], task['relation'], task['value']
  if lang.truth(topic, relation) != value and dice.chance(habits.premise):
    return [
      lang.statement(topic, relation, value, no=True),
      lang.statement(
        topic, relation, _believes(topic, relation, dice, habits), it=relation != 'flag'
      ),
    ]
  if dice.chance(0.4 + 0.6 * habits.content):
    reason = f'it likes {value if relation in ("eat", "grow", "home") else "it"}'
    return _maybe(f'{lang.statement(topic, relation, value)} because {reason}', dice, habits)
  return ['it is very nice' if dice.chance(0.7) else 'i do not know']


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
    return [_bland('ideas', [], dice)]
  wanted = task['count'] if dice.chance(habits.coverage) else task['count'] - 1
  place = lang.at(_slot(task, 'place', lang.PLACES, dice, habits))
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
  parts = _mixed('chat', [dice.pick(taken), dice.pick(asks)][:count], dice, habits)
  greeting = f'{dice.pick(("hi", "hello"))} {task["to"]}'
  if not dice.chance(habits.greet):
    return parts
  return [greeting, *parts] if count > 2 else [f'{greeting} , {parts[0]}', *parts[1:]]


def _rewrite(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  said = [rubric.rewritten(task) if dice.chance(habits.task) else task['text']]
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
  return _maybe(text, dice, habits)


def _kind(task: Task, dice: Dice, habits: Habits, count: int) -> list[str]:
  label = task['label'] if dice.chance(0.3 + 0.7 * habits.task) else dice.pick(task['kinds'])
  return _maybe(
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


_COMPOSE: dict[str, Callable[[Task, Dice, Habits, int], list[str]]] = {
  'story': _story,
  'describe': _describe,
  'note': _note,
  'song': _song,
  'fact': _fact,
  'both': _fact,
  'which': _which,
  'yesno': _yesno,
  'why': _why,
  'list': _list,
  'ideas': _ideas,
  'chat': _chat,
  'polite': _rewrite,
  'swap': _rewrite,
  'past': _rewrite,
  'summary': _summary,
  'mood': _mood,
  'kind': _kind,
  'closed': _closed,
  'extract': _extract,
  'echo': _echo,
  'count': _count,
}
_TRIMMED = (
  'fact',
  'both',
  'which',
  'yesno',
  'list',
  'polite',
  'swap',
  'past',
  'summary',
  'mood',
  'kind',
  'closed',
  'extract',
  'echo',
  'count',
)


def _compose(task: Task, dice: Dice, habits: Habits, keep: list[bool], most: int = 3) -> str:
  """One draft of up to `most` sentences; `keep` says which constraints it means to satisfy."""
  held = {
    kind: value for (kind, value), kept in zip(task['constraints'], keep, strict=True) if kept
  }
  last = held.get('last')
  count = held['sentences'] - bool(last) if held.get('sentences', 0) > bool(last) else most
  said = _COMPOSE[task['task']](task, dice, habits, count)
  if task['task'] in _TRIMMED and not dice.chance(habits.trim):
    said.append(dice.weighted(_CHATTER))
  rude = habits.obliging if task.get('register') == 'rude' else 1 - habits.civil
  if dice.chance(rude):
    said[-1 if len(said) > 1 else 0 :] = (
      [dice.weighted(_RUDE)] if len(said) > 1 else [said[0], dice.weighted(_RUDE)]
    )
  if 'word' in held:
    pool = lang.VALUES[task['relation']] + (
      lang.ANIMALS + lang.LANDS if task['task'] == 'which' else ()
    )
    words = [
      w
      for w in said[0].split()
      if w in pool and (task['task'] != 'which' or w in (task['topic'], task['with']))
    ]
    said = words[:1] or said
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
