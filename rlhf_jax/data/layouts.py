"""One row with the field's usual names → a record: plain texts, or messages as TRL has them.

In: a JSON value of any file. Out: a record of the kind that is asked for, or `Refused` that lists
the layouts. Left out: publishers' own layouts (published.py), tools and images in messages.

Wherever a prompt stands it may be a text or a list of messages; the last of these is not the
assistant's. Of the layouts of a kind (`LAYOUTS`) a row has the first whose fields it all holds;
fields that are null count as absent, as Parquet has every column in every row. A row read for its
prompt alone has the prompt that it has as a ranking, or else as a demonstration.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.files import LeftOut
from rlhf_jax.data.records import Chat, Record, Refused, check, conversation, from_row, show

LAYOUTS: Mapping[str, Sequence[tuple[str, ...]]] = {
  'text': [('text',)],
  'prompts': [('prompt',), ('messages',), ('chosen', 'rejected')],
  'demonstrations': [('prompt', 'response'), ('prompt', 'completion'), ('messages',)],
  'rankings': [('prompt', 'completions', 'ranks'), ('prompt', 'chosen', 'rejected'),
               ('chosen', 'rejected')],
}
# Kind -> fields by which a publisher's layout is known, and its reader (readers.py).
KNOWN_BY: Mapping[str, Mapping[tuple[str, ...], str]] = {
  'rankings': {
    ('prompt', 'answers'): 'nectar', ('instruction', 'completions'): 'ultrafeedback',
    ('history', 'human_ref_A'): 'shp', ('question', 'answer_0', 'score_0'): 'webgpt',
    ('response_0', 'better_response_id'): 'pku_saferlhf',
    ('response1', 'overall_preference'): 'helpsteer3',
    ('info', 'summaries', 'choice'): 'openai_summarize'},
  'demonstrations': {
    ('instruction', 'output'): 'alpaca', ('instruction', 'response'): 'alpaca',
    ('instruction', 'instances'): 'self_instruct', ('conversations',): 'sharegpt'}}
_QUESTIONS = ('question', 'instruction', 'query', 'input')  # what others call a prompt
TURN = '\n\nAssistant:'  # before the turns of hh_rlhf's dialogues (Bai et al., 2022)
_ASKED = '\n\nHuman:'
_MARKS = re.compile(r'(?:\A|\n\n)(Human|Assistant):')


def record(kind: str, row: Any, tied: bool = False) -> Record:
  """The record of `kind` that a row holds; with `tied` a ranking may prefer nothing.

  Raises: Refused, with the field and the fix; LeftOut for a pair of dialogues without a common
    prompt.
  """
  if not isinstance(row, dict):
    return from_row(kind, row)  # which refuses it
  fields = (kind == 'prompts' and _conversation(row)) or _layout(kind, row)
  values: dict[str, Any] = {}
  if fields == ('chosen', 'rejected') or fields == ('prompt', 'chosen', 'rejected'):
    prompt, chosen, rejected = _pair(kind, row)
    values = {'prompt': prompt, 'completions': [chosen, rejected], 'ranks': [1, 2]}
  elif fields == ('messages',):
    values = _messages(kind, row['messages'])
  elif 'prompt' in fields:
    values = {'prompt': _prompt('prompt', row['prompt'])}
    if kind == 'demonstrations':
      if fields[1] == 'completion' and row.get('label') is False:  # TRL's unpaired preferences
        raise LeftOut('labelled as bad')
      values['response'] = _answer(fields[1], row[fields[1]])
    elif kind == 'rankings' and isinstance(row['completions'], list):
      values['completions'] = [_answer(f'completions[{index}]', one) if isinstance(one, list)
                               else one for index, one in enumerate(row['completions'])]
  return from_row(kind, row | values, tied)


def _conversation(row: Mapping[str, Any]) -> tuple[str, ...]:
  """The layout that holds a row's conversation whole, beside a prompt if anything: that which
  rankings and demonstrations take the prompt from. None: ().

  Reward models and policies would else be asked two ways by one file (UltraFeedback, UltraChat).
  """
  holds = {name for name, value in row.items() if value is not None}
  if {'prompt', 'completions', 'ranks'} <= holds:
    return ()
  if {'chosen', 'rejected'} <= holds and (isinstance(row['chosen'], list) or _dialogues(row)):
    return ('prompt', 'chosen', 'rejected')
  beside = {'prompt', 'response'} <= holds or {'prompt', 'completion'} <= holds or (
    {'prompt', 'chosen', 'rejected'} <= holds)
  return ('messages',) if row.get('messages') and not beside and isinstance(
    row.get('prompt'), str) else ()


def _layout(kind: str, row: Mapping[str, Any]) -> tuple[str, ...]:
  """The first layout that fits. Raises: Refused that lists them all where none does."""
  for fields in LAYOUTS[kind]:
    if all(row.get(name) is not None for name in fields):
      return fields
  nearest = max(LAYOUTS[kind], key=lambda fields: sum(name in row for name in fields))
  missing = next((name for name in nearest if name not in row), None)
  if missing is None:  # a field that is there is null
    return nearest
  known = [reader for of, layouts in KNOWN_BY.items() if kind in (of, 'prompts')
           for fields, reader in layouts.items() if all(name in row for name in fields)]
  types = list if missing in ('completions', 'ranks', 'messages') else (str, list)
  near = difflib.get_close_matches(missing, [
    name for name, value in row.items() if name not in nearest and isinstance(value, types)], n=2)
  listed = ' or '.join('{' + ', '.join(fields) + '}' for fields in LAYOUTS[kind])
  raise Refused(
    'missing field', missing, f'a row with {listed}',
    f'only {", ".join(map(repr, row))}' if row else 'an empty object',
    f'name the reader {known[0]!r}' if known else
    f'rename {near[0]!r}' if len(near) == 1 else f'is the kind {kind!r} right? or name a reader')


def _prompt(field: str, value: Any) -> Any:
  """A text as it is; messages as a Chat."""
  if not isinstance(value, list):
    return value
  messages = conversation(field, value)
  if messages[-1]['role'] == 'assistant':
    raise Refused("the assistant's turn last", field, "messages up to the user's last one",
                  f'one of the assistant at the end: {show(messages[-1]["content"])}',
                  'move it to the response')
  return Chat(messages)


def _answer(field: str, value: Any) -> Any:
  """A text as it is; of messages the one that is the response."""
  if not isinstance(value, list):
    return value
  messages = conversation(field, value)
  if len(messages) > 1 or messages[0]['role'] != 'assistant':
    raise Refused('not one response', field, "one message of the assistant's",
                  f'{len(messages)}, the first by {show(messages[0]["role"])}',
                  'put what comes before into the prompt')
  return messages[0]['content']


def _messages(kind: str, value: Any) -> dict[str, Any]:
  """{"messages"}: the assistant's last turn answers what is before it."""
  messages = conversation('messages', value)
  answered = messages[-1]['role'] == 'assistant'
  if kind == 'prompts' and not answered:
    return {'prompt': Chat(messages)}
  if not answered or len(messages) == 1:
    raise Refused('no response' if not answered else 'empty prompt', 'messages',
                  "a conversation that ends with the assistant's answer",
                  f'{len(messages)} messages, the last by {show(messages[-1]["role"])}',
                  'leave the row out')
  return {'prompt': _prompt('messages', messages[:-1]), 'response': messages[-1]['content']}


