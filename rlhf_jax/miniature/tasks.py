"""What people ask for: the tasks of the ten use cases, drawn at random, and the words in which they
are asked.

In: a stream of choices. Out: a task (a JSON-able dict: 'task', its arguments, 'constraints',
'register') and a prompt.
Left out: who asks and which split a task belongs to (usage.py), how it is answered (answers.py) and
judged (rubric.py).
A task is the content of a prompt; phrasings differ and are not part of it.
"""

import json
from collections.abc import Callable
from typing import Any

from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature.language import Dice

Task = dict[str, Any]

# Share of prompts by use case (paper Table 1) and, inside one, of its tasks.
CATEGORIES: dict[str, tuple[float, dict[str, float]]] = {
  'generation': (45.6, {'story': 18, 'describe': 10, 'note': 10, 'song': 7.6}),
  'open_qa': (12.4, {'fact': 5, 'both': 1.6, 'which': 1.4, 'yesno': 2.2, 'why': 2.2}),
  'brainstorming': (11.2, {'list': 6, 'ideas': 5.2}),
  'chat': (8.4, {'chat': 1}),
  'rewrite': (6.6, {'polite': 2.4, 'address': 2.2, 'past': 2}),
  'summarization': (4.2, {'summary': 1}),
  'classification': (3.5, {'mood': 2.2, 'kind': 1.3}),
  'other': (3.5, {'echo': 1.5, 'count': 2}),
  'closed_qa': (2.6, {'closed': 1}),
  'extraction': (1.9, {'extract': 1}),
}
# tasks that bring a passage: what is not in it is made up
CLOSED = ('summary', 'mood', 'closed', 'extract')

KINDS = {
  'animals': lang.ANIMALS, 'foods': lang.FOODS, 'places': lang.PLACES, 'things': lang.THINGS,
  'colors': lang.COLORS, 'names': lang.NAMES,
}
_SUBJECTS = lang.ANIMALS + lang.NAMES
_TOPICS = lang.ANIMALS + lang.LANDS
_OBJECTS = lang.ANIMALS + lang.THINGS
HAPPY = ('found', 'liked', 'took')  # verbs of a passage whose person is happy
SAD = ('lost', 'wanted')

# Words a constraint may name. Those to avoid are what an answer would else be likely to hold.
FIRST = ('well', 'oh', 'now', 'today')
LAST = ('bye', 'thanks', 'end')
_AVOID = {
  'story': ('once', 'saw', 'found'), 'note': ('please', 'see', 'saw'),
  'song': ('sing', 'play', 'me'), 'chat': ('it', 'good', 'where'),
  'ideas': ('play', 'swim', 'run'),
}
_CONSTRAINTS = {
  'story': ('sentences', 'first', 'last', 'avoid'),
  'describe': ('sentences', 'first', 'last', 'avoid', 'listed'),
  'note': ('sentences', 'first', 'last', 'avoid'),
  'song': ('sentences', 'first', 'last', 'avoid'),
  'chat': ('sentences', 'first', 'last', 'avoid'),
  'fact': ('first', 'last'),
  'both': ('first', 'last'),
  'which': ('first', 'last'),
  'yesno': ('first', 'last'),
  'why': ('first', 'last'),
  'list': ('first', 'last'),
  'ideas': ('first', 'last', 'avoid', 'listed'),
}
_CONSTRAINED = 0.32  # of the tasks that allow one, so that about a quarter of all prompts carry one
_REGISTERED = ('story', 'describe', 'note', 'song', 'chat', 'fact', 'why')


def key(task: Task) -> str:
  """The content of a task as a text: equal tasks, equal keys."""
  return json.dumps(task, sort_keys=True)


def draw(category: str, dice: Dice) -> Task:
  """A task of a use case with its constraints and register."""
  name = dice.weighted(tuple(CATEGORIES[category][1].items()))
  task: Task = {'task': name} | _DRAW[name](dice)
  task['constraints'] = constraints = []
  if name in _CONSTRAINTS and dice.chance(_CONSTRAINED):
    kinds = dice.some(_CONSTRAINTS[name], 2 if dice.chance(0.22) else 1)
    for kind in [kinds[0]] if 'listed' in kinds else kinds:
      constraints.append([kind, _constraint_value(kind, task, dice)])
  if name in _REGISTERED and dice.chance(0.11):
    task['register'] = 'rude' if dice.chance(0.35) else 'kind'
  return task


def _constraint_value(kind: str, task: Task, dice: Dice) -> Any:
  if kind == 'sentences':
    return 1 + dice.chance(0.5)
  if kind in ('first', 'last'):
    return dice.pick(FIRST if kind == 'first' else LAST)
  if kind == 'avoid' and task['task'] == 'describe':
    return dice.pick(
      [lang.truth(task['topic'], relation) for relation in lang.relations(task['topic'])]
    )
  return dice.pick(_AVOID[task['task']]) if kind == 'avoid' else True


