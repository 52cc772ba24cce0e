"""Files as users and publishers lay them out → validated records, each with its line.

In: a path and a kind of record. Out: (line, record) pairs and counts of what was read and refused.
Left out: which files belong to a source, how many of their records are taken (sources.py), tokens.

A bad row stops with `FILE:LINE: field 'ranks': expected …, found …; fix`, or is counted by reason
when the user asked to skip bad rows. What a source is known to hold, such as intransitive rankings,
is never an error: it is left out and counted. An empty completion of a ranking is no error either:
a model may end at once, and labelers have a view on that.
"""

import collections
import dataclasses
import gzip
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import (
  Demonstration,
  Prompt,
  Ranking,
  Record,
  Refused,
  Text,
  check,
  described,
  from_row,
  kind_of,
  show,
)

# Where the folders that experiments/ names below --data come from.
PUBLISHED: Mapping[str, str] = {
  'c4_wiki_demo': 'github.com/hiyouga/LLaMA-Factory, data/c4_demo.jsonl',
  'tinystories_sample': 'github.com/ToonTalk/jlens-tinystories, out/corpora/tinystories_1000.json',
  'tinyshakespeare': 'github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt',
  'self_instruct': 'github.com/yizhongw/self-instruct, data/seed_tasks.jsonl',
  'dolly_open_qa': 'github.com/prp-e/chinkara-openqa-dataset, chinkara-open_qa.jsonl',
  'hh_rlhf': 'github.com/anthropics/hh-rlhf, harmless-base and helpful-base, test.jsonl.gz',
  'openai_summarize_comparisons': 'github.com/openai/summarize-from-feedback, comparisons '
                                  '(some batches in github.com/redwoodresearch/mlab)',
}
_DIALOGUE = 'Human: {}\n\nAssistant:'  # hh_rlhf's layout, given to other dialogues too
_TURN = '\n\nAssistant:'


@dataclasses.dataclass
class Reading:
  """One file being read: where it is, and what was found in it."""
  path: pathlib.Path
  skip_bad_rows: bool = False
  rows: int = 0  # rows met, good or bad
  refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  sets: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  unit: str = ':'  # what comes between the path and the number of a row

  def refuse(self, line: int, error: Refused) -> None:
    """Counts a bad row, or raises BadInput that says where it is."""
    if not self.skip_bad_rows:
      raise BadInput(f'{self.path}{self.unit}{line}: {error} (or --skip-bad-rows)') from error
    self.refused[error.reason] += 1

  def leave_out(self, reason: str, rows: int = 1) -> None:
    """Counts rows that the source is known to hold and that no record can be made of."""
    self.refused[reason] += rows

  def lines(self) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. A line of other bytes than UTF-8 is a bad row.

    Raises: BadInput where the file is missing, holds nothing, or is no gzip although named .gz.
    """
    if not self.path.is_file():
      raise BadInput(f'{self.path}: expected a file, found '
                     f'{"a folder" if self.path.is_dir() else "nothing there"}')
    start = self.rows
    opened = gzip.open if self.path.suffix == '.gz' else open
    try:
      with opened(self.path, 'rb') as file:
        for number, raw in enumerate(file, 1):
          # Split at \n alone: JSON may hold U+2028 and other line ends of Unicode as they are.
          raw = raw.removeprefix(b'\xef\xbb\xbf') if number == 1 else raw
          if not raw.strip():
            continue
          self.rows += 1
          try:
            yield number, raw.decode('utf-8').rstrip('\r\n')
          except UnicodeDecodeError as error:
            self.refuse(number, Refused(
              'not UTF-8', '', 'UTF-8', f'byte 0x{raw[error.start]:02x} at byte {error.start + 1} '
              'of the line', 'save the file as UTF-8'))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise BadInput(f'{self.path}: expected gzip data, found {error}') from error
    if self.rows == start:
      raise BadInput(f'{self.path}: expected rows, found an empty file')

  def objects(self) -> Iterator[tuple[int, Any]]:
    """Numbered JSON values, one a line. A line that is no JSON is a bad row."""
    for number, line in self.lines():
      try:
        value = json.loads(line)
      except (ValueError, RecursionError) as error:
        self.refuse(number, Refused('not JSON', '', 'a JSON object', f'{error} in {show(line)}',
                                    'write one JSON object a line'))
        continue
      yield number, value

  def each(self, make: Callable[[Any], Iterable[Record]]) -> Iterator[tuple[int, Record]]:
    """The records that `make` finds in each JSON line; it raises Refused for a bad one."""
    for number, value in self.objects():
      try:
        made = list(make(value))
      except Refused as error:
        self.refuse(number, error)
        continue
      for record in made:
        yield number, record


Reader = Callable[[Reading, str], Iterator[tuple[int, Record]]]


def _jsonl(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """One JSON object a line with the fields of the record."""
  return reading.each(lambda value: [from_row(kind, value)])


def _json_list(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """One JSON list: of texts (or prompts), or of objects with the fields of the record."""
  text = '\n'.join(line for _, line in reading.lines())
  try:
    items = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise BadInput(f'{reading.path}: expected one JSON list, found {error}') from error
  if not isinstance(items, list):
    raise BadInput(f'{reading.path}: expected one JSON list, found {described(items)}')
  reading.rows, reading.unit = len(items), ': element '
  if not items:
    raise BadInput(f'{reading.path}: expected rows, found an empty list')
  for number, item in enumerate(items, 1):
    if isinstance(item, str) and kind in ('text', 'prompts'):
      item = {'text' if kind == 'text' else 'prompt': item}
    try:
      record = from_row(kind, item)
    except Refused as error:
      reading.refuse(number, error)
      continue
    yield number, record


def _plain(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Plain text; blank lines part the documents."""
  start, last, count, document = 0, 0, 0, []
  for number, line in itertools.chain(reading.lines(), [(0, '')]):
    if document and number != last + 1:
      yield start, Text('\n'.join(document))
      document, count = [], count + 1
    if number:
      start, last = start if document else number, number
      document.append(line)
  reading.rows = count + reading.refused.total()