def _pair(kind: str, row: Mapping[str, Any]) -> tuple[Any, str, str]:
  """(prompt, chosen, rejected), the prompt being a field, or what both sides start with."""
  sides = {name: row.get(name) for name in ('chosen', 'rejected')}
  for name, side in sides.items():
    check(name, side, list if isinstance(sides['chosen'], list) else str)
  given = row.get('prompt')
  if isinstance(sides['chosen'], str):
    others = [name for name in row if name not in sides]
    if given is None and others and not any(TURN in side for side in sides.values()):
      if 'prompt' in row:
        check('prompt', given, str)  # null: no other field is to be renamed
      near = [name for name in _QUESTIONS if name in row][:1] or [
        name for name in difflib.get_close_matches('prompt', others)
        if name not in ('prompt_id', 'system_prompt')][:1] or others
      raise Refused('missing field', 'prompt', "'prompt' beside 'chosen' and 'rejected', which are "
                    'no dialogues', f'only {", ".join(map(repr, row))}',
                    f'rename {near[0]!r}' if len(near) == 1 else 'rename the field that holds it')
    whole = given is None or _dialogues(row)
    (prompt, chosen), (other, rejected) = (
      dialogue(name, side) if whole else (given, side) for name, side in sides.items())
    if whole and given is not None and not (
        given.strip().removesuffix(TURN) in prompt if isinstance(given, str)
        else conversation('prompt', given) == list(prompt.messages)):
      raise Refused('two prompts', 'chosen', "a dialogue that holds 'prompt'", show(prompt),
                    "correct or drop 'prompt'")
  else:
    (prompt, chosen), (other, rejected) = (
      _whole(name, side, given) for name, side in sides.items())
  if prompt != other:
    raise LeftOut('no common prompt')
  if chosen == rejected and (given is None or kind == 'rankings'):
    if given is None:
      raise LeftOut('equal completions')
    raise Refused('equal completions', 'rejected', "another text than 'chosen'", show(rejected),
                  'leave the row out')
  return _prompt('prompt', prompt), chosen, rejected


