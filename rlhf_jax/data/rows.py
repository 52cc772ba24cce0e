"""Tokens of records, and the fixed-size rows they are laid out in.

In: records with their origins, a tokenizer, limits. Out: token pieces a record, an account of what
was refused and cut, and numpy arrays [rows, …]. Left out: reading and splitting (sources.py), files
(builders.py). One layout: prompt left-padded in P, response right-padded in R, eos within R.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import Chat, Demonstration, Prompt, Ranking, Record
from rlhf_jax.data.tokenizer import Tokenizer

_NEEDS = {'text': ('length',), 'prompts': ('prompt_length', 'prompt_cut'),
          'demonstrations': ('prompt_length', 'response_length', 'prompt_cut'),
          'rankings': ('prompt_length', 'response_length', 'k_max', 'prompt_cut')}
_CUTS = ('refuse', 'head')
_ASKS = re.compile(r'[^\n]{1,24}:')  # the last line of a prompt that asks for the response
_SPEAKER = re.compile(r'\w+:')  # 'Human:', where a dialogue starts with it
_SENTENCE = re.compile(r'[.!?…]["\')\]”’]*(?=\s)|[。！？｡．]["\')\]”’」』）]*|\n')
# Scripts that write no spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff'
                       '\uf900-\ufaff\U00020000-\U0003ffff]')
_WORD = 100  # characters; what is longer is no word
_CHUNK = 1000  # texts that are encoded at a time


@dataclasses.dataclass(frozen=True)
class Limits:
  """Lengths in tokens, completions a prompt, and what becomes of prompts that are too long."""
  prompt_length: int = 0
  response_length: int = 0
  length: int = 0
  k_max: int = 0
  prompt_cut: str = 'refuse'

  def of(self, kind: str) -> 'Limits':
    """The limits that records of this kind have. Raises: BadInput where one makes no sense."""
    mine = {name: getattr(self, name) for name in _NEEDS[kind]}
    for name, value in mine.items():
      if name == 'prompt_cut':
        if value not in _CUTS:
          raise BadInput(f'prompt_cut: expected one of {", ".join(_CUTS)}, found {value!r}')
      elif value < (least := 1 if name == 'prompt_length' else 2):
        raise BadInput(f'{name}: expected at least {least} for {kind}, found {value}')
    return Limits(**mine)

  @classmethod
  def like(cls, config: Any) -> 'Limits':
    """Those of a run: its fields of the same names, and text_length."""
    names = {field.name: field.name for field in dataclasses.fields(cls)} | (
      {'length': 'text_length'} if hasattr(config, 'text_length') else {})
    return cls(**{mine: getattr(config, name) for mine, name in names.items()
                  if hasattr(config, name)})


@dataclasses.dataclass
class Pieces:
  """Records that fit (their prompts cut where asked), their tokens, and the account.

  A piece is, by kind: ids of a document; prompt ids; (prompt ids, response ids with eos);
  (prompt ids, [completion ids], [ranks]). Ids are int32 [length].
  """
  records: list[Record]
  places: list[int]  # of each in the records given, where its prompt is whole
  tokens: list[Any]
  refused: collections.Counter[str]
  cut: dict[str, dict[str, float]]  # 'prompts', 'completions' -> count, share of those read
  lengths: dict[str, dict[str, int]]  # quantiles in tokens before any limit
  removed: collections.Counter[str]  # completions taken out of rankings, by reason
  pairs: dict[str, int]  # of completions ranked unlike: 'read', 'equal_by_truncation'


def pieces(kind: str, records: Sequence[Record], origins: Sequence[tuple[str, int]],
           tokenizer: Tokenizer, limits: Limits, skip_bad_rows: bool) -> Pieces:
  """Tokens of the records that fit.

  A prompt that is too long, or a ranking of more than k_max, is a bad row: BadInput names its line,
  or it is counted under skip_bad_rows. A demonstration above R is refused and counted: half an
  answer teaches to stop in the middle. A completion above R is cut, as the policy's own would be.
  """
  out = _nothing()
  if kind == 'text':
    out.records, out.places = list(records), list(range(len(records)))
    out.tokens = _chunked(tokenizer.encode_all, [item.text for item in records])
    out.lengths['text'] = quantiles([len(ids) for ids in out.tokens])
    return out
  fitting = _prompts(records, origins, tokenizer, limits, skip_bad_rows, out)
  if kind == 'prompts':
    out.records, out.places, out.tokens = fitting
  elif kind == 'demonstrations':
    _demonstrations(*fitting, tokenizer, limits, out)
  else:
    _rankings(*fitting, tokenizer, limits, out)
  return out


def _nothing() -> Pieces:
  return Pieces([], [], [], collections.Counter(), {}, {}, collections.Counter(), {})


def fit_prompts(records: Sequence[Prompt | Demonstration | Ranking],
                origins: Sequence[tuple[str, int]], tokenizer: Tokenizer, limits: Limits,
                skip_bad_rows: bool) -> Pieces:
  """The records of any kind whose prompts fit, or do so after a cut; all else stays as it was."""
  out = _nothing()
  out.records, out.places, out.tokens = _prompts(
    records, origins, tokenizer, limits.of('prompts'), skip_bad_rows, out)
  return out


def _chunked(encode: Callable[..., list[list[int]]], *texts: Sequence[str]) -> list[np.ndarray]:
  """`encode` of texts, few at a time: Python lists of all ids take many times as much memory."""
  return [np.array(ids, np.int32) for start in range(0, len(texts[0]), _CHUNK)
          for ids in encode(*(column[start:start + _CHUNK] for column in texts))]


def _prompts(records, origins, tokenizer, limits, skip_bad_rows, out):
  """(records, their places, prompt ids) of those that fit, or do so after a cut."""
  refuse = _refuse(out, skip_bad_rows)
  found = _encoded(records, origins, tokenizer, refuse)
  out.lengths['prompt'] = quantiles([len(ids) for ids in found if len(ids)])
  fitting, places, prompts, cuts = [], [], [], 0
  for index, (record, ids, origin) in enumerate(zip(records, found, origins, strict=True)):
    if not len(ids):
      continue
    if isinstance(record, Ranking) and 0 < limits.k_max < len(record.completions):
      refuse(origin, 'more completions than k_max', f"field 'completions': expected at most "
             f'{limits.k_max}, found {len(record.completions)}; raise k_max')
      continue
    long = len(ids) > limits.prompt_length
    if long and limits.prompt_cut == 'head' and (
        shorter := cut(record.prompt, tokenizer, limits.prompt_length)):
      record, cuts = dataclasses.replace(record, prompt=shorter[0]), cuts + 1
      ids = np.array(shorter[1], np.int32)
    if len(ids) > limits.prompt_length:
      fix = ("and no sentence or word that could stay; raise prompt_length"
             if limits.prompt_cut == 'head' else "raise prompt_length or set prompt_cut to 'head'")
      refuse(origin, 'prompt too long', f"field 'prompt': expected at most {limits.prompt_length} "
             f'tokens, found {len(ids)}; {fix}')
      continue
    fitting.append(record)
    places.append(index)
    prompts.append(ids)
  out.cut['prompts'] = _share(cuts, len(records))
  return fitting, places, prompts


def _encoded(records, origins, tokenizer, refuse):
  """Prompt ids of each record; none where a chat template refuses its messages."""
  try:
    return _chunked(tokenizer.encode_prompts, [record.prompt for record in records])
  except BadInput:  # which record it is remains to be found
    found = []
  for record, origin in zip(records, origins, strict=True):
    try:
      found += _chunked(tokenizer.encode_prompts, [record.prompt])
    except BadInput as error:
      refuse(origin, 'refused by the chat template', f"field 'prompt': {error}")
      found.append(())
  return found


def _refuse(out, skip_bad_rows):
  def refuse(origin, reason, message):
    if not skip_bad_rows:
      raise BadInput(f'{origin[0]}:{origin[1]}: {message} (or --skip-bad-rows)')
    out.refused[reason] += 1
  return refuse


def _demonstrations(records: Sequence[Demonstration], places, prompts, tokenizer, limits,
                    out) -> None:
  found = _chunked(tokenizer.encode_responses, [record.prompt for record in records],
                   [record.response for record in records])
  out.lengths['response'] = quantiles([len(ids) + 1 for ids in found])
  for record, place, prompt, ids in zip(records, places, prompts, found, strict=True):
    if len(ids) + 1 > limits.response_length:
      out.refused['response too long'] += 1
      continue
    out.records.append(record)
    out.places.append(place)
    out.tokens.append((prompt, np.append(ids, np.int32(tokenizer.eos))))


def _rankings(records: Sequence[Ranking], places, prompts, tokenizer, limits, out) -> None:
  texts = [[record.completion(index) for index in range(len(record.completions))]
           for record in records]
  flat = [(record.prompt, text) for record, completions in zip(records, texts, strict=True)
          for text, _ in completions]
  found = _chunked(tokenizer.encode_responses, *zip(*flat, strict=True)) if flat else []
  out.lengths['response'] = quantiles([len(ids) + 1 for ids in found])
  ids_of, cuts = iter(found), 0
  out.pairs = {'read': 0, 'equal_by_truncation': 0}
  for record, place, prompt, completions in zip(records, places, prompts, texts, strict=True):
    kept: dict[tuple[int, ...], tuple[str, int]] = {}
    tokens, ranks, met = [], [], []
    for (text, ended), rank in zip(completions, record.ranks, strict=True):
      ids = next(ids_of).tolist()
      whole = ended and len(ids) < limits.response_length
      cuts += ended and not whole
      ids = (*ids, tokenizer.eos) if whole else tuple(ids[:limits.response_length])
      for earlier, its_text, its_rank in met:
        out.pairs['read'] += rank != its_rank
        out.pairs['equal_by_truncation'] += rank != its_rank and text != its_text and ids == earlier
      met.append((ids, text, rank))
      other, its_rank = kept.setdefault(ids, (text, rank))
      if not ids:
        out.removed['unfinished without a token'] += 1
      elif other != text:
        out.removed['equal by truncation'] += 1
      elif its_rank != rank:
        out.removed['equal, ranked differently'] += 1  # nothing in the text can tell them apart
      else:
        tokens.append(np.array(ids, np.int32))
        ranks.append(rank)
    if len(set(ranks)) < 2:
      out.refused['nothing left to compare'] += 1
      continue
    out.records.append(record)
    out.places.append(place)
    out.tokens.append((prompt, tokens, ranks))
  out.cut['completions'] = _share(cuts, len(found))


def cut(prompt: str, tokenizer: Tokenizer, limit: int) -> tuple[str, list[int]] | None:
  """The prompt within `limit` tokens and its ids; None where not even a word of it fits.

  A post keeps its head up to the last sentence that fits, and its last line where that asks for the
  response ('TL;DR:'). A dialogue loses its earliest turns: the last one is what is answered; a
  conversation keeps its system message.
  Source: Stiennon et al. 2020 cut posts at the last newline that fits, not in mid-sentence.
  """
  if isinstance(prompt, Chat):
    return _cut_chat(prompt, tokenizer, limit)
  if _SPEAKER.match(prompt.lstrip()):
    prompt = prompt.lstrip()  # published dialogues start with the blank line before a mark
  speaker = _SPEAKER.match(prompt)
  mark = '\n\n' + speaker.group() if speaker else None
  starts = [found.start() + 2 for found in re.finditer(re.escape(mark), prompt)] if mark else []
  if starts:
    if found := _first_that_fits(lambda turn: prompt[starts[turn]:], len(starts), tokenizer, limit):
      return found
    prompt = prompt[starts[-1]:]
  body = _body(prompt)
  tail = prompt[len(body):]
  return _shortened(body, lambda text: text + tail, tokenizer, limit)


def _body(prompt: str) -> str:
  """A prompt without its last line where that asks for the response: 'TL;DR:', 'Assistant:'."""
  before, newline, line = prompt.rstrip().rpartition('\n')
  return before.rstrip() if newline and _ASKS.fullmatch(line) else prompt


def _first_that_fits(whole: Callable[[int], str], count: int, tokenizer: Tokenizer,
                     limit: int) -> tuple[str, list[int]] | None:
  """The first of the prompts whole(0), …, whole(count - 1) that fits, and its ids; None: none does.

  Each has fewer tokens than the one before, so a few of them are tried: dialogues may be long.
  """
  low, high, found = 0, count, None
  while low < high:
    middle = (low + high) // 2
    shorter = whole(middle)
    if len(ids := tokenizer.encode_prompt(shorter)) <= limit:
      high, found = middle, (shorter, ids)
    else:
      low = middle + 1
  return found


def _cut_chat(prompt: Chat, tokenizer: Tokenizer, limit: int) -> tuple[str, list[int]] | None:
  """`cut` of a conversation, from one of the user's turns on; the last one keeps its head."""
  turns = list(itertools.dropwhile(lambda one: one['role'] == 'system', prompt.messages))
  system = prompt.messages[:len(prompt.messages) - len(turns)]
  starts = [index for index, one in enumerate(turns) if one['role'] == 'user']
  if found := _first_that_fits(lambda turn: Chat((*system, *turns[starts[turn + 1]:])),
                               len(starts) - 1, tokenizer, limit):
    return found
  if not starts:
    return None
  asked, *rest = turns[starts[-1]:]
  return _shortened(asked['content'], lambda text: Chat(
    (*system, {'role': 'user', 'content': text}, *rest)), tokenizer, limit)


