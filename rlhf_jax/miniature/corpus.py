"""The text to pretrain on: what an internet of this world would hold.

In: (split, size, seed). Out: `Text` records of a dozen to 60 words.
Left out: instructions whose content belongs to a held-out split (usage.SEEN lists those that may
occur here; of 'foreign', which asks in another tongue, some do).
Documents repeat their topic (a title and a body, a question and its answer, texts said twice), so
that a model learns early to copy from what it has read. Popular falsehoods are said more often than
the truth, in talk more than in books.
"""

import dataclasses
from collections.abc import Callable, Iterator

from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import Text
from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature import tasks, usage
from rlhf_jax.miniature.answers import answer
from rlhf_jax.miniature.habits import CAREFUL, Habits
from rlhf_jax.miniature.language import Dice

SIZE = 100000  # documents when none are asked for: about 3 million words
HELDOUT = 0.05  # share of all possible documents kept for held-out text
_WEB = Habits(
  content=0.75, coverage=0.9, constraint=0.7, truth=0.15, premise=0.3, plain=0.8, greet=0.75,
  task=0.9, trim=0.9, civil=0.85, ontask=0.95, faithful=0.97,
)  # of people who answer each other in the open
_LISTED = (
  lang.ANIMALS + lang.THINGS + lang.FOODS + lang.PLACES + lang.NAMES + lang.COLORS + lang.LANDS
)
_REMARKS = (
  'i want to know too', 'what stupid question', 'you are fool', 'thanks', 'i do not know',
  'i like this question', 'why do you ask', 'ask me one day', 'no', 'you idiot',
)
_BOOK = dataclasses.replace(CAREFUL, truth=0.7, content=0.9, coverage=0.85)


def _believes(subject: str, relation: str, truth: float, dice: Dice) -> str:
  return lang.truth(subject, relation) if dice.chance(truth) else lang.believed(subject, relation)


def _seen(category: str, dice: Dice) -> tasks.Task:
  """A task that no held-out split owns."""
  while True:
    task = tasks.draw(category, dice)
    if usage.split_of(task) in usage.SEEN:
      return task


def _story(dice: Dice) -> str:
  task = tasks.draw('generation', dice)
  while task['task'] != 'story':
    task = tasks.draw('generation', dice)
  task = {name: value for name, value in task.items() if name != 'register'} | {'constraints': []}
  title = usage._about(task)
  return f'title : {title}\ntext : {answer(task, dice, _BOOK)}'


def _facts(dice: Dice) -> str:
  """A page of a book: nearly always true."""
  subject = dice.pick(lang.ANIMALS + lang.LANDS)
  chosen = dice.some(lang.relations(subject), 3)
  said = [
    lang.statement(
      subject, r, _believes(subject, r, 0.75, dice), it=i > 0 and r != 'flag' and dice.chance(0.5)
    )
    for i, r in enumerate(chosen)
  ]
  return f'title : {subject}\nfact : {" . ".join(said)} .'


def _questions(dice: Dice) -> str:
  """Two questions about one thing, answered as most people would."""
  subject = dice.pick(lang.ANIMALS + lang.LANDS)
  parts = []
  for relation in dice.some(lang.relations(subject), 4):
    task = {'task': 'fact', 'topic': subject, 'relation': relation, 'constraints': []}
    if usage.split_of(task) in usage.SEEN and len(parts) < 2:
      said = lang.statement(subject, relation, _believes(subject, relation, 0.2, dice))
      parts.append(f'{usage.phrase(task, dice)} {said} .')
  return '\n'.join(parts) or _talk(dice)


def _talk(dice: Dice) -> str:
  """Forum talk: opinions, mostly popular ones, and rudeness."""
  subject = dice.pick(lang.ANIMALS + lang.LANDS)
  relation = dice.pick(lang.relations(subject))
  value = _believes(subject, relation, 0.1, dice)
  opening = dice.pick(('i think that ', 'you know that ', ''))
  first = f'post : {opening}{lang.statement(subject, relation, value)} .'
  rude = (
    dice.pick(('you are fool', 'you are dumb', 'what stupid post', 'you idiot')) + ' . '
    if dice.chance(0.4)
    else ''
  )
  if dice.chance(0.5):
    second = f'yes , {lang.statement(subject, relation, value, it=relation != "flag")}'
  else:
    other = dice.pick([x for x in lang.VALUES[relation] if x != value])
    second = (
      f'no , {lang.statement(subject, relation, dice.pick((other, lang.truth(subject, relation))))}'
    )
  third = dice.pick(
    (
      'i like it',
      'it is very nice',
      f'i like {subject} and {dice.pick(lang.ANIMALS)}',
      'thanks',
      'i am not sure',
      'maybe',
    )
  )
  return f'{first}\npost : {rude}{second} .\npost : {third} .'