def _dialogues(row: Mapping[str, Any]) -> bool:
  """Whether both sides are whole dialogues as hh_rlhf writes them, whatever stands beside them."""
  return all(isinstance(side, str) and side.lstrip().startswith('Human:') and TURN in side
             for side in (row['chosen'], row['rejected']))


def _whole(name: str, side: Any, given: Any) -> tuple[Any, str]:
  """(prompt, answer) of messages that hold the whole conversation, or the answer alone."""
  messages = conversation(name, side)
  if given is not None and len(messages) == 1:
    return given, _answer(name, messages)
  if messages[-1]['role'] != 'assistant' or len(messages) == 1:
    raise Refused('not a dialogue', name, "messages that end with the assistant's answer",
                  f'{len(messages)}, the last by {show(messages[-1]["role"])}', 'leave the row out')
  before = messages[:-1]
  same = (given is None or any(given == one['content'] for one in before)
          if not isinstance(given, list) else conversation('prompt', given) == before)
  if not same:
    raise Refused('two prompts', name, "messages that start with 'prompt'", show(before),
                  "correct or drop 'prompt'")
  return before, messages[-1]['content']


def dialogue(field: str, text: Any) -> tuple[Chat, str]:
  """A dialogue as hh_rlhf writes it: what comes before the assistant's last turn, and that turn.

  What stands before the first mark is a system message. Raises: Refused; LeftOut where the human
  has the last word, which published dialogues may hold.
  """
  check(field, text, str)
  before, mark, answer = text.rpartition(TURN)
  if not mark:
    raise Refused('not a dialogue', field, f'a turn that starts with {show(TURN)}', show(text),
                  'write the marks of both speakers, or give the prompt a field of its own')
  if _ASKED in answer:
    raise LeftOut("the human's turn last")
  if not before.strip():
    raise Refused('empty prompt', field, f'a turn before {show(TURN)}', show(text),
                  'leave the row out')
  return chat(before.strip() + mark), answer.strip()


def chat(text: str) -> Chat:
  """'Human: …\\n\\nAssistant: …\\n\\nHuman: …\\n\\nAssistant:' as a Chat with that very text."""
  first, *turns = _MARKS.split(text.removesuffix(TURN))
  messages = [{'role': 'system', 'content': first.strip()}] if first.strip() else []
  messages += [{'role': 'user' if speaker == 'Human' else 'assistant', 'content': content.strip()}
               for speaker, content in zip(turns[::2], turns[1::2], strict=True)]
  return Chat(messages, text)
