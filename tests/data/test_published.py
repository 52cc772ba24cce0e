"""Published layouts as their Parquet and their rarer rows have them."""

import json

import pytest

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