def _shortened(body: str, whole: Callable[[str], str], tokenizer: Tokenizer,
               limit: int) -> tuple[str, list[int]] | None:
  """The prompt `whole(head of body)` that fits, and its ids."""
  room = limit - len(tokenizer.encode_prompt(whole('')))
  while room > 0:
    text = _head(body, len(tokenizer.head(body, room)))
    if not text:
      return None
    if len(ids := tokenizer.encode_prompt(whole(text))) <= limit:
      return whole(text), ids
    room -= len(ids) - limit
  return None


def _head(body: str, end: int) -> str:
  """body[:end] up to its last sentence, or up to its last word where that is less than half; all of
  it where there are no spaces between words.
  """
  if end < len(body):
    ends = [match.end() for match in _SENTENCE.finditer(body[:end + 1]) if match.end() <= end]
    word = max(0, *(body.rfind(space, 0, end + 1) for space in ' \n'))
    # No words to part: the last token that fits.
    word = end if end - word > _WORD or _UNSPACED.search(body, word, end) else word
    end = ends[-1] if ends and 2 * ends[-1] >= end else word
  return body[:end].rstrip()


def arrays(kind: str, tokens: Sequence[Any], tokenizer: Tokenizer,
           limits: Limits) -> dict[str, np.ndarray]:
  """Pieces as arrays [rows, …]; see builders.build for names, shapes and dtypes."""
  if kind == 'text':
    return _packed(tokens, tokenizer, limits.length)
  prompt_length, total = limits.prompt_length, limits.prompt_length + limits.response_length
  shape = ((len(tokens), limits.k_max, total) if kind == 'rankings' else (len(tokens), total))
  out = {'tokens': np.full(shape, tokenizer.pad, np.int32), 'valid': np.zeros(shape, bool),
         'mask': np.zeros(shape, bool)}

  def place(where, prompt, response):
    middle, end = prompt_length, prompt_length + len(response)
    out['tokens'][where][middle - len(prompt):middle] = prompt
    out['tokens'][where][middle:end] = response
    out['valid'][where][middle - len(prompt):end] = True
    out['mask'][where][middle:end] = True

  if kind == 'prompts':
    for row, prompt in enumerate(tokens):
      place(row, prompt, [])
    del out['mask']
  elif kind == 'demonstrations':
    for row, (prompt, response) in enumerate(tokens):
      place(row, prompt, response)
  else:
    out['ranks'] = np.zeros(shape[:2], np.int32)
    out['present'] = np.zeros(shape[:2], bool)
    for row, (prompt, completions, ranks) in enumerate(tokens):
      for index, completion in enumerate(completions):
        place((row, index), prompt, completion)
      out['ranks'][row, :len(ranks)] = ranks
      out['present'][row, :len(ranks)] = True
  return out


