"""Text to ids and back: one interface over a byte-level BPE of our own and over any tokenizer.json.

In: text. Out: lists of ids without padding. Left out: chat templates, truncation and padding
(builders.py lays rows out).

Special tokens never come from text: a document that holds the letters '<|eos|>' is encoded as those
letters. Padding is never eos, and no code asks whether a token is padding: masks say so.
"""

import functools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rlhf_jax.configs import BadInput

PAD, BOS, EOS = '<|pad|>', '<|bos|>', '<|eos|>'
# How published tokenizer.json files call them, in the order they are looked for.
_PADS = (PAD, '<pad>', '[PAD]', '<|padding|>', '<unk>', '[UNK]')
_BOSES = (BOS, '<s>', '<bos>', '<|begin_of_text|>', '<|endoftext|>')
_EOSES = (EOS, '</s>', '<eos>', '<|eot_id|>', '<|im_end|>', '<|end_of_text|>', '<|endoftext|>')


class Tokenizer:
  """`pad`, `bos` (None where there is none), `eos`: ids. `vocabulary`: number of ids."""

  def __init__(self, backend: tokenizers.Tokenizer):
    """Wraps a `tokenizers` backend. Raises: BadInput where it has no token that ends a text."""
    self._backend = backend
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # '<|eos|>' in a text is seven letters, not its end
    self.vocabulary: int = backend.get_vocab_size(with_added_tokens=True)
    eos = self._first(_EOSES)
    if eos is None:
      raise BadInput(f'tokenizer: expected a token that ends a text, one of {", ".join(_EOSES)}; '
                     'found none')
    self.eos: int = eos
    self.bos: int | None = self._first(_BOSES)
    pad = self._first(_PADS)
    # Without a token of its own padding takes an id that the embedding table has and eos is not.
    self.pad: int = pad if pad is not None else int(eos == 0)
    self._hidden = {self.eos, self.bos} | ({self.pad} if pad is not None else set())
    # SentencePiece files put a space before every text by themselves.
    first = backend.encode('a', add_special_tokens=False).tokens[:1]
    self._prepends_space = first in (['▁'], ['▁a'])

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
    """Reads a tokenizer.json. Raises: BadInput where it is missing or is none."""
    path = pathlib.Path(path)
    if not path.is_file():
      raise BadInput(f'{path}: expected a tokenizer.json, found no such file')
    try:
      backend = tokenizers.Tokenizer.from_str(path.read_text(encoding='utf-8'))
    except Exception as error:  # the Rust side raises a bare Exception
      raise BadInput(f'{path}: expected a tokenizer.json of the tokenizers library, '
                     f'found {error}') from error
    return cls(backend)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes tokenizer.json, whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    with open(temporary, 'w', encoding='utf-8') as file:
      file.write(self.json)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)

  @functools.cached_property
  def json(self) -> str:
    """The file's content; equal tokenizers have equal JSON, so datasets are named by its hash."""
    return json.dumps(json.loads(self._backend.to_str()), ensure_ascii=False, indent=1)

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
    """[bos] + ids."""
    return self.encode_prompts([text])[0]

  def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode_prompt` of many."""
    start = [] if self.bos is None else [self.bos]
    return [start + ids for ids in self.encode_all(texts)]

  def encode_response(self, prompt: str, response: str) -> list[int]:
    """Ids of `response` as it stands after `prompt`, without eos.

    A space goes between them unless the prompt ends or the response starts with whitespace.
    """
    return self.encode_responses([prompt], [response])[0]

  def encode_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
    """`encode_response` of many pairs."""
    return self.encode_all([self._after(*pair) for pair in zip(prompts, responses, strict=True)])

  def decode(self, ids: Sequence[int]) -> str:
    """Text up to the first eos, without special tokens and surrounding whitespace."""
    kept = []
    for index in map(int, ids):
      if index == self.eos:
        break
      if index not in self._hidden:
        kept.append(index)
    return self._backend.decode(kept, skip_special_tokens=True).strip()

  def _after(self, prompt: str, response: str) -> str:
    if not response:
      return ''
    if self._prepends_space:
      return response.removeprefix(' ')
    return response if prompt[-1:].isspace() or response[:1].isspace() else ' ' + response

  def _first(self, names: Sequence[str]) -> int | None:
    ids = (self._backend.token_to_id(name) for name in names)
    return next((index for index in ids if index is not None), None)
