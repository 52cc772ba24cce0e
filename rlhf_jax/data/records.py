"""The records that everything else speaks of, what makes one valid, and how a judge is named.

In: one JSON object of a JSONL file. Out: a frozen dataclass, or `Refused` that says field,
expected, found and fix. Left out: files and line numbers (files.py), other layouts (layouts.py,
published.py), tokens (rows.py).
"""

import dataclasses
import difflib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlhf_jax.configs import BadInput
from rlhf_jax.data import functions, store

UNFINISHED = ' …'  # ends the text of a response cut at the limit: judges see it, no eos follows it


_SPEAKERS = {'user': 'Human', 'assistant': 'Assistant'}  # as hh_rlhf calls them (Bai et al., 2022)


class Chat(str):
  """A conversation that an assistant is to go on with, wherever a prompt is.

  As a text it is what people read ('Human: …\n\nAssistant: …\n\nHuman: …\n\nAssistant:');
  `messages` is what a tokenizer with a chat template renders.
  """
  messages: tuple[Mapping[str, str], ...]  # {'role', 'content'} each

  def __new__(cls, messages: Iterable[Mapping[str, str]], text: str = '') -> 'Chat':
    """`text`: how the source itself writes the conversation, if it does."""
    messages = tuple({'role': one['role'], 'content': one['content']} for one in messages)
    if not text:
      turns = [f'{_SPEAKERS.get(one["role"], one["role"].capitalize())}: {one["content"]}'
               for one in messages]
      text = '\n\n'.join([*turns, 'Assistant:'])
    chat = super().__new__(cls, text)
    chat.messages = messages
    return chat

  def __radd__(self, before: str) -> 'Chat':
    """With a text before it, such as examples: the user's first message then starts with it."""
    messages = [dict(one) for one in self.messages]
    for one in messages:
      if one['role'] == 'user':
        one['content'] = before + one['content']
        break
    return Chat(messages, before + str(self))

  def __getnewargs__(self) -> tuple[Any, ...]:
    return self.messages, str(self)  # for copies and pickles


@dataclasses.dataclass(frozen=True)
class Text:
  """A document to pretrain on."""
  text: str


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What a user asks. `meta` is any JSON-able dict and travels with the record; in JSON its
  'messages' are those of a prompt that is a Chat.
  """
  prompt: str
  category: str = ''
  customer: str = ''
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A prompt and the response a labeler wrote to it."""
  prompt: str
  response: str
  category: str = ''
  customer: str = ''
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ranking:
  """K completions of one prompt ordered by one labeler: rank 1 is best, ties share a rank."""
  prompt: str
  completions: tuple[str, ...]
  ranks: tuple[int, ...]
  labeler: str = ''
  category: str = ''
  customer: str = ''
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ended: tuple[bool, ...] = ()  # whether eos came; empty: in all but those marked UNFINISHED

  def completion(self, index: int) -> tuple[str, bool]:
    """Text of completion `index` without the UNFINISHED mark, and whether it ended."""
    text = self.completions[index]
    ended = self.ended[index] if self.ended else not text.endswith(UNFINISHED)
    return (text if ended else text.removesuffix(UNFINISHED)), ended


@dataclasses.dataclass(frozen=True)
class Judgement:
  """A judge's word on K responses: scores (higher is better), ranks (1 is best), flags by name
  (without: none of any).
  """
  scores: tuple[float, ...]
  ranks: tuple[int, ...]
  flags: tuple[Mapping[str, bool], ...] = ()

  def __post_init__(self):
    object.__setattr__(self, 'flags', self.flags or ({},) * len(self.scores))


Record = Text | Prompt | Demonstration | Ranking
Judge = Callable[[Prompt, Sequence[str], str], Judgement]  # (prompt, responses, labeler)

KINDS: dict[str, type] = {
  'text': Text, 'prompts': Prompt, 'demonstrations': Demonstration, 'rankings': Ranking}
# What others call the roles. Were they left as they are, an answer would pass for a question.
ROLES: Mapping[str, str] = {
  'system': 'system', **dict.fromkeys(('user', 'human', 'prompter'), 'user'), **dict.fromkeys(
    ('assistant', 'gpt', 'model', 'bot', 'chatbot', 'chatgpt', 'bing', 'bard'), 'assistant')}
