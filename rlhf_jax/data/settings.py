"""What lies beside a tokenizer.json: names of special tokens, chat template, end tokens.

In: a folder in the layout of Hugging Face transformers. Out: `Settings`, which win over what
tokenizer.py guesses by name. Left out: special_tokens_map.json (tokenizer_config.json repeats it),
settings of a tokenizer's own class (a tokenizer.json holds what they do).
"""

import dataclasses
import json
import pathlib
from typing import Any

from rlhf_jax.configs import BadInput


@dataclasses.dataclass(frozen=True)
class Settings:
  """None: the files do not say; '': they say that there is none."""
  bos: str | None = None
  eos: str | None = None
  pad: str | None = None
  add_bos: bool | None = None  # whether every text starts with bos
  template: str = ''  # jinja2, of a chat
  ends: tuple[int, ...] = ()  # ids that end a response


def read(folder: pathlib.Path) -> Settings:
  """The settings of a folder; all unsaid where it holds a tokenizer.json alone.

  From tokenizer_config.json, chat_template.jinja (wins over a template in there, as it does in
  transformers), and eos_token_id of generation_config.json or else config.json.
  Raises: BadInput that names the file and the field.
  """
  path = folder / 'tokenizer_config.json'
  found = _object(path)
  add_bos = found.get('add_bos_token')
  if add_bos not in (None, True, False):
    raise BadInput(f"{path}: field 'add_bos_token': expected true or false, found {add_bos!r}")
  template = _template(path, found.get('chat_template'))
  if (own := folder / 'chat_template.jinja').is_file():
    template = own.read_text(encoding='utf-8')
  return Settings(*(_token(path, found, f'{name}_token') for name in ('bos', 'eos', 'pad')),
                  add_bos, template, _ends(folder))


def _object(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise BadInput(f'{path}: expected a JSON object, found {error}') from error
  if not isinstance(found, dict):
    raise BadInput(f'{path}: expected a JSON object, found {type(found).__name__}')
  return found


def _token(path: pathlib.Path, found: dict[str, Any], name: str) -> str | None:
  if name not in found:
    return None
  value = found[name]
  if isinstance(value, dict):  # a token with its flags
    value = value.get('content')
  if not isinstance(value, str | None):
    raise BadInput(f'{path}: field {name!r}: expected a text, found {value!r}')
  return value or ''


def _template(path: pathlib.Path, value: Any) -> str:
  """The template itself, or the one called 'default' of several with names."""
  if isinstance(value, list):
    named = {one.get('name'): one.get('template') for one in value if isinstance(one, dict)}
    value = next(iter(named.values())) if len(named) == 1 else named.get('default', named)
  if not isinstance(value, str | None):
    raise BadInput(f"{path}: field 'chat_template': expected a text, or a list of templates one of "
                   f"which has the name 'default', found {str(value)[:60]}")
  return value or ''


def _ends(folder: pathlib.Path) -> tuple[int, ...]:
  for name in ('generation_config.json', 'config.json'):
    ids = _object(folder / name).get('eos_token_id')
    if ids is None:
      continue
    ids = ids if isinstance(ids, list) else [ids]
    if any(type(index) is not int or index < 0 for index in ids):
      raise BadInput(f"{folder / name}: field 'eos_token_id': expected an id or a list of ids, "
                     f'found {ids}')
    return tuple(ids)
  return ()
