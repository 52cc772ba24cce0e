"""Records: what is valid, what the message says otherwise, and how judges are named."""

import copy
import datetime
import json
import pickle

import numpy as np
import pytest

from rlhf_jax.configs import BadInput
from rlhf_jax.data import functions, records
from rlhf_jax.data.records import Chat, Demonstration, Prompt, Ranking, Refused, Text
from rlhf_jax.model import responses

MESSAGES = ({'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'},
            {'role': 'assistant', 'content': 'Hello'}, {'role': 'user', 'content': 'Why?'})
RANKING = {'prompt': 'p', 'completions': ['a', 'b', 'c'], 'ranks': [2, 1, 2]}


@pytest.mark.parametrize('record', [
  Text('a\nb'),
  Prompt('p'),
  Prompt('p', 'chat', 'c7', {'task': ['x', 1]}),
  Demonstration('p', 'r', customer='c'),
  Ranking('p', ('a', ''), (1, 2)),
  Ranking('p', ('a', 'b …'), (2, 1), 'ann', 'chat', 'c', {'k': 1}, (True, False)),
  Prompt(Chat(MESSAGES), meta={'k': 1}),
  Demonstration(Chat(MESSAGES, 'as the source writes it'), 'r'),
])
def test_a_record_survives_jsonl(record, tmp_path):
  path = tmp_path / 'x' / 'rows.jsonl'
  assert records.write_jsonl(path, [record, record]) == 2
  rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  again = [records.from_row(records.kind_of(record), row) for row in rows]
  assert again == [record, record]
  if isinstance(record, Prompt | Demonstration):
    assert getattr(again[0].prompt, 'messages', 0) == getattr(record.prompt, 'messages', 0)
  assert [file.name for file in path.parent.iterdir()] == ['rows.jsonl']


def test_a_conversation_is_text_to_read_and_messages_to_render():
  chat = Chat(MESSAGES)
  assert chat == ('System: Be brief.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?'
                  '\n\nAssistant:')
  assert chat.messages == MESSAGES
  for again in (pickle.loads(pickle.dumps(chat)), copy.deepcopy(chat)):
    assert type(again) is Chat and again == chat and again.messages == MESSAGES
  assert records.to_row(Prompt(chat, meta={'k': 1})) == {
    'prompt': str(chat), 'meta': {'k': 1, 'messages': list(MESSAGES)}}


def test_a_text_before_a_conversation_goes_into_the_first_question():
  for before in ('', 'Q: A: \n'):
    chat = before + Chat(MESSAGES)
    assert type(chat) is Chat and chat == before + str(Chat(MESSAGES))
    assert [one['content'] for one in chat.messages] == [
      'Be brief.', f'{before}Hi', 'Hello', 'Why?']


def test_a_judge_may_know_no_flags():
  assert records.Judgement((1.0, 2.0), (2, 1)).flags == ({}, {})
  assert records.Judgement((1.0,), (1,), ({'rude': True},)).flags == ({'rude': True},)


def test_the_mark_of_the_unfinished_is_the_one_that_models_write():
  assert records.UNFINISHED == responses.UNFINISHED


def test_empty_optional_fields_are_left_out():
  assert records.to_row(Prompt('p')) == {'prompt': 'p'}
  assert records.to_row(Ranking('p', ('a', 'b'), (1, 2))) == {
    'prompt': 'p', 'completions': ('a', 'b'), 'ranks': (1, 2)}