_REQUIRED = {
  'text': {'text': str},
  'prompts': {'prompt': str},
  'demonstrations': {'prompt': str, 'response': str},
  'rankings': {'prompt': str, 'completions': list, 'ranks': list}}
_OPTIONAL = {'labeler': str, 'category': str, 'customer': str, 'meta': dict, 'ended': list}
_NAMES = {str: 'a text', list: 'a list', dict: 'an object', bool: 'true or false',
          int: 'a whole number', float: 'a number'}
_LARGEST = 2**31 - 1  # rank, which rows hold as int32
_SURROGATE = re.compile('[\ud800-\udfff]')  # JSON can hold half of a pair; no encoder can


class Refused(ValueError):
  """A row that is not a record. `reason` is the short name under which such rows are counted."""

  def __init__(self, reason: str, field: str, expected: str, found: str, fix: str):
    start = f'field {field!r}: ' if field else ''
    super().__init__(f'{start}expected {expected}, found {found}; {fix}')
    self.reason = reason


def show(value: Any, limit: int = 60) -> str:
  """A value as an error message shows it: its JSON, cut to `limit` characters."""
  text = json.dumps(value, ensure_ascii=False, default=str)
  return text if len(text) <= limit else text[:limit - 1] + '…'


def described(value: Any) -> str:
  """Kind and content of a value, for error messages: 'a text "abc"'."""
  if value is None or isinstance(value, bool):
    return show(value)
  return f'{_NAMES.get(type(value), type(value).__name__)} {show(value)}'


def from_row(kind: str, row: Any, tied: bool = False) -> Record:
  """Turns one JSON value into a record of `kind` (a key of KINDS).

  Args:
    tied: take a ranking that prefers nothing, too: for readers that make one of several.

  Raises: Refused, with the field and the fix. Fields that no record has are ignored: the data of
  users carries ids and notes.
  """
  if not isinstance(row, dict):
    raise Refused('not an object', '', f'a JSON object with {_fields(kind)}', described(row),
                  'write one object a line')
  values = {name: _typed(kind, row, name, wanted) for name, wanted in _REQUIRED[kind].items()}
  fields = {field.name for field in dataclasses.fields(KINDS[kind])}
  for name, wanted in _OPTIONAL.items():
    if name in fields and row.get(name) is not None:
      values[name] = _typed(kind, row, name, wanted)
  for name in ('text', 'prompt', 'response'):
    if name in values and not values[name].strip():
      raise Refused(f'empty {name}', name, 'some text', show(values[name]),
                    'give it text or leave the row out')
  if kind == 'rankings':
    _check_ranking(values, tied)
  if 'meta' in values:
    _check_meta(values['meta'])
  if 'messages' in values.get('meta', {}) and not isinstance(values['prompt'], Chat):
    values['meta'] = dict(values['meta'])
    messages = values['meta'].pop('messages')
    if messages is not None:  # null is absent, as everywhere
      values['prompt'] = Chat(conversation('meta.messages', messages), values['prompt'])
  return KINDS[kind](**values)


def conversation(field: str, value: Any) -> list[dict[str, str]]:
  """A list of messages as {'role', 'content'}; what else they hold is dropped. Raises: Refused."""
  check(field, value, list)
  if not value:
    raise Refused('no messages', field, 'at least one message', '[]', 'leave the row out')
  messages = []
  for index, one in enumerate(value):
    check(f'{field}[{index}]', one, dict)
    for name in ('role', 'content'):
      check(f'{field}[{index}].{name}', one.get(name), str)
    wanted = ROLES.get(one['role'].lower(), one['role'])
    if one['role'] != wanted:
      raise Refused('role of another name', f'{field}[{index}].role', repr(wanted),
                    show(one['role']), f'call it {wanted!r}')
    messages.append({'role': one['role'], 'content': one['content']})
  return messages


def to_row(record: Record) -> dict[str, Any]:
  """The JSON object of a record without empty optional fields. Inverse of `from_row`."""
  values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
  if isinstance(values.get('prompt'), Chat):
    values['meta'] = {**values['meta'], 'messages': list(values['prompt'].messages)}
  required = _REQUIRED[kind_of(record)]
  return {name: value for name, value in values.items() if name in required or value}


