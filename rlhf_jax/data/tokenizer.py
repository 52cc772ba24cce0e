"""Text to ids and back: one interface over a byte-level BPE of our own and over any tokenizer.json.

In: text. Out: lists of ids without padding. Left out: truncation and padding (rows.py lays rows
out), training of anything but byte-level BPE.

Special tokens never come from text: a document that holds the letters '<|eos|>' is encoded as those
letters, and so is a message of a conversation; only a chat template writes special tokens. Padding
is never eos, and no code asks whether a token is padding: masks say so.

Which tokens are special is said by the files beside tokenizer.json (settings.py), else guessed by
name. A text starts with bos if `add_bos_token` is true there; where that is not said, if the
tokenizer.json itself puts bos first; where that has no post-processor either, if bos is another
token than eos (GPT-2's <|endoftext|> only parts documents).
"""

import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from rlhf_jax.configs import BadInput
from rlhf_jax.data import chat, settings, store
from rlhf_jax.data.records import Chat
from rlhf_jax.data.settings import Settings

PAD, BOS, EOS = '<|pad|>', '<|bos|>', '<|eos|>'
# How published tokenizer.json files call them, in the order they are looked for.
_PADS = (PAD, '<pad>', '[PAD]', '<|padding|>', '<unk>', '[UNK]')
_BOSES = (BOS, '<s>', '<bos>', '<|begin_of_text|>', '<|endoftext|>')
_EOSES = (EOS, '</s>', '<eos>', '<|eot_id|>', '<|im_end|>', '<|end_of_text|>', '<|endoftext|>')


def same_ids(one: Any, other: Any) -> bool:
  """Whether two tokenizers give a text the same ids; an exported tokenizer.json has more in it."""
  parts = []
  for tokenizer in (one, other):
    told = json.loads(getattr(tokenizer, 'json', '{}'))
    parts.append([told.get(key) for key in ('normalizer', 'pre_tokenizer', 'model', 'added_tokens')]
                 + [getattr(tokenizer, name, None) for name in ('pad', 'start', 'ends')])
  return parts[0] == parts[1]