def _self_instruct(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Self-instruct tasks (Wang et al., 2022): instruction, instances of input and output."""
  def make(row: Any) -> Iterator[Record]:
    instruction = _get(row, 'instruction', str)
    category = 'classification' if row.get('is_classification') is True else ''
    for index, instance in enumerate(_get(row, 'instances', list)):
      check(f'instances[{index}]', instance, dict)
      given = _get(instance, 'input', str, f'instances[{index}].')
      prompt = f'{instruction}\n\n{given}' if given.strip() else instruction
      response = _get(instance, 'output', str, f'instances[{index}].')
      yield from_row('demonstrations', {'prompt': prompt, 'response': response.strip(),
                                        'category': category})
  return reading.each(make)


def _dolly(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """{"text": "### Human: … ### Assistant: …"}, one question and its answer."""
  def make(row: Any) -> Iterator[Record]:
    text = _get(row, 'text', str)
    found = re.fullmatch(r'\s*### Human:(.*?)### Assistant:(.*)', text, re.DOTALL)
    if not found:
      raise Refused('not a dialogue', 'text', "'### Human: … ### Assistant: …'", show(text),
                    'write both marks')
    question, answer = (part.strip() for part in found.groups())
    if not question:
      raise Refused('empty prompt', 'text', "a question after '### Human:'", show(text),
                    'leave the row out')
    yield from_row('demonstrations', {'prompt': _DIALOGUE.format(question), 'response': answer})
  return reading.each(make)


def _hh_rlhf(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """{"chosen", "rejected"}: whole dialogues that differ in the last turn (Bai et al., 2022)."""
  def make(row: Any) -> Iterator[Record]:
    turns = {}
    for name in ('chosen', 'rejected'):
      text = _get(row, name, str)
      prompt, mark, response = text.rpartition(_TURN)
      if not mark:
        raise Refused('not a dialogue', name, f'a turn that starts with {show(_TURN)}', show(text),
                      'write the marks of both speakers')
      turns[name] = prompt.strip() + mark, response.strip()
    (prompt, chosen), (other, rejected) = turns.values()
    if prompt != other:
      reading.leave_out('no common prompt')
    elif chosen == rejected:
      reading.leave_out('equal completions')
    else:
      yield Ranking(prompt, (chosen, rejected), (1, 2))
  return reading.each(make)


def _openai_summarize(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Comparisons of two summaries of a post (Stiennon et al., 2020), put back together.

  A labeler who compared every two of K ≥ 3 summaries of a post gives one K-way ranking, unless
  the choices form a cycle; the pairs of an incomplete set stay rankings of two.
  """
  sets = collections.defaultdict(list)  # (post, labeler) -> [(line, prompt, winner, loser)]
  for number, value in reading.objects():
    try:
      post, labeler, *pair = _comparison(value)
    except Refused as error:
      reading.refuse(number, error)
      continue
    sets[post, labeler].append((number, *pair))
  for (_, labeler), pairs in sets.items():
    wins = {(winner, loser) for _, _, winner, loser in pairs}
    summaries = list(dict.fromkeys(itertools.chain.from_iterable(pair[2:] for pair in pairs)))
    line, prompt = pairs[0][:2]
    if _cyclic(wins):
      reading.sets['intransitive sets'] += 1
      reading.leave_out('intransitive set', len(pairs))
    elif len(summaries) > 2 and len(wins) == len(summaries) * (len(summaries) - 1) // 2:
      reading.sets[f'sets of {len(summaries)}'] += 1
      lost = collections.Counter(loser for _, loser in wins)
      yield line, Ranking(prompt, tuple(summaries), tuple(1 + lost[text] for text in summaries),
                          labeler)
    else:
      reading.sets['pairs'] += len(pairs)
      for line, prompt, winner, loser in pairs:
        yield line, Ranking(prompt, (winner, loser), (1, 2), labeler)


def _comparison(row: Any) -> tuple[str, str, str, str, str]:
  """(post id, labeler, prompt, better summary, worse summary) of one comparison."""
  info, summaries = _get(row, 'info', dict), _get(row, 'summaries', list)
  choice, labeler = _get(row, 'choice', int), _get(row, 'worker', str)
  if len(summaries) != 2:
    raise Refused('not two summaries', 'summaries', 'two summaries', str(len(summaries)),
                  'give each row one pair')
  if choice not in (0, 1):
    raise Refused('choice out of range', 'choice', '0 or 1', str(choice), 'name the better summary')
  texts = []
  for index, summary in enumerate(summaries):
    check(f'summaries[{index}]', summary, dict)
    texts.append(_get(summary, 'text', str, f'summaries[{index}].').strip())
  if texts[0] == texts[1]:
    raise Refused('equal completions', 'summaries', 'two different texts', show(texts[0]),
                  'leave the row out')
  body = 'article' if 'article' in info else 'post'
  text = _get(info, body, str, 'info.').strip()
  title = _get(info, 'title', str, 'info.').strip() if info.get('title') is not None else ''
  if not text:
    raise Refused('empty prompt', f'info.{body}', 'some text', '""', 'leave the row out')
  prompt = (f'TITLE: {title}\n\n' if title else '') + f'{body.upper()}: {text}\n\nTL;DR:'
  return _get(info, 'id', str, 'info.'), labeler, prompt, texts[choice], texts[1 - choice]


def _cyclic(wins: set[tuple[str, str]]) -> bool:
  """Whether (winner, loser) pairs contradict each other."""
  wins = set(wins)
  while wins:  # take away whoever is never beaten, until nobody is left or everybody is beaten
    rest = {pair for pair in wins if pair[0] in {loser for _, loser in wins}}
    if rest == wins:
      return True
    wins = rest
  return False


def _get(row: Any, name: str, wanted: type, inside: str = '') -> Any:
  """Field `name` of a JSON object, which must be a `wanted`. Raises: Refused."""
  check(inside.rstrip('.') or 'the row', row, dict)
  if name not in row:
    raise Refused('missing field', inside + name, 'this field', f'only {", ".join(map(repr, row))}',
                  'is the reader the right one?')
  check(inside + name, row[name], wanted)
  return row[name]


# Name of a layout -> the reader, and the kind of its records; None: whatever the source asks for.
READERS: Mapping[str, tuple[Reader, str | None]] = {
  'jsonl': (_jsonl, None),
  'json_list': (_json_list, None),
  'plain': (_plain, 'text'),
  'self_instruct': (_self_instruct, 'demonstrations'),
  'dolly': (_dolly, 'demonstrations'),
  'hh_rlhf': (_hh_rlhf, 'rankings'),
  'openai_summarize': (_openai_summarize, 'rankings'),
}


def read_file(path: pathlib.Path, reader: str, kind: str,
              skip_bad_rows: bool) -> tuple[list[tuple[int, Record]], Reading]:
  """All records of `kind` in a file, in order, each with its line; and the counts.

  Demonstrations and rankings also read as 'prompts': each prompt once.
  Raises: BadInput for a bad row (unless skipped), an empty file, a reader that has no such records.
  """
  read, native = READERS[reader]
  reading = Reading(path, skip_bad_rows)
  if native not in (None, kind) and (kind != 'prompts' or native == 'text'):
    raise BadInput(f'{path}: reader {reader!r} gives {native}, found a source of kind {kind!r}')
  records = list(read(reading, kind))
  if kind == 'prompts':
    records = _prompts(records)
  return records, reading


def _prompts(records: Sequence[tuple[int, Record]]) -> list[tuple[int, Record]]:
  """Prompts of demonstrations and rankings; those read as prompts stay as they are."""
  if all(kind_of(record) == 'prompts' for _, record in records):
    return list(records)
  prompts: dict[str, tuple[int, Prompt]] = {}
  for line, record in records:
    assert isinstance(record, (Demonstration, Ranking))
    prompts.setdefault(record.prompt, (line, Prompt(
      record.prompt, record.category, record.customer, record.meta)))
  return list(prompts.values())