def kind_of(record: Record) -> str:
  """'text', 'prompts', 'demonstrations' or 'rankings'."""
  return next(kind for kind, cls in KINDS.items() if isinstance(record, cls))


def write_jsonl(path: pathlib.Path, records: Iterable[Record]) -> int:
  """Writes records as JSONL, whole or not at all. Returns how many."""
  count = 0
  with store.writing(path) as file:
    for record in records:
      file.write(json.dumps(to_row(record), ensure_ascii=False) + '\n')
      count += 1
  return count


def load_judge(name: str) -> Judge:
  """Resolves 'package.module:name' or 'path/file.py:name' to a judge.

  Raises: BadInput where module, file or name does not exist, with the names that come near.
  """
  return functions.load(name, 'judge')


def asked(judge: Judge, prompt: Prompt, responses: Sequence[str], labeler: str) -> Judgement:
  """The judge's word. Raises: BadInput where it is no Judgement."""
  told = judge(prompt, responses, labeler)
  if not all(hasattr(told, field) for field in ('scores', 'ranks', 'flags')):
    raise BadInput(f'judge {getattr(judge, "__qualname__", judge)!r}: expected a Judgement of '
                   f'scores and ranks, found {described(told)}')
  return told


def _fields(kind: str) -> str:
  return ', '.join(repr(name) for name in _REQUIRED[kind])


def _typed(kind: str, row: Mapping[str, Any], name: str, wanted: type) -> Any:
  if name not in row:
    near = difflib.get_close_matches(name, row, n=1)
    hint = f'rename {near[0]!r}' if near else f'give each row {_fields(kind)}'
    found = f'only {", ".join(map(repr, row))}' if row else 'an empty object'
    raise Refused('missing field', name, _NAMES[wanted], found, hint)
  check(name, row[name], wanted)
  return row[name]


def check(name: str, value: Any, wanted: type) -> None:
  """Raises Refused unless `value` is of that type, and text that UTF-8 can hold."""
  # To Python true is an int, but it is no rank.
  if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
    raise Refused('wrong type', name, _NAMES[wanted], described(value), f'make it {_NAMES[wanted]}')
  if wanted is str and _SURROGATE.search(value):
    raise Refused('half a character', name, 'text that UTF-8 can hold', show(value),
                  'remove the lone surrogate')


def _check_meta(meta: Mapping[str, Any]) -> None:
  """Checks that JSON can hold what travels with a record: Parquet has dates and bytes, too."""
  for name, value in meta.items():
    try:
      json.dumps({name: value}, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
      raise Refused('meta that is no JSON', f'meta.{name}', 'what JSON can hold', described(value),
                    'make it a text or a number') from error


def _check_ranking(values: dict[str, Any], tied: bool) -> None:
  """Checks the lists of a ranking and makes tuples of them, in place."""
  completions, ranks = values['completions'], values['ranks']
  _elements('completions', completions, str)
  if len(completions) < 2:
    raise Refused('fewer than two completions', 'completions', 'at least two completions',
                  str(len(completions)), 'give more or leave the row out')
  if len(ranks) != len(completions):
    raise Refused('ranks of the wrong length', 'ranks', f'{len(completions)} ranks',
                  str(len(ranks)), 'give one rank for each completion')
  _elements('ranks', ranks, int)
  if min(ranks) < 1:
    raise Refused('ranks not positive', 'ranks', 'whole numbers from 1 (best)', show(ranks),
                  'count ranks from 1')
  if max(ranks) > _LARGEST:
    raise Refused('ranks too large', 'ranks', f'ranks up to {_LARGEST}', show(ranks),
                  'count ranks from 1')
  if len(set(ranks)) == 1 and not tied:
    raise Refused('all ranks tied', 'ranks', 'at least two different ranks', show(ranks),
                  'leave out rows that prefer nothing')
  ended = values.get('ended', ())
  if ended:
    _elements('ended', ended, bool)
    if len(ended) != len(completions):
      raise Refused('ended of the wrong length', 'ended', f'{len(completions)} values',
                    str(len(ended)), 'give one for each completion or leave the field out')
  values.update(completions=tuple(completions), ranks=tuple(ranks), ended=tuple(ended))


def _elements(name: str, items: list, wanted: type) -> None:
  for index, item in enumerate(items):
    check(f'{name}[{index}]', item, wanted)