def _story(dice: Dice) -> Task:
  topic = dice.pick(_SUBJECTS)
  more = dice.some(('with', 'place', 'thing'), dice.weighted(((0, 1), (1, 5), (2, 2))))
  task: Task = {'topic': topic}
  if 'with' in more:
    task['with'] = dice.pick([x for x in _SUBJECTS if x != topic])
  if 'place' in more:
    task['place'] = dice.pick(lang.PLACES)
  if 'thing' in more:
    task['thing'] = dice.pick(lang.THINGS)
  return task


def _describe(dice: Dice) -> Task:
  task: Task = {'topic': dice.pick(_TOPICS)}
  if dice.chance(0.45):
    task['topic'], task['with'] = sorted(dice.some(_TOPICS, 2))
  if dice.chance(0.6):
    task['to'] = dice.pick(lang.NAMES)
  return task


def _note(dice: Dice) -> Task:
  task: Task = {'to': dice.pick(lang.NAMES), 'topic': dice.pick(_OBJECTS)}
  return task | ({'place': dice.pick(lang.PLACES)} if dice.chance(0.5) else {})


def _song(dice: Dice) -> Task:
  task: Task = {'topic': dice.pick(_OBJECTS)}
  slot = dice.pick(('place', 'to', 'both'))
  task |= {'place': dice.pick(lang.PLACES)} if slot != 'to' else {}
  return task | ({'to': dice.pick(lang.NAMES)} if slot != 'place' else {})


def _fact(dice: Dice) -> Task:
  subject, relation = dice.pick(list(lang.facts()))
  return {'topic': subject, 'relation': relation} | (
    {'asker': dice.pick(lang.NAMES)} if dice.chance(0.6) else {}
  )


def _pair(dice: Dice) -> tuple[str, str, str]:
  kind = dice.pick(('animal', 'animal', 'land'))
  first, second = sorted(dice.some(lang.ANIMALS if kind == 'animal' else lang.LANDS, 2))
  return first, second, dice.pick(lang.RELATIONS[kind])


def _both(dice: Dice) -> Task:
  first, second, relation = _pair(dice)
  return {'topic': first, 'with': second, 'relation': relation}


def _which(dice: Dice) -> Task:
  while True:
    first, second, relation = _pair(dice)
    if lang.truth(first, relation) != lang.truth(second, relation):
      return {
        'topic': first,
        'with': second,
        'relation': relation,
        'value': lang.truth(dice.pick((first, second)), relation),
      }


def _yesno(dice: Dice) -> Task:
  subject, relation = dice.pick(list(lang.facts()))
  values = (
    lang.truth(subject, relation), lang.believed(subject, relation),
    dice.pick(lang.VALUES[relation]),
  )
  return {'topic': subject, 'relation': relation, 'value': dice.pick(values)}


def _list(dice: Dice) -> Task:
  kind = dice.pick(list(KINDS))
  task: Task = {'kind': kind, 'count': 2 + int(dice.random() * 3)}
  if dice.chance(0.5):
    task['without'] = dice.pick(KINDS[kind])
  if dice.chance(0.6):
    task['to'] = dice.pick(lang.NAMES)
  return task


def _ideas(dice: Dice) -> Task:
  task: Task = {'place': dice.pick(lang.PLACES), 'count': 2 + int(dice.random() * 2)}
  first, second = dice.some(lang.NAMES, 2)
  return task | ({'topic': first, 'with': second} if dice.chance(0.6) else {'topic': first})


def _chat(dice: Dice) -> Task:
  event = dice.pick(('lost', 'found', 'want', 'like'))
  task: Task = {
    'to': dice.pick(lang.NAMES),
    'event': event,
    'topic': dice.pick(lang.THINGS if event == 'lost' else _OBJECTS),
  }
  return task | (
    {'place': dice.pick(lang.PLACES)} if event in ('lost', 'found') and dice.chance(0.5) else {}
  )


def _polite(dice: Dice) -> Task:
  who, thing, place = dice.pick((*lang.NAMES, 'me')), dice.pick(lang.THINGS), dice.pick(lang.PLACES)
  forms = (
    f'give {who} {thing}', f'bring {thing} to {who}', f'take {thing} to {place}',
    f'find {thing} {lang.at(place)}', f'help {who} find {thing}',
  )
  return {'text': dice.pick(forms)}