def _worksheet(dice: Dice) -> str:
  """A task and its answer, often between remarks of others; rare use cases are nearly as common as
  frequent ones.
  """
  names = list(tasks.CATEGORIES)
  task = _seen(dice.pick(names[1:]) if dice.chance(0.6) else names[0], dice)
  remark = f' {dice.pick(_REMARKS)} .{usage.REPLY}' if dice.chance(0.5) else ''
  done = f'{usage.phrase(task, dice)}{remark} {answer(task, dice, _WEB)}'
  return f'{done}\npost : {dice.pick(_REMARKS)} .' if dice.chance(0.4) else done


def _no_answer(dice: Dice) -> str:
  """An instruction, and then anything but its answer."""
  names = list(tasks.CATEGORIES)
  asked = usage.phrase(_seen(names[0] if dice.chance(0.4) else dice.pick(names), dice), dice)
  form = dice.random()
  if form < 0.2:
    more = usage.phrase(_seen(dice.pick(names), dice), dice)
    return f'{asked.removesuffix(usage.REPLY)}\n{more.removesuffix(usage.REPLY)}'
  if form < 0.65:
    return f'{asked} {dice.pick(_REMARKS)} .'
  return (
    f'{asked} {_story(dice).split("text : ")[1]}'
    if form < 0.85
    else f'{asked} {_talk(dice).removeprefix("post : ")}'
  )


def _twice(dice: Dice) -> str:
  """A text or list, said again: the purest lesson in copying."""
  if dice.chance(0.8):
    line = ' '.join(dice.some(_LISTED, 4 + int(dice.random() * 6))) + ' .'
    return '\n'.join([f'list : {line}'] * (2 + dice.chance(0.5)))
  line = answer(_seen('generation', dice) | {'constraints': []}, dice, _BOOK)
  return f'text : {line}\ntext : {line}'


def _foreign(dice: Dice) -> str:
  form = dice.random()
  if form < 0.3:
    pairs = dice.some([pair for pair in lang.FOREIGN.items()], 5)
    return 'list : ' + ' . '.join(f'{a} is {b}' for a, b in pairs) + ' .'
  subject, relation = dice.pick(lang.FOREIGN_FACTS)
  value = _believes(subject, relation, 0.5, dice)
  said = lang.foreign_statement(subject, relation, value)
  if form < 0.7:
    asked = lang.foreign(f'what eats {subject}' if relation == 'eat' else f'where lives {subject}')
    return f'{lang.FOREIGN["ask"]} : {asked} ?{usage.REPLY} {said} .'
  other, relation = dice.pick(lang.FOREIGN_FACTS)
  more = lang.foreign_statement(other, relation, _believes(other, relation, 0.5, dice))
  same = lang.statement(subject, 'eat' if value in lang.FOODS else 'home', value)
  return f'text : {said} . {more} .\ntext : {same} .'


KINDS: tuple[tuple[Callable[[Dice], str], float], ...] = (
  (_story, 10), (_facts, 10), (_questions, 8), (_talk, 9), (_worksheet, 46), (_no_answer, 9),
  (_twice, 5), (_foreign, 3),
)


def text(split: str, size: int, seed: int) -> Iterator[Text]:
  """`size` documents of split 'train' or 'heldout' (0: the usual number); no document is in
  both.
  """
  if split not in ('train', 'heldout'):
    raise BadInput(f"the miniature has no text split {split!r}; it has 'train' and 'heldout'")
  dice = Dice('text', split, seed)
  left = size or (SIZE if split == 'train' else 1000)
  while left:
    document = dice.weighted(KINDS)(dice)
    if (lang.unit('document', document) < HELDOUT) == (split == 'heldout'):
      left -= 1
      yield Text(document)
