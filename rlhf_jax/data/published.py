"""Layouts of published data sets: one function each, and where experiments/ has its files from.

In: a file being read. Out: records, each with its line. Left out: layouts that need no function of
their own, hh_rlhf's among them (layouts.py). An empty completion of a ranking is no error: a model
may end at once, and labelers have a view on that.
"""

import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_jax.configs import BadInput
from rlhf_jax.data import comparisons, layouts, store
from rlhf_jax.data.files import LeftOut, Reading
from rlhf_jax.data.records import (
  ROLES,
  Ranking,
  Record,
  Refused,
  check,
  described,
  from_row,
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
  'mt_bench_votes': 'huggingface.co/datasets/lmsys/mt_bench_human_judgments, without the answers',
  'mt_bench_answers': 'github.com/lm-sys/FastChat, fastchat/llm_judge/data/mt_bench',
}
_ANSWERS = 'mt_bench_answers'


def self_instruct(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
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


def dolly(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
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
    prompt = layouts.chat(f'Human: {question}{layouts.TURN}')
    yield from_row('demonstrations', {'prompt': prompt, 'response': answer})
  return reading.each(make)


def hh_rlhf(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """{"chosen", "rejected"}: whole dialogues that differ in the last turn (Bai et al., 2022).

  The files name no labeler, so neither do the rankings.
  """
  return reading.each(lambda row: [layouts.record('rankings', {
    name: _get(row, name, str) for name in ('chosen', 'rejected')})])


def openai_summarize(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Comparisons of two summaries of a post (Stiennon et al., 2020), put back together."""
  return _put_back(reading, kind, reading.each(lambda row: [_comparison(row)]))


def _put_back(reading: Reading, kind: str,
              found: Iterator[tuple[int, Ranking]]) -> Iterator[tuple[int, Record]]:
  """Pairs put together; where prompts alone are asked for, nobody has to agree on anything."""
  return comparisons.put_back(reading, found) if kind == 'rankings' else found


def _comparison(row: Any) -> Ranking:
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
  body = 'article' if info.get('article') is not None else 'post'  # Parquet has both, one null
  text = _get(info, body, str, 'info.').strip()
  title = _get(info, 'title', str, 'info.').strip() if info.get('title') is not None else ''
  if not text:
    raise Refused('empty prompt', f'info.{body}', 'some text', '""', 'leave the row out')
  prompt = (f'TITLE: {title}\n\n' if title else '') + f'{body.upper()}: {text}\n\nTL;DR:'
  return Ranking(prompt, (texts[choice], texts[1 - choice]), (1, 2), labeler)


def nectar(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Seven answers ranked by GPT-4 (Zhu et al., 2023), the prompt marked as hh_rlhf's."""
  def make(row: Any) -> Iterator[Record]:
    given = _inside(row, 'answers')
    prompt = _get(row, 'prompt', str).strip().removesuffix(layouts.TURN) + layouts.TURN
    if '\n\nHuman:' not in f'\n\n{prompt}':  # all of it would be read as a system message
      raise Refused('not a dialogue', 'prompt', "a turn that starts with 'Human:'",
                    show(row['prompt']), 'write the marks of both speakers')
    yield _ranked(layouts.chat(prompt), [_get(one, 'answer', str, where) for where, one in given],
                  [-_number(one, 'rank', where) for where, one in given])
  return reading.each(make)


def ultrafeedback(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Four answers with GPT-4's marks (Cui et al., 2023), ordered by the mean over its aspects,
  which needs less correction than `overall_score` does.
  """
  def make(row: Any) -> Iterator[Record]:
    given = _inside(row, 'completions')
    yield _ranked(_get(row, 'instruction', str),
                  [_get(one, 'response', str, where) for where, one in given],
                  [_number(one, 'fine-grained_score', where) for where, one in given])
  return reading.each(make)


def shp(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Two comments under a post (Ethayarajh et al., 2022); label 1: A is preferred, 0: B."""
  return reading.each(lambda row: [_two(
    _get(row, 'history', str), [_get(row, f'human_ref_{one}', str) for one in 'AB'],
    {1: 1, 0: -1}[_one_of(row, 'labels', (0, 1))])])


def webgpt(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Two answers to a question, scored from −1 to 1 (Nakano et al., 2021)."""
  return reading.each(lambda row: [_two(
    _get(_get(row, 'question', dict), 'full_text', str, 'question.'),
    [_get(row, f'answer_{one}', str) for one in (0, 1)],
    _number(row, 'score_0') - _number(row, 'score_1'))])


def pku_saferlhf(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Two answers and which is the more helpful (Ji et al., 2023); safety is another label."""
  return reading.each(lambda row: [_two(
    _get(row, 'prompt', str), [_get(row, f'response_{one}', str) for one in (0, 1)],
    {0: 1, 1: -1}[_one_of(row, 'better_response_id', (0, 1))])])


def helpsteer3(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Two answers to a conversation (Wang et al., 2025): from −3, the first is much better, to 3."""
  return reading.each(lambda row: [_two(
    _get(row, 'context', list), [_get(row, f'response{one}', str) for one in (1, 2)],
    -_one_of(row, 'overall_preference', range(-3, 4)))])


def _two(prompt: Any, texts: Sequence[str], preference: float) -> Record:
  """A pair: above 0 the first is better, below 0 the second."""
  return _ranked(prompt, texts, [preference, 0])


def _ranked(prompt: Any, texts: Sequence[str], scores: Sequence[float]) -> Record:
  """A ranking by scores, higher is better; answers that say the same count once, by the best."""
  best: dict[str, float] = {}
  for text, score in zip(texts, scores, strict=True):
    best[text] = max(score, best.get(text, score))
  if len(best) < 2:
    raise LeftOut('equal completions')
  if len(set(best.values())) < 2:
    raise LeftOut('all ranks tied')
  ranks = [1 + sum(other > score for other in best.values()) for score in best.values()]
  return layouts.record('rankings', {'prompt': prompt, 'completions': list(best), 'ranks': ranks})


def _one_of(row: Any, name: str, values: Sequence[int]) -> int:
  """A field that is one of `values`; another is no tie but a mark of its own, as −100 for none."""
  value = _number(row, name)
  if value not in values:
    raise Refused(f'unknown {name}', name, ' or '.join(map(str, values)), show(value),
                  'leave the row out')
  return int(value)


def _inside(row: Any, name: str) -> list[tuple[str, Any]]:
  """('name[0].', first object), …: the objects of a list with what errors call them."""
  return [(f'{name}[{index}].', one) for index, one in enumerate(_get(row, name, list))]


def _number(row: Any, name: str, inside: str = '') -> float:
  """A field that is a number, whole or not. Raises: Refused."""
  check(inside.rstrip('.') or 'the row', row, dict)
  value = row.get(name)
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise Refused('wrong type', inside + name, 'a number', described(value), 'make it a number')
  return value


def alpaca(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """{"instruction", "input" or "context", "output" or "response"} (Taori et al., 2023; Dolly)."""
  def make(row: Any) -> Iterator[Record]:
    instruction = _get(row, 'instruction', str)
    given, answer = (next((name for name in names if row.get(name) is not None), names[0])
                     for names in (('input', 'context'), ('output', 'response')))
    more = _get(row, given, str).strip() if row.get(given) is not None else ''
    yield from_row('demonstrations', {
      'prompt': f'{instruction}\n\n{more}' if more else instruction,
      'response': _get(row, answer, str), 'category': row.get('category') or ''})
  return reading.each(make)


def sharegpt(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """{"conversations": [{"from": "human", "gpt" or "system", "value"}]}: the last answer answers
  what is before it. The published files name users and assistants in other ways, too.
  """
  roles = {**ROLES, 'tool': 'tool'}

  def make(row: Any) -> Iterator[Record]:
    turns = [(_get(one, 'from', str, where), _get(one, 'value', str, where))
             for where, one in _inside(row, 'conversations')]
    for index, (speaker, _) in enumerate(turns):
      if speaker not in roles:
        raise Refused('unknown speaker', f'conversations[{index}].from',
                      ' or '.join(map(repr, roles)), show(speaker), 'rename the speaker')
    messages = [{'role': roles[speaker], 'content': text} for speaker, text in turns]
    if messages and messages[-1]['role'] != 'assistant':
      raise LeftOut("the human's turn last")
    yield layouts.record('demonstrations', {'messages': messages})
  return reading.each(make)


def pairs(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Any rankings with 'labeler', pairs above all: those of one labeler and prompt put together.

  Ties, such as the ranks 1, 1, say which share a rank.
  """
  def make(row: Any) -> Iterator[Ranking]:
    ranking = layouts.record('rankings', row, tied=True)
    if not ranking.labeler:
      raise Refused('no labeler', 'labeler', 'the name of who compared', 'none',
                    'name the labeler of each row, or let the pairs stay pairs without this reader')
    yield ranking
  return _put_back(reading, kind, reading.each(make))


def mt_bench(reading: Reading, kind: str) -> Iterator[tuple[int, Record]]:
  """Votes on two models' answers (Zheng et al., 2023), put back together: the judge is the labeler.

  {"judge", "question_id", "turn", "model_a", "model_b", "winner": "model_a", "model_b", "tie" or
  "tie (…)"}. The questions and answers are in the folder mt_bench_answers beside that of the votes.
  Second turns are left out: each model's answers a conversation of its own there, and rankings have
  one prompt.
  """
  questions, given = _mt_bench_texts(reading.path)

  def make(row: Any) -> Iterator[Ranking]:
    number, turn = _get(row, 'question_id', int), _get(row, 'turn', int)
    models = [_get(row, name, str) for name in ('model_a', 'model_b')]
    judge, winner = _get(row, 'judge', str), _get(row, 'winner', str)
    if winner not in ('model_a', 'model_b', 'tie') and not winner.startswith('tie ('):
      raise Refused('unknown winner', 'winner', "'model_a', 'model_b', 'tie' or 'tie (…)'",
                    show(winner), 'correct the vote')
    if turn != 1:
      raise LeftOut('not of the first turn')
    if number not in questions or any((model, number) not in given for model in models):
      raise LeftOut('no question or answer')
    texts = tuple(given[model, number] for model in models)
    if texts[0] == texts[1]:
      raise LeftOut('equal completions')
    ranks = {'model_a': (1, 2), 'model_b': (2, 1)}.get(winner, (1, 1))
    prompt, category = questions[number]
    yield Ranking(prompt, texts, ranks, judge, category)
  return _put_back(reading, kind, reading.each(make))


def answers(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of questions and answers that the votes in `path` are about."""
  return sorted(_answers(path).glob('*.jsonl'))


def _answers(path: pathlib.Path) -> pathlib.Path:
  """The folder of questions and answers. A bare name has no folder of its own: '.'."""
  return (path.absolute() if store.is_local(path) else path).parent.parent / _ANSWERS


def _mt_bench_texts(path: pathlib.Path) -> tuple[dict[int, tuple[str, str]],
                                                 dict[tuple[str, int], str]]:
  """({question: (prompt, category)}, {(model, question): answer}), first turns."""
  questions, given = {}, {}
  files = answers(path)
  if not any(file.name == 'question.jsonl' for file in files):
    raise BadInput(f'{_answers(path)}: expected question.jsonl and a file of '
                   f'answers a model; published: {PUBLISHED[_ANSWERS]}')
  for file in files:
    for line, row in Reading(file).values():
      try:
        number = _get(row, 'question_id', int)
        if file.name == 'question.jsonl':
          questions[number] = _get(row, 'turns', list)[0], row.get('category') or ''
        else:
          turns = _get(row, 'choices', list)[0]['turns']
          given[_get(row, 'model_id', str), number] = turns[0].strip()
      except (Refused, LookupError, TypeError, AttributeError) as error:
        raise BadInput(f'{file}:{line}: expected a question or an answer of MT-bench, found '
                       f'{show(json.dumps(row))}') from error
  return questions, given


def _get(row: Any, name: str, wanted: type, inside: str = '') -> Any:
  """Field `name` of a JSON object, which must be a `wanted`. Raises: Refused."""
  check(inside.rstrip('.') or 'the row', row, dict)
  if name not in row:
    raise Refused('missing field', inside + name, 'this field', f'only {", ".join(map(repr, row))}',
                  'is the reader the right one?')
  check(inside + name, row[name], wanted)
  return row[name]