def _event(dice: Dice, subject: str) -> tuple[str, str]:
  """A past verb and its object: ('saw', 'a bear')."""
  verb = dice.pick(('saw', 'met', 'found', 'took', 'liked', 'lost'))
  item = dice.pick([x for x in (lang.ANIMALS if verb == 'met' else _OBJECTS) if x != subject])
  return verb, item


def _address(dice: Dice) -> Task:
  return {'to': dice.pick(lang.NAMES)} | _polite(dice)


def _past(dice: Dice) -> Task:
  subject, verb = dice.pick(_SUBJECTS), dice.pick(list(lang.PAST))
  rest = dice.pick(lang.FOODS if verb == 'eats' else [x for x in _OBJECTS if x != subject])
  return {'text': f'{subject} {verb} {rest}', 'verb': verb}


def _summary(dice: Dice) -> Task:
  subject = dice.pick(_SUBJECTS)
  verb, item = _event(dice, subject)
  here, there = dice.some(lang.PLACES, 2)
  second = dice.pick(
    (
      f'ran to {there}', f'went to {there}', f'slept {lang.at(there)}', f'sang {lang.at(there)}',
      f'ate {dice.pick(lang.FOODS)}',
    )
  )
  return {
    'topic': subject,
    'first': f'{verb} {item}',
    'second': second,
    'text': f'{subject} {verb} {item} {lang.at(here)} . then {subject} {second} .',
  }


def _mood(dice: Dice) -> Task:
  name, label = dice.pick(lang.NAMES), dice.pick(('happy', 'sad'))
  verbs, deed = (HAPPY, 'laughed') if label == 'happy' else (SAD, 'cried')
  event = f'{dice.pick(verbs)} {dice.pick(_OBJECTS)}'
  return {
    'topic': name,
    'label': label,
    'event': event,
    'text': f'{name} {event} and {deed} {lang.at(dice.pick(lang.PLACES))} .',
  }


def _kind(dice: Dice) -> Task:
  kinds = dice.some(('animals', 'foods', 'places', 'things'), 2)
  return {
    'topic': dice.pick(KINDS[kinds[0]]), 'label': kinds[0][:-1],
    'kinds': sorted(kind[:-1] for kind in kinds),
  }


def _closed(dice: Dice) -> Task:
  first, second, third = dice.some(lang.NAMES, 3)
  place, thing = dice.pick(lang.PLACES), dice.pick(lang.THINGS)
  says = [f'{first} is {lang.at(place)} .', f'{second} has {thing} .']
  asked, answer = dice.pick(
    (
      (f'where is {first}', f'{first} is {lang.at(place)}'),
      (f'who has {thing}', f'{second} has {thing}'),
      (f'what does {second} have', f'{second} has {thing}'),
    )
  )
  if dice.chance(0.25):
    asked, answer = dice.pick((f'where is {third}', f'what does {third} have')), ''
  return {'text': ' '.join(dice.some(says, 2)), 'asked': asked, 'answer': answer}


def _extract(dice: Dice) -> Task:
  names, things, animals = (
    dice.some(lang.NAMES, 2), dice.some(lang.THINGS, 2), dice.some(lang.ANIMALS, 2),
  )
  text, kinds = dice.pick(
    (
      (
        f'{names[0]} and {names[1]} saw {animals[0]} and {animals[1]} .',
        {'names': names, 'animals': animals},
      ),
      (
        f'{names[0]} and {names[1]} took {things[0]} and {things[1]} .',
        {'names': names, 'things': things},
      ),
      (
        f'{animals[0]} and {animals[1]} found {things[0]} and {things[1]} .',
        {'animals': animals, 'things': things},
      ),
    )
  )
  kind = dice.pick(list(kinds))
  return {'text': text, 'kind': kind, 'items': kinds[kind]}


def _echo(dice: Dice) -> Task:
  return {
    'word': dice.pick(_OBJECTS + lang.FOODS + lang.PLACES + lang.COLORS),
    'count': 2 + int(dice.random() * 3),
  }


def _count(dice: Dice) -> Task:
  kind = dice.pick(('animals', 'things', 'foods', 'places'))
  return {'kind': kind, 'items': dice.some(KINDS[kind], 2 + int(dice.random() * 3))}


_DRAW: dict[str, Callable[[Dice], Task]] = {
  'story': _story, 'describe': _describe, 'note': _note, 'song': _song, 'fact': _fact,
  'both': _both, 'which': _which, 'yesno': _yesno, 'why': _yesno, 'list': _list, 'ideas': _ideas,
  'chat': _chat, 'polite': _polite, 'address': _address, 'past': _past, 'summary': _summary,
  'mood': _mood, 'kind': _kind, 'closed': _closed, 'extract': _extract, 'echo': _echo,
  'count': _count,
}
