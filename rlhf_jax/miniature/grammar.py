"""Reads a response: its sentences, whether each is well formed, what each mentions and which facts
it claims.

In: a response as text. Out: `Reading`, a tuple of `Sentence` and what is left over at the end.
Left out: whether claims are true and whether anything was asked for (rubric.py).

A sentence is well formed if its words, each replaced by the letter of its word class, match one
regular expression: a regular approximation of English clauses over the words of this world, with
agreement of subject and verb.
"""

import dataclasses
import functools
import re

from rlhf_jax.miniature import language as lang

# Letter of a class → its words. Order matters not: no word is in two classes.
_CLASSES = {
  'g': 'this my your',
  'n': 'story song note text day night friend end question flag weather animal food color '
  'place thing way fool idiot name word past home gift',
  'm': 'animals foods colors places things names words fun times',
  's': 'it',
  'o': 'i you we they',
  'b': 'me us them',
  'a': 'big small old new nice good bad happy sad kind loud fine sure sorry hard same stupid dumb '
  'ugly',
  'v': 'eats likes has grows sees wants takes finds loses',
  'w': 'eat like have grow see want take find lose make bring give meet tell know help say',
  'x': 'ate saw met found took lost liked wanted had made gave',
  'y': 'ran went came slept sang danced played cried laughed lived hid',
  'i': 'live come go sleep play',
  'j': 'lives goes runs sleeps',
  'z': 'is was',
  'Z': 'are were',
  'M': 'am',
  'c': 'can may will',
  't': 'not',
  'D': 'does',
  'O': 'do',
  'E': 'did',
  'r': 'in at on near with about for from',
  'u': 'to',
  'f': 'of',
  '&': 'and or',
  'B': 'because but so that',
  ',': ',',
  'h': 'well oh yes no now then once hi hello please thanks ok maybe dear bye today',
  'k': 'one two three four five many some all',
  'q': 'what where who why how which',
  'e': 'very',
  'T': 'there here',
  'L': 'la',
}


@functools.cache
def word_classes() -> dict[str, str]:
  """Every word of the first language → the letter of its class."""
  table = {word: letter for letter, words in _CLASSES.items() for word in words.split()}
  table |= dict.fromkeys(lang.ANIMALS + lang.PLACES + lang.THINGS, 'n')
  table |= dict.fromkeys(lang.FOODS, 'm') | dict.fromkeys(lang.NAMES + lang.LANDS, 'p')
  return table | dict.fromkeys(lang.COLORS + lang.WEATHERS, 'a') | dict.fromkeys(lang.SKILLS, 'i')


@functools.cache
def _pattern() -> re.Pattern[str]:
  adjective = 'e?a(?:(?:,a)*&a)?'
  one = '(?:g?k?(?:e?a)*[nm]|a*p|[sobg])'  # a noun phrase without 'of', 'and'
  noun = f'{one}(?:f{one})?(?:(?:,{one})*&{one})?'
  where = f'(?:[ru]{noun})*'
  simple = f'(?:w(?:{noun}|h)?(?:{one})?|i(?:{adjective})?|O)'
  base = f'(?:w{noun}{simple}|{simple}(?:u{simple})?)'  # "help you find it", "want to know"
  past = f'(?:x{noun}(?:{one})?|y(?:{adjective})?)'
  being = f't?(?:{adjective}|{noun})?'
  does = f'(?:{past}|ct?{base}|Et{base})'
  bases = f'{base}{where}(?:(?:,{base}{where})*&{base}{where})?'
  single = f'(?:(?:z{being}|v{noun}|j|Dt{base}|{does}){where}|ct?{bases})'
  plural = f'(?:(?:[ZM]{being}|z{being}|Ot{base}|{base}|{does}){where}|ct?{bases})'
  singular_subject = f'(?:g?(?:e?a)*n(?:f{one})?|a*p|[sgk])'
  plural_subject = f'(?:{one}(?:,{one})*&{one}|g?k?(?:e?a)*m|o|k)'
  clause = (
    f'(?:{singular_subject}{single}(?:,?[&B]{single})*|{plural_subject}{plural}(?:,?[&B]{plural})*'
    f'|T[zZ]{noun}(?:u{simple})?{where})'
  )
  opener = '(?:[hBk],|kn|h,?|h[np],|hp|[pn],)'
  whole = f'{opener}*(?:{clause}(?:,?[&B]h?{clause})*|{bases})(?:,[npoh]|h|k[nm])?'
  item = f'(?:{noun}|{adjective}|i)'
  listed = f'{opener}*(?:{item}(?:,{item})*(?:&{item})?{where}|[DOEzc]t)'
  called = f'(?:{opener}*L+|(?:hn?[np]?|[np])(?:,hn?[np])*|h+)'
  asked = (
    f'{opener}*(?:q[am]?)?(?:[DOE]t?{noun}(?:{base})?{where}'
    f'|[zZM]{noun}(?:{adjective}|{noun})?{where}'
    f'|c{noun}{base}{where})h?'
  )
  exclaimed = f'{opener}*qa+n'
  return re.compile(f'(?:{whole}|{listed}|{called}|{exclaimed})\\.|(?:{asked}|{exclaimed})\\?')