class Tokenizer:
  """Ids: `pad`; `bos` (None where there is none); `eos`, written after texts and responses; `ends`,
  all that end a response, eos first; `start`, what texts begin with, [bos] or nothing.

  `vocabulary`: number of ids. `template`: of a chat, '' where there is none.
  """

  def __init__(self, backend: tokenizers.Tokenizer, given: Settings = Settings()):
    """Wraps a `tokenizers` backend. Raises: BadInput where it has no token that ends a text."""
    self._backend, self._given = backend, given
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # '<|eos|>' in a text is seven letters, not its end
    self.vocabulary: int = backend.get_vocab_size(with_added_tokens=True)
    self.template = given.template
    # An id that is not in the vocabulary is never sampled.
    ends = tuple(index for index in given.ends if index < self.vocabulary)
    eos = self._named('eos_token', given.eos) if given.eos else (
      ends[0] if ends else self._first(_EOSES))
    if eos is None:
      raise BadInput(f'tokenizer: expected a token that ends a text, one of {", ".join(_EOSES)}; '
                     'found none; name it as eos_token in tokenizer_config.json')
    self.eos: int = eos
    self.ends: tuple[int, ...] = tuple(dict.fromkeys((eos, *ends)))
    self.bos: int | None = self._named('bos_token', given.bos) if given.bos else (
      self._first(_BOSES) if given.bos is None else None)
    self.start: list[int] = [self.bos] if self._starts_with_bos() else []
    pad = self._first(_PADS if given.pad is None else (given.pad,))
    self._has_pad = pad is not None and pad not in self.ends
    # Without a token of its own padding takes an id that the embedding table has and no end is.
    self.pad: int = pad if self._has_pad else next(
      index for index in range(self.vocabulary) if index not in self.ends)
    self._hidden = {*self.ends, self.bos} | ({self.pad} if self._has_pad else set())
    # SentencePiece files put a space before every text by themselves.
    first = backend.encode('a', add_special_tokens=False).tokens[:1]
    self._prepends_space = first in (['▁'], ['▁a'])
    names = {name: token for name, token in self.config().items()
             if name.endswith('_token') and isinstance(token, str)}
    self._chat = chat.Template(given.template, names) if given.template else None

  @classmethod
  def train(cls, texts: Iterable[str], vocabulary: int) -> 'Tokenizer':
    """Byte-level BPE of at most `vocabulary` ids: 3 special tokens, 256 bytes, then merges."""
    least = 256 + 3
    if vocabulary < least:
      raise BadInput(f'tokenizer: expected vocabulary of at least {least} (256 bytes and 3 special '
                     f'tokens), found {vocabulary}')
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(texts, trainers.BpeTrainer(
      vocab_size=vocabulary, special_tokens=[PAD, BOS, EOS], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return cls(backend)

  @classmethod
  def from_file(cls, path: str | pathlib.Path) -> 'Tokenizer':
    """Reads a tokenizer.json and the settings beside it (settings.py).

    Raises: BadInput where it is missing or is none, or where a setting makes no sense.
    """
    path = store.path(path)
    if not path.is_file():
      raise BadInput(f'{path}: expected a tokenizer.json, found no such file')
    try:
      backend = tokenizers.Tokenizer.from_str(path.read_text(encoding='utf-8'))
    except Exception as error:  # the Rust side raises a bare Exception
      raise BadInput(f'{path}: expected a tokenizer.json of the tokenizers library, '
                     f'found {error}') from error
    given = settings.read(path.parent)
    try:
      return cls(backend, given)
    except BadInput as error:
      raise BadInput(f'{path}: {error}') from error

  def save(self, path: str | pathlib.Path) -> None:
    """Writes tokenizer.json, and what was read beside it; each file whole or not at all."""
    path = store.path(path)
    written = {path.name: self.json}
    if self._given != Settings():
      written |= {name: json.dumps(content, ensure_ascii=False, indent=1) + '\n'
                  for name, content in (('tokenizer_config.json', self.config()),
                                        ('generation_config.json', self.generation()))}
    for name, content in written.items():
      store.write(path.with_name(name), content)

  @functools.cached_property
  def json(self) -> str:
    """The file's content."""
    return json.dumps(json.loads(self._backend.to_str()), ensure_ascii=False, indent=1)

  @functools.cached_property
  def identity(self) -> str:
    """All that ids of texts depend on: tokenizers that encode alike have equal ones."""
    return json.dumps([self.json, self.pad, self.bos, self.start, self.ends, self.template])

  def config(self) -> dict[str, Any]:
    """tokenizer_config.json, as transformers reads it."""
    names = {'bos_token': self.bos, 'eos_token': self.eos,
             'pad_token': self.pad if self._has_pad else None}
    found = {name: None if index is None else self._backend.id_to_token(index)
             for name, index in names.items()}
    if self._given.pad:  # it may be an end token too; others do without our masks at their own risk
      found['pad_token'] = self._given.pad
    found |= {'tokenizer_class': 'PreTrainedTokenizerFast', 'add_bos_token': bool(self.start),
              'clean_up_tokenization_spaces': False}
    return found | ({'chat_template': self.template} if self.template else {})

  def generation(self) -> dict[str, Any]:
    """What generation_config.json says of tokens, as transformers reads it."""
    ends = self.eos if len(self.ends) == 1 else list(self.ends)
    return {'bos_token_id': self.bos, 'eos_token_id': ends, 'pad_token_id': self.pad}

  def published(self) -> str:
    """tokenizer.json for other programs: it puts bos first by itself where texts start so here."""
    if not self.start or self._backend.post_processor is not None:
      return self.json
    bos = self._backend.id_to_token(self.bos)
    copy = tokenizers.Tokenizer.from_str(self.json)
    copy.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', pair=f'{bos} $A $B', special_tokens=[(bos, self.bos)])
    return json.dumps(json.loads(copy.to_str()), ensure_ascii=False, indent=1)

  def encode(self, text: str) -> list[int]:
    """Ids of `text`, nothing added."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts on all cores."""
    encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def head(self, text: str, count: int) -> str:
    """The start of `text` that its first `count` ids stand for."""
    spans = self._backend.encode(text, add_special_tokens=False).offsets[:count]
    return text[:spans[-1][1]] if spans else ''

  def encode_prompt(self, text: str) -> list[int]:
    """Ids of a prompt, a `Chat` or any text; never empty.

    [bos] + ids of the text, where texts start with bos. With a chat template: what it renders of
    the messages, a plain text being the user's one message, with its own special tokens.
    Raises: BadInput where the chat template refuses the messages.
    """
    return self.encode_prompts([text])[0]

  def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode_prompt` of many."""
    # A model needs a token to go on from; eos is what stands before a text that has no bos.
    empty = [self.eos if self.bos is None else self.bos]
    if self._chat:
      return [ids or empty for ids in self._encode_chats(list(map(_messages, texts)))]
    return [self.start + ids or empty for ids in self.encode_all(texts)]

  def encode_response(self, prompt: str, response: str) -> list[int]:
    """Ids of `response` as it stands after `prompt`, without eos.

    A space goes between them unless the prompt ends or the response starts with whitespace; after
    a chat template the one that the template itself puts there. Where no space goes between them
    the first id has none either, though SentencePiece files put one before every text.
    """
    return self.encode_responses([prompt], [response])[0]

  def encode_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
    """`encode_response` of many pairs."""
    texts = [self._after(*pair) for pair in zip(prompts, responses, strict=True)]
    if not self._prepends_space:
      return self.encode_all(texts)
    joined = [self._joins and text[:1] not in ('', ' ') for text in texts]
    return self._encode_joined([text if joins else text.removeprefix(' ')
                                for text, joins in zip(texts, joined, strict=True)], joined)

  def _encode_joined(self, texts: Sequence[str], joined: Sequence[bool]) -> list[list[int]]:
    """Ids of texts; those that are `joined` have no space put before them."""
    found = self.encode_all(texts)
    left = [place for place, joins in enumerate(joined) if joins]
    for mark in '\n\0':  # what is encoded after it has none; but it may be one token with a text
      before = self.encode(mark)
      marked = self.encode_all([mark + texts[place] for place in left])
      done = {place: ids[len(before):] for place, ids in zip(left, marked, strict=True)
              if ids[:len(before)] == before}
      for place, ids in done.items():
        found[place] = ids
      left = [place for place in left if place not in done]
    return found

  def render(self, prompt: str) -> str:
    """What `encode_prompt` encodes, special tokens written out."""
    return self._chat.render(_messages(prompt)) if self._chat else prompt

  def _encode_chats(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
    plain = [index for index, messages in enumerate(chats)
             if not any(self._specials.search(one['content']) for one in messages)]
    rendered = [self._chat.render(chats[index]) for index in plain]
    # The template has put bos where it belongs.
    encodings = self._with_specials.encode_batch_fast(rendered, add_special_tokens=False)
    found = {index: one.ids for index, one in zip(plain, encodings, strict=True)}
    for index, messages in enumerate(chats):
      if index not in found:
        hidden, letters = chat.guarded(messages, self._specials)
        found[index] = self._encode_pieces(self._chat.render(hidden), letters)
    return [found[index] for index in range(len(chats))]

  def _encode_pieces(self, rendered: str, letters: Mapping[str, str]) -> list[int]:
    """Ids of a rendered conversation, whose placeholders become letters and no special tokens."""
    tokens = {token.content: (index, token) for index, token in self._added.items()}
    *pieces, last = re.split(f'({self._specials.pattern})', rendered)
    texts, joined, after_each, before = [], [], [], None
    for text, name in zip([*pieces[::2], last], [*pieces[1::2], None], strict=True):
      index, after = tokens[name] if name else (None, None)
      text = text.lstrip() if before and before.rstrip else text
      text = text.rstrip() if after and after.lstrip else text
      for placeholder, written in letters.items():
        text = text.replace(placeholder, written)
      texts.append(text)
      joined.append(bool(before and text) and before.content in self._going_on)
      after_each.append([index] if name else [])
      before = after
    encoded = self._encode_joined(texts, joined)
    return [one for pair in zip(encoded, after_each, strict=True) for ids in pair for one in ids]

  @functools.cached_property
  def _going_on(self) -> frozenset[str]:
    """The special tokens behind which a text has no space put before it, as at a start it has."""
    anew, goes_on = self.encode('a'), self._with_specials.encode
    return frozenset(
      token.content for token in self._added.values() if self._prepends_space and
      goes_on(token.content + 'a', add_special_tokens=False).ids[1:] != anew)

  @functools.cached_property
  def _added(self) -> dict[int, tokenizers.AddedToken]:
    """The special tokens by id."""
    added = self._backend.get_added_tokens_decoder()
    return {index: token for index, token in added.items() if token.special}

  @functools.cached_property
  def _specials(self) -> re.Pattern:
    """Finds special tokens written out."""
    names = sorted((token.content for token in self._added.values()), key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, names)) or '(?!)')

  @functools.cached_property
  def _with_specials(self) -> tokenizers.Tokenizer:
    """The backend, but special tokens in a text become themselves."""
    return tokenizers.Tokenizer.from_str(self.json)

  def decode(self, ids: Sequence[int]) -> str:
    """Text up to the first end token, without special tokens and surrounding whitespace."""
    ids = list(map(int, ids))
    end = next((place for place, index in enumerate(ids) if index in self.ends), len(ids))
    return self.decode_prompt(ids[:end])

  def decode_prompt(self, ids: Sequence[int]) -> str:
    """All text, without special tokens and surrounding whitespace: end tokens part its turns."""
    kept = [index for index in map(int, ids) if index not in self._hidden]
    return self._backend.decode(kept, skip_special_tokens=True).strip()

  def _after(self, prompt: str, response: str) -> str:
    """The response with the space that goes before it."""
    if not response or response[:1].isspace():
      return response
    if self._chat:
      return self._between + response
    return response if prompt[-1:].isspace() else ' ' + response

  @functools.cached_property
  def _between(self) -> str:
    """The space that the chat template puts before what the assistant says, if it does."""
    return self._chat.between()

  @functools.cached_property
  def _joins(self) -> bool:
    """Whether a text has no space put before it where it goes on from what is before it.

    Not so where a chat template ends with a special token, if texts begin anew after those.
    """
    if not self._chat or not self._chat.start():
      return True
    start = self._chat.start()
    before, whole = (self._with_specials.encode(text, add_special_tokens=False).ids
                     for text in (start, start + 'a'))
    return whole[len(before):] != self.encode('a')

  def _starts_with_bos(self) -> bool:
    if self._given.add_bos is not None:
      if self._given.add_bos and self.bos is None:
        raise BadInput("tokenizer: field 'add_bos_token' is true, expected a bos_token; name it in "
                       'tokenizer_config.json')
      return self._given.add_bos
    if self._backend.post_processor is not None and self.bos is not None:
      return self._backend.encode('', add_special_tokens=True).ids[:1] == [self.bos]
    return self.bos not in (None, self.eos)

  def _named(self, field: str, name: str) -> int:
    index = self._backend.token_to_id(name)
    if index is None:
      raise BadInput(f'tokenizer: field {field!r}: expected a token of the vocabulary, found '
                     f'{name!r}; correct tokenizer_config.json')
    return index

  def _first(self, names: Sequence[str]) -> int | None:
    ids = (self._backend.token_to_id(name) for name in names)
    return next((index for index in ids if index is not None), None)


def _messages(prompt: str) -> Sequence[Mapping[str, str]]:
  """The messages of a prompt; a plain text is one of the user's."""
  return prompt.messages if isinstance(prompt, Chat) else ({'role': 'user', 'content': prompt},)
