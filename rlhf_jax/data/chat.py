"""Chat templates: the messages of a conversation → the text that a chat model knows.

In: a jinja2 template as models carry it in tokenizer_config.json, messages. Out: text, ending where
the assistant is to go on; it is what transformers' apply_chat_template renders with
add_generation_prompt=True, but for the date. Left out: tools, documents, continued messages.
"""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from rlhf_jax.configs import BadInput

# Templates that ask for today's date get this one: rows must not depend on the day on which they
# are built. Llama 3.1's template has it for programs that tell no date.
TODAY = datetime.datetime(2024, 7, 26)
_ASKED = {'role': 'user', 'content': 'a'}
_MARKS = [chr(code) for code in range(0xfdd0, 0xfdf0)]  # noncharacters: no text has them


class Template:
  """A compiled template. Raises: BadInput where it is none."""

  def __init__(self, source: str, names: Mapping[str, str]):
    """`names`: 'bos_token', 'eos_token', … -> the token, for those that there are."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters['tojson'] = _to_json
    environment.globals |= {'raise_exception': _raise, 'strftime_now': TODAY.strftime}
    try:
      self._template = environment.from_string(source)
    except jinja2.TemplateError as error:
      raise BadInput(f"field 'chat_template': expected a jinja2 template, found {error}") from error
    self._names = dict(names)

  def render(self, messages: Sequence[Mapping[str, str]]) -> str:
    """The text up to the start of the assistant's next turn.

    Raises: BadInput where the template refuses the messages.
    """
    try:
      return self._template.render(messages=[dict(one) for one in messages], tools=None,
                                   documents=None, add_generation_prompt=True, **self._names)
    except Exception as error:  # a template is a program of somebody else's
      roles = ', '.join(one['role'] for one in messages)
      raise BadInput(f'expected messages that the chat template takes, found those of {roles}: '
                     f'{" ".join(str(error).split())}') from error

  def start(self) -> str:
    """What is rendered of a short question; '' where the template refuses it."""
    try:
      return self.render([_ASKED])
    except BadInput:
      return ''

  def between(self) -> str:
    """' ' where the template puts one between `render` and what the assistant says, else ''."""
    start, answer = self.start(), _MARKS[0]
    try:
      whole = self._template.render(
        messages=[dict(_ASKED), {'role': 'assistant', 'content': answer}], tools=None,
        documents=None, add_generation_prompt=False, **self._names)
    except Exception:  # a template is a program of somebody else's
      return ''
    return ' ' if start and whole.startswith(f'{start} {answer}') else ''


def guarded(messages: Sequence[Mapping[str, str]],
            specials: re.Pattern) -> tuple[list[dict[str, str]], dict[str, str]]:
  """Messages in which placeholders stand for the special tokens' letters, and what they stand for.

  So what a user writes is told from what the template writes.
  """
  whole = ''.join(one['content'] for one in messages)
  start, end = [mark for mark in _MARKS if mark not in whole][:2]
  letters: dict[str, str] = {}

  def hide(found: re.Match) -> str:
    placeholder = f'{start}{len(letters)}{end}'
    letters[placeholder] = found.group()
    return placeholder

  return [{**one, 'content': specials.sub(hide, one['content'])} for one in messages], letters


class _Generation(jinja2.ext.Extension):
  """{% generation %} … {% endgeneration %} marks what the assistant said: rendered as it stands."""
  tags = frozenset({'generation'})

  def parse(self, parser: Any) -> Any:
    next(parser.stream)
    return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                    sort_keys=sort_keys)


def _raise(message: str) -> None:
  raise jinja2.TemplateError(message)