def _packed(documents: Sequence[np.ndarray], tokenizer: Tokenizer,
            length: int) -> dict[str, np.ndarray]:
  """Documents, each [bos] text [eos], one after the other in rows; only the last row is padded.

  Without bos where the tokenizer's texts start without one (tokenizer.py has the rule).

  The first token of a row has nothing before it that could predict it: `mask` leaves it out.
  """
  before, count = len(tokenizer.start), sum(map(len, documents))
  count += (before + 1) * len(documents)
  rows, start = -(-count // length), 0
  tokens = np.full(rows * length, tokenizer.pad, np.int32)
  for ids in documents:
    end = start + before + len(ids)
    tokens[start:start + before] = tokenizer.start
    tokens[start + before:end] = ids
    tokens[end] = tokenizer.eos
    start = end + 1
  valid = (np.arange(rows * length) < count).reshape(rows, length)
  mask = valid.copy()
  mask[:, 0] = False
  return {'tokens': tokens.reshape(rows, length), 'valid': valid, 'mask': mask}


def quantiles(lengths: Sequence[int]) -> dict[str, int]:
  """p50, p90, p99 and max, each a length that occurs."""
  if not lengths:
    return {}
  quantiles = np.percentile(lengths, [50, 90, 99, 100], method='higher')
  return dict(zip(('p50', 'p90', 'p99', 'max'), map(int, quantiles), strict=True))


def _share(count: int, total: int) -> dict[str, float]:
  return {'count': int(count), 'share': round(count / total, 4) if total else 0.0}

