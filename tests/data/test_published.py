"""Published layouts as their Parquet and their rarer rows have them."""

import json

import pytest

from rlhf_jax.configs import BadInput
from rlhf_jax.data import readers
from rlhf_jax.data.records import Demonstration, Ranking


def read(path, rows, reader, kind):
  """(records, what was refused) of rows in a file."""
  path = path / 'a.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  found, reading = readers.read_file(path, reader, kind, False)
  return [record for _, record in found], dict(reading.refused)


@pytest.mark.parametrize(('info', 'prompt'), [
  ({'post': 'All of it.', 'title': 'Cake', 'article': None}, 'TITLE: Cake\n\nPOST: All of it.'),
  ({'post': None, 'title': None, 'article': 'News.'}, 'ARTICLE: News.')])
def test_a_summary_is_of_the_post_or_article_that_is_not_null(info, prompt, tmp_path):
  row = {'info': info, 'summaries': [{'text': ' a'}, {'text': ' b'}], 'choice': 1, 'worker': 'ann'}
  assert read(tmp_path, [row], 'openai_summarize', 'rankings')[0] == [
    Ranking(f'{prompt}\n\nTL;DR:', ('b', 'a'), (1, 2), 'ann')]


@pytest.mark.parametrize('names', [('input', 'output'), ('context', 'response')])
def test_an_instruction_may_have_a_null_input(names, tmp_path):
  rows = [{'instruction': 'Say', names[0]: None, names[1]: 'x'}]
  assert read(tmp_path, rows, 'alpaca', 'demonstrations')[0] == [Demonstration('Say', 'x')]


TWO = {'response_0': 'a', 'response_1': 'b', 'prompt': 'Hi'}
HISTORY = {'history': 'Hi', 'human_ref_A': 'a', 'human_ref_B': 'b'}
CONTEXT = {'context': [{'role': 'user', 'content': 'Hi'}], 'response1': 'a', 'response2': 'b'}


@pytest.mark.parametrize(('reader', 'row', 'field'), [
  ('shp', HISTORY | {'labels': 2}, 'labels'),
  ('shp', HISTORY | {'labels': True}, 'labels'),
  ('pku_saferlhf', TWO | {'better_response_id': -1}, 'better_response_id'),
  ('helpsteer3', CONTEXT | {'overall_preference': -100}, 'overall_preference'),
  ('helpsteer3', CONTEXT | {'overall_preference': None}, 'overall_preference')])
def test_a_label_that_is_none_of_the_publishers_is_neither_a_tie_nor_a_preference(
    reader, row, field, tmp_path):
  with pytest.raises(BadInput, match=rf"a\.jsonl:1: field '{field}': expected "):
    read(tmp_path, [row], reader, 'rankings')


def test_a_prompt_of_nectar_without_marks_is_no_system_message(tmp_path):
  row = {'prompt': 'Hi', 'answers': [{'answer': 'a', 'rank': 1}, {'answer': 'b', 'rank': 2}]}
  with pytest.raises(BadInput, match="field 'prompt': expected a turn that starts with 'Human:'"):
    read(tmp_path, [row], 'nectar', 'rankings')


def shared(*turns):
  return {'conversations': [{'from': speaker, 'value': text} for speaker, text in turns]}


@pytest.mark.parametrize('name', ['gpt', 'chatgpt', 'bing', 'bard', 'assistant'])
def test_every_name_that_sharegpt_has_for_an_assistant_is_one(name, tmp_path):
  rows = [shared(('user', 'Hi'), (name, 'Hello'), ('human', 'Why?'), (name, 'So.'))]
  (record,), refused = read(tmp_path, rows, 'sharegpt', 'demonstrations')
  assert [one['role'] for one in record.prompt.messages] == ['user', 'assistant', 'user']
  assert record.response == 'So.' and not refused


def test_a_speaker_that_sharegpt_does_not_have_is_named(tmp_path):
  rows = [shared(('human', 'Hi'), ('claude', 'Hello'))]
  with pytest.raises(BadInput, match=r"field 'conversations\[1\].from': .*found \"claude\""):
    read(tmp_path, rows, 'sharegpt', 'demonstrations')
