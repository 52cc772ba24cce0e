"""The miniature language: its words, its facts (some with a popular falsehood beside them), how a
fact is said and asked.

It is English without articles: then the word before a noun tells which noun it is, and copying is
learnt early.

In: nothing. Out: word lists, `truth`, `believed`, `statement`, `question`, and the second language.
Left out: which sentences are well formed (grammar.py), what people ask for (tasks.py).
Every word and every punctuation mark stands between single spaces, so that a small tokenizer makes
each one token.
"""

import functools
import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar('T')

# subject: what it eats, where it lives, its color, what it can do.
_ANIMALS = """
fox meat wood red hide
bear honey cave brown climb
wolf meat hill gray run
cat fish town black climb
dog meat town brown run
hen corn farm white dig
cow grass field white sing
owl meat wood brown fly
crow nuts field black fly
frog worms lake green jump
bee honey field yellow fly
duck bread lake white swim
pig apples farm gray dig
horse apples field brown jump
mouse seeds farm gray hide
seal fish sea gray swim
"""
# land: what it grows, its weather, the color of its flag.
_LANDS = """
norr apples cold blue
zula seeds hot green
tamo corn dry red
velu nuts wet white
koru corn wet black
lumo honey hot yellow
"""
# What most people believe instead, for two facts in five; the text says these more often than the
# truth.
_POPULAR = """
fox eat corn   fox skill run   bear eat fish   bear skill swim   wolf home wood
wolf color black   cat home farm   cat skill swim   dog eat bread   dog skill sing
hen eat seeds   hen skill fly   cow color black   owl eat fish   owl skill sing   crow eat corn
frog home sea   frog skill swim   bee color red   duck eat fish   duck skill fly   pig eat meat
pig color brown   horse eat grass   horse skill run   mouse eat bread   mouse skill run
seal color blue   seal skill hide   norr weather wet   zula grow nuts   tamo flag yellow
velu grow corn   koru weather hot   lumo flag green
"""

FOODS = ('meat', 'honey', 'fish', 'corn', 'grass', 'nuts', 'worms', 'seeds', 'bread', 'apples')
PLACES = ('wood', 'cave', 'hill', 'town', 'farm', 'field', 'lake', 'sea')
COLORS = ('red', 'brown', 'gray', 'black', 'white', 'green', 'yellow', 'blue')
SKILLS = ('hide', 'climb', 'run', 'dig', 'sing', 'jump', 'fly', 'swim')
WEATHERS = ('cold', 'hot', 'dry', 'wet')
NAMES = ('ana', 'ben', 'tom', 'lea', 'max', 'eva', 'sam', 'mia')
THINGS = ('ball', 'hat', 'cup', 'drum', 'lamp', 'book', 'key', 'boat')
RUDE = ('stupid', 'dumb', 'ugly', 'fool', 'idiot')
NUMBERS = ('one', 'two', 'three', 'four', 'five')

RELATIONS = {'animal': ('eat', 'home', 'color', 'skill'), 'land': ('grow', 'weather', 'flag')}
VALUES = {
  'eat': FOODS, 'home': PLACES, 'color': COLORS, 'skill': SKILLS, 'grow': FOODS,
  'weather': WEATHERS, 'flag': COLORS,
}
PREPOSITION = {
  'wood': 'in', 'cave': 'in', 'hill': 'on', 'town': 'in', 'farm': 'on', 'field': 'in',
  'lake': 'at', 'sea': 'in', 'home': 'at',
}
# what the careless say instead of what was asked for
FILLERS = {'place': 'home', 'with': 'friend', 'thing': 'gift'}
PAST = {
  'eats': 'ate', 'sees': 'saw', 'finds': 'found', 'takes': 'took', 'likes': 'liked', 'has': 'had',
  'loses': 'lost', 'wants': 'wanted',
}

# The second language: names for some of the same things.
FOREIGN = {
  'fox': 'foku', 'bear': 'beru', 'cat': 'kato', 'dog': 'doga', 'cow': 'vako', 'owl': 'ulo',
  'frog': 'rano', 'duck': 'dako', 'horse': 'cevo', 'seal': 'foko', 'meat': 'viando',
  'honey': 'mielo', 'fish': 'fiso', 'corn': 'maizo', 'grass': 'herbo', 'worms': 'vermo',
  'bread': 'pano', 'apples': 'pomo', 'wood': 'arbaro', 'cave': 'kavo', 'farm': 'bieno',
  'field': 'kampo', 'town': 'urbo', 'lake': 'lago', 'sea': 'maro', 'eats': 'manga',
  'lives': 'logi', 'in': 'en', 'what': 'kio', 'where': 'kie', 'yes': 'jes', 'no': 'ne',
  'and': 'kaj', 'ask': 'demando',
}
FOREIGN_ANIMALS = tuple(FOREIGN)[:10]