@pytest.mark.parametrize(('kind', 'row', 'reason', 'message'), [
  ('text', [], 'not an object', "expected a JSON object with 'text', found a list []"),
  ('text', {}, 'missing field', "field 'text': expected a text, found an empty object"),
  ('text', {'txet': 'a'}, 'missing field', "found only 'txet'; rename 'txet'"),
  ('text', {'text': None}, 'wrong type', "field 'text': expected a text, found null;"),
  ('text', {'text': ' \n'}, 'empty text', "field 'text': expected some text"),
  ('text', {'text': '\ud800'}, 'half a character', "field 'text': expected text that UTF-8"),
  ('prompts', {'prompt': 7}, 'wrong type', "'prompt': expected a text, found a whole number 7"),
  ('prompts', {'prompt': 'p', 'category': 3}, 'wrong type', "field 'category'"),
  ('prompts', {'prompt': 'p', 'meta': 'x'}, 'wrong type', "field 'meta': expected an object"),
  ('demonstrations', {'prompt': 'p'}, 'missing field', "field 'response'"),
  ('demonstrations', {'prompt': 'p', 'response': ''}, 'empty response', "field 'response'"),
  ('rankings', RANKING | {'ranks': [1, 2]}, 'ranks of the wrong length',
   "field 'ranks': expected 3 ranks, found 2; give one rank for each completion"),
  ('rankings', RANKING | {'ranks': [1, 1, 1]}, 'all ranks tied', "field 'ranks'"),
  ('rankings', RANKING | {'ranks': [0, 1, 2]}, 'ranks not positive', 'whole numbers from 1'),
  ('rankings', RANKING | {'ranks': [1, 2**31, 2]}, 'ranks too large',
   'ranks up to 2147483647, found'),
  ('rankings', RANKING | {'ranks': [1, True, 2]}, 'wrong type', "field 'ranks[1]'"),
  ('rankings', RANKING | {'ranks': [1, 2.0, 2]}, 'wrong type', 'found a number 2.0'),
  ('rankings', RANKING | {'ranks': '123'}, 'wrong type', 'expected a list, found a text "123"'),
  ('rankings', RANKING | {'completions': ['a', 2, 'c']}, 'wrong type', "field 'completions[1]'"),
  ('rankings', RANKING | {'completions': ['a'], 'ranks': [1]}, 'fewer than two completions',
   "field 'completions'"),
  ('rankings', RANKING | {'ended': [True]}, 'ended of the wrong length', "field 'ended'"),
  ('prompts', {'prompt': 'p', 'meta': {'messages': [{'role': 'user'}]}}, 'wrong type',
   "field 'meta.messages[0].content': expected a text, found null"),
  ('prompts', {'prompt': 'p', 'meta': {'id': 1, 'when': datetime.datetime(2024, 5, 6)}},
   'meta that is no JSON', "field 'meta.when': expected what JSON can hold, found datetime"),
  ('demonstrations', {'prompt': 'p', 'response': 'r', 'meta': {'day': [datetime.date(2024, 5, 6)]}},
   'meta that is no JSON', "field 'meta.day'"),
  ('rankings', RANKING | {'meta': {'raw': {'a': b'bytes'}}}, 'meta that is no JSON', "'meta.raw'"),
  ('prompts', {'prompt': 'p', 'meta': {'half': '\ud800'}}, 'meta that is no JSON', "'meta.half'"),
])
def test_bad_rows_are_refused_with_field_and_expectation(kind, row, reason, message):
  with pytest.raises(Refused) as error:
    records.from_row(kind, row)
  assert error.value.reason == reason
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_completions_lose_the_mark_of_the_unfinished():
  ranking = Ranking('p', ('done', 'cut …'), (1, 2))
  assert [ranking.completion(0), ranking.completion(1)] == [('done', True), ('cut', False)]
  said = Ranking('p', ('and so on …', 'cut'), (1, 2), ended=(True, False))
  assert [said.completion(0), said.completion(1)] == [('and so on …', True), ('cut', False)]


def test_judges_are_found_in_modules_and_files(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text('def gold(prompt, responses, labeler):\n  return 7\n')
  judge = records.load_judge(f'{file}:gold')
  assert judge(None, [], '') == 7
  assert records.load_judge(f'{file}:gold') is judge
  assert records.load_judge('json:dumps') is json.dumps


@pytest.mark.parametrize(('name', 'message'), [
  ('gold', 'expected module:function or file.py:function'),
  ('json:dump_s', 'did you mean dump'),
  ('no_such_module:gold', "no module 'no_such_module'"),
  ('json.nothing:gold', "no module 'json.nothing'"),
  ('nothing/there.py:gold', 'no file nothing/there.py'),
])
def test_a_wrong_judge_is_named_with_what_comes_near(name, message):
  with pytest.raises(BadInput, match='judge') as error:
    records.load_judge(name)
  assert message in str(error.value)


def test_a_failure_within_a_judges_module_is_not_called_a_wrong_name(tmp_path, monkeypatch):
  (tmp_path / 'broken_judge.py').write_text('import no_such_thing\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match='no_such_thing'):
    records.load_judge('broken_judge:gold')


@pytest.mark.parametrize(('text', 'message'), [
  ('x = (', "mine.py:1: SyntaxError: '(' was never closed"),
  ('\nimport no_such_thing', 'mine.py:2: ModuleNotFoundError'),
  ('import sys\nsys.exit(0)', 'mine.py:2: SystemExit: 0')])  # which would be a success
def test_a_file_that_cannot_be_executed_is_told_with_its_line(text, message, tmp_path):
  (tmp_path / 'mine.py').write_text(text)
  with pytest.raises(BadInput) as error:
    records.load_judge(f'{tmp_path}/mine.py:gold')
  assert message in str(error.value)


@pytest.mark.parametrize(('body', 'message'), [
  ('return mask', r'expected an array of shape \(2,\), .* found one of shape \(2, 3\)'),
  ('return mask.sum()', r'found one of shape \(\)'), ('pass', 'found None'),
  ('\n  return {}[7]', r'mine.py:3: KeyError: 7')])
def test_a_reward_function_gives_a_number_a_response(body, message, tmp_path):
  (tmp_path / 'mine.py').write_text(f'def score(tokens, valid, mask):\n  {body}\n')
  score, rows = functions.load_reward(f'{tmp_path}/mine.py:score'), np.ones((2, 3))
  with pytest.raises(BadInput, match="reward function '.*mine.py:score': .*" + message):
    score(rows, rows, rows)


def test_a_judge_gives_a_judgement():
  with pytest.raises(BadInput, match=r'expected a Judgement of scores and ranks, found a list \[1'):
    records.asked(lambda prompt, responses, labeler: [1, 2], Prompt('p'), ('a', 'b'), '')
