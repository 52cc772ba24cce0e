"""Prompts that are nearly the same: which records repeat another, which must stay on one side.

In: records. Out: indices of repeats, and a group for each record. Left out: paraphrases (nothing
here knows what words mean); texts that share an end or a middle.

Paper A.2: prompts that share a long common prefix are duplicates; no length is given. Here a prefix
is long from `_LONG` characters on, if it is `_SHARE` of the prompt. Compared is what is left when
case, punctuation and whitespace are put aside, and what many prompts have before their content: a
conversation's system message, and the longest beginning that more than half of them share.
"""

import heapq
import itertools
import math
import re
import unicodedata
from collections.abc import Sequence

from rlhf_jax.data.records import Chat, Record, Text

_LONG = 200  # characters; paper: not stated
_SHARE = 0.9  # paper: not stated
_FEW = 20  # so few prompts have no common beginning: they may all be variations of one
_ASIDE = re.compile(r'[\W_]+')


def content(record: Record) -> str:
  """The prompt of a record, or the text of a document."""
  return record.text if isinstance(record, Text) else record.prompt


def normal(text: str) -> str:
  """What two texts share that differ in case, punctuation and whitespace alone."""
  folded = unicodedata.normalize('NFKC', text).casefold()
  return _ASIDE.sub(' ', folded).strip() or ' '.join(folded.split())


def groups(records: Sequence[Record]) -> list[int]:
  """A number for each record; nearly the same prompts have the same one.

  Also where one goes on from the other, as a dialogue does from its earlier turns: what is shared
  is long against the shorter of the two. A question is the same as a plain text and as the only
  turn of a conversation. O(n log n) comparisons; the order of records is of no consequence.
  """
  texts = [normal(_parts(content(record))[1]) for record in records]
  bodies = _without_beginning(set(texts))
  ordered = sorted(bodies, key=bodies.__getitem__)
  shared = [_prefix(bodies[one], bodies[other]) for one, other in itertools.pairwise(ordered)]
  wanted = [_wanted(bodies[text]) for text in ordered]
  # In sorted order what a text shares with another is the least of what the texts between share.
  forth = _linked(shared, wanted)
  back = _linked(shared[::-1], wanted[::-1])[::-1]
  number, last = {}, 0
  for place, text in enumerate(ordered):
    last += bool(place) and not (forth[place - 1] or back[place - 1])
    number[text] = last
  number = _with_turns(number)
  return [number[text] for text in texts]


def repeats(records: Sequence[Record]) -> set[int]:
  """Indices of records whose prompt nearly repeats another one's, which comes first and stays.

  What is shared is long against the longer of the two. All records of one and the same prompt stay:
  several labelers may have answered or ranked it. So do prompts under other system messages.
  """
  first: dict[str, int] = {}
  by_system: dict[str, dict[str, list[int]]] = {}
  for index, record in enumerate(records):
    prompt = content(record)
    if first.setdefault(prompt, index) == index:
      system, text = _parts(prompt)
      by_system.setdefault(system, {}).setdefault(normal(text), []).append(index)
  found = set()
  for members in by_system.values():
    bodies = _without_beginning(set(members))
    kept, body = [], ''
    for text in sorted(bodies, key=bodies.__getitem__):
      longer = max(len(body), len(bodies[text]))
      if not (longer >= _LONG and _prefix(body, bodies[text]) >= max(_LONG, _SHARE * longer)):
        kept, body = [], bodies[text]
      if len(bodies[text]) < _LONG:
        continue
      kept += members[text]
      found |= set(kept) - {min(kept)}
  return {index for index, record in enumerate(records) if first[content(record)] in found}


def _parts(prompt: str) -> tuple[str, str]:
  """(system message, the rest) of a conversation; ('', all) of a plain text."""
  if not isinstance(prompt, Chat) or prompt.messages[0]['role'] != 'system':
    return '', prompt
  return prompt.messages[0]['content'], Chat(prompt.messages[1:])


def _with_turns(number: dict[str, int]) -> dict[str, int]:
  """Groups of texts, those of a plain question and of the same as a conversation's only turn one.

  Apart from what is near: marks count among the characters that dialogues share.
  """
  parent = {group: group for group in number.values()}

  def root(group: int) -> int:
    while parent[group] != group:
      parent[group] = group = parent[parent[group]]
    return group

  for text, group in number.items():
    turn = number.get(f'human {text} assistant')
    if turn is not None:
      parent[root(turn)] = root(group)
  return {text: root(group) for text, group in number.items()}


def _without_beginning(texts: set[str]) -> dict[str, str]:
  """Each text without the beginning that more than half of them share, if there is one."""
  ordered, most = sorted(texts), len(texts) // 2
  if len(texts) < _FEW:
    return {text: text for text in ordered}
  beginning = max((one[:_prefix(one, other)] for one, other in zip(ordered, ordered[most:],
                                                                  strict=False)), key=len)
  return {text: text.removeprefix(beginning) for text in ordered}


def _prefix(one: str, other: str) -> int:
  """How many characters two texts begin with alike."""
  low, high = 0, min(len(one), len(other))
  while low < high:
    middle = (low + high + 1) // 2
    if one.startswith(other[low:middle], low):
      low = middle
    else:
      high = middle - 1
  return low


def _wanted(text: str) -> int:
  """How many characters another text must share with this one, the shorter, to be near it."""
  return max(_LONG, math.ceil(_SHARE * len(text)))


def _linked(shared: Sequence[int], wanted: Sequence[int]) -> list[bool]:
  """Whether an element up to i is near element i + 1, for every i: all between share as much."""
  near: list[int] = []  # what those wanted that are near the element reached, negative: a heap
  linked = []
  for length, least in zip(shared, wanted, strict=False):
    heapq.heappush(near, -least)
    while near and -near[0] > length:
      heapq.heappop(near)
    linked.append(bool(near))
  return linked