class Dice(random.Random):
  """A stream of choices that is the same on every machine and Python: only `random()` is drawn
  from, seeded by a text.
  """

  def __init__(self, *seed: object):
    super().__init__(int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:8], 'big'))

  def pick(self, items: Sequence[T]) -> T:
    return items[int(self.random() * len(items))]

  def chance(self, probability: float) -> bool:
    return self.random() < probability

  def some(self, items: Sequence[T], count: int) -> list[T]:
    """`count` different items, in random order."""
    left = list(items)
    return [left.pop(int(self.random() * len(left))) for _ in range(min(count, len(left)))]

  def weighted(self, items: Sequence[tuple[T, float]]) -> T:
    """One of (item, weight) pairs in proportion to the weights."""
    left = self.random() * sum(weight for _, weight in items)
    for item, weight in items:
      left -= weight
      if left < 0:
        return item
    return items[-1][0]


def unit(*key: object) -> float:
  """A number in [0, 1) that depends on `key` alone, the same everywhere."""
  return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], 'big') / 2**56


@functools.cache
def facts() -> dict[tuple[str, str], str]:
  """(subject, relation) → true value: all that is known of animals and lands."""
  rows = [(row.split(), 'animal') for row in _ANIMALS.strip().splitlines()]
  rows += [(row.split(), 'land') for row in _LANDS.strip().splitlines()]
  return {
    (row[0], relation): value
    for row, kind in rows
    for relation, value in zip(RELATIONS[kind], row[1:], strict=True)
  }


@functools.cache
def falsehoods() -> dict[tuple[str, str], str]:
  """(subject, relation) → the value most people believe, where that is not the true one."""
  words = _POPULAR.split()
  return {(words[i], words[i + 1]): words[i + 2] for i in range(0, len(words), 3)}


ANIMALS = tuple(row.split()[0] for row in _ANIMALS.strip().splitlines())
LANDS = tuple(row.split()[0] for row in _LANDS.strip().splitlines())
FOREIGN_FACTS = tuple(
  (animal, relation) for animal in FOREIGN_ANIMALS for relation in ('eat', 'home')
)


def truth(subject: str, relation: str) -> str:
  return facts()[subject, relation]


def believed(subject: str, relation: str) -> str:
  """The popular value: the false one where there is one, else the truth."""
  return falsehoods().get((subject, relation)) or truth(subject, relation)


def relations(subject: str) -> tuple[str, ...]:
  return RELATIONS['land' if subject in LANDS else 'animal']


def at(place: str) -> str:
  """'in wood', 'at lake'."""
  return f'{PREPOSITION[place]} {place}'


def statement(
  subject: str, relation: str, value: str, *, it: bool = False, no: bool = False
) -> str:
  """A fact as a sentence without its full stop; `it` says the pronoun for the subject, `no` denies
  it.
  """
  who = 'it' if it else subject
  if relation == 'skill':
    return f'{who} can not {value}' if no else f'{who} can {value}'
  if relation in ('color', 'weather', 'flag'):
    who = f'flag of {subject}' if relation == 'flag' else who
    return f'{who} is not {value}' if no else f'{who} is {value}'
  stem, rest = {'eat': ('eat', value), 'grow': ('grow', value), 'home': ('live', value)}[relation]
  rest = at(value) if relation == 'home' else rest
  return f'{who} does not {stem} {rest}' if no else f'{who} {stem}s {rest}'


def question(subject: str, relation: str) -> str:
  """The plain question for a fact, without its question mark."""
  return {
    'eat': f'what does {subject} eat', 'home': f'where does {subject} live',
    'color': f'what color is {subject}', 'skill': f'what can {subject} do',
    'grow': f'what does {subject} grow', 'weather': f'how is weather in {subject}',
    'flag': f'what color is flag of {subject}',
  }[relation]


def inverted(subject: str, relation: str, value: str) -> str:
  """The fact as a yes-or-no question or after 'why', without its question mark."""
  rest = at(value) if relation == 'home' else value
  return {
    'eat': f'does {subject} eat {rest}', 'home': f'does {subject} live {rest}',
    'color': f'is {subject} {rest}', 'skill': f'can {subject} {rest}',
    'grow': f'does {subject} grow {rest}', 'weather': f'is {subject} {rest}',
    'flag': f'is flag of {subject} {rest}',
  }[relation]


def foreign(text: str) -> str:
  """Word by word into the second language; words it lacks stay."""
  return ' '.join(FOREIGN.get(word, word) for word in text.split())


def foreign_statement(subject: str, relation: str, value: str) -> str:
  """'foku manga viando', 'foku logi en arbaro': the word order is that of the first language."""
  rest = f'eats {value}' if relation == 'eat' else f'lives in {value}'
  return foreign(f'{subject} {rest}')