@dataclasses.dataclass(frozen=True)
class Sentence:
  """One sentence of a response, its full stop left off."""

  words: tuple[str, ...]
  formed: bool  # well formed
  asks: bool  # ends with a question mark
  # animals, lands, names, things, places, foods, colors, skills, weathers in it
  mentions: frozenset[str]
  # (subject or 'it', relation, value, affirmed) said in the present
  claims: tuple[tuple[str, str, str, bool], ...]
  rude: bool
  hedges: bool  # says that it is not sure
  denies: bool  # holds a 'not'


@dataclasses.dataclass(frozen=True)
class Reading:
  """A response, read."""

  words: tuple[str, ...]  # all of them, punctuation included
  sentences: tuple[Sentence, ...]
  finished: bool  # ended by itself and with a full stop or question mark
  rest: tuple[str, ...]  # words after the last full stop

  @functools.cached_property
  def mentions(self) -> frozenset[str]:
    return frozenset().union(*(sentence.mentions for sentence in self.sentences))


@functools.cache
def content_words() -> frozenset[str]:
  """Animals, lands, names, things, places, foods, colors, skills, weathers."""
  return frozenset(
    lang.ANIMALS
    + lang.LANDS
    + lang.NAMES
    + lang.THINGS
    + lang.PLACES
    + lang.FOODS
    + lang.COLORS
    + lang.SKILLS
    + lang.WEATHERS
  )


@functools.cache
def foreign_words() -> frozenset[str]:
  """The words of the second language."""
  return frozenset(lang.FOREIGN.values())


_SAYS = {
  'eats': 'eat', 'eat': 'eat', 'grows': 'grow', 'grow': 'grow', 'lives': 'home', 'live': 'home',
  'is': 'be', 'are': 'be', 'can': 'skill',
}  # verb → relation; 'be' is told apart by what follows


def _claims(words: tuple[str, ...], letters: str) -> tuple[tuple[str, str, str, bool], ...]:
  """Facts that a sentence states in the present: "fox and bear eat meat" holds two."""
  found: list[tuple[str, str, str, bool]] = []
  subjects: list[str] = []
  more_subjects = flag = False  # whether a further noun joins the subjects; whether they are flags
  relation, affirmed = '', True
  for i, (word, letter) in enumerate(zip(words, letters, strict=True)):
    before, after = letters[:i], letters[i + 1 :]
    if letter in 'npso' and before[-1:] not in ('r', 'u') and before[-2:-1] not in ('r', 'u'):
      verb = after.lstrip('gakmnpsob,&')[
        :1
      ]  # what follows the noun phrases: a verb makes them the subject
      if (
        verb
        and verb in 'vzZMcDOjwixyE'
        and after[:1] not in ('f', ',')
        and (letter in 'pso' or before[-1:] in ('', *'gakBh,&f'))
      ):
        subjects = [*subjects, word] if more_subjects else [word]
        more_subjects, relation, affirmed = True, '', True
        flag = before[-1:] == 'f' and words[i - 2] == 'flag'
    elif letter in 'vwzZcijDO' and not (letter == 'i' and relation == 'skill'):
      more_subjects = False
      relation = _SAYS.get(word, relation if letter in 'DO' else '')
      affirmed = affirmed if before[-1:] == 't' else True
    elif letter == 't':
      affirmed = False
    elif letter in 'xyEB':
      relation, more_subjects = '', False
    said = {'be': 'flag' if flag else 'weather' if word in lang.WEATHERS else 'color'}.get(
      relation, relation
    )
    if said and word in lang.VALUES[said]:
      found += [(subject, said, word, affirmed) for subject in subjects]
  return tuple(found)


@functools.lru_cache(maxsize=65536)
def read_sentence(words: tuple[str, ...]) -> Sentence:
  """Reads one sentence, given with its closing mark."""
  table = word_classes()
  letters = ''.join(table.get(word, '#') for word in words[:-1])
  asks = words[-1] == '?'
  body = words[:-1]
  text = ' '.join(body)
  formed = bool(_pattern().fullmatch(letters + words[-1]))
  return Sentence(
    body, formed, asks, content_words().intersection(body), () if asks else _claims(body, letters),
    rude=any(word in lang.RUDE for word in body), hedges='maybe' in body or 'not sure' in text,
    denies='not' in body,
  )


@functools.lru_cache(maxsize=65536)
def read(response: str) -> Reading:
  """Reads a response; one that was cut at the limit ends in ' …'."""
  words = tuple(response.split())
  cut = bool(words) and words[-1] == '…'
  words = words[:-1] if cut else words
  sentences, start = [], 0
  for i, word in enumerate(words):
    if word in ('.', '?'):
      if i > start:
        sentences.append(read_sentence(words[start : i + 1]))
      start = i + 1
  return Reading(
    words, tuple(sentences), not cut and bool(sentences) and start == len(words), words[start:]
  )
