"""Forms of files: told by name and content, the same rows in each, refusals that say where."""

import datetime
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from rlhf_jax.configs import BadInput, Source
from rlhf_jax.data import builders, readers, sources
from rlhf_jax.data.records import Chat, Demonstration, Prompt, Ranking, Text
from rlhf_jax.data.sources import Place
from rlhf_jax.data.tokenizer import Tokenizer

ROWS = [{'prompt': f'ask {index}', 'completions': ['a', 'b', 'c'], 'ranks': [2, 1, 2],
         'labeler': 'ann', 'meta': {'n': index}} for index in range(3)]
RECORDS = [Ranking(f'ask {index}', ('a', 'b', 'c'), (2, 1, 2), 'ann', meta={'n': index})
           for index in range(3)]


def lines(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def parquet(path, rows, **options):
  pa.parquet.write_table(pa.Table.from_pylist(rows), path, **options)
  return path


def read(path, reader='', kind='rankings', skip=False):
  found, reading = readers.read_file(path, reader, kind, skip)
  return [record for _, record in found], reading


@pytest.mark.parametrize(('name', 'content'), [
  ('a.jsonl', lines(ROWS)),
  ('a.JSONL', lines(ROWS)),
  ('a.JSONL.GZ', gzip.compress(lines(ROWS), mtime=0)),
  ('a.jsonl.gz', gzip.compress(lines(ROWS), mtime=0)),
  ('a.json', lines(ROWS)),  # lines in spite of the name
  ('a.json', json.dumps(ROWS, indent=1).encode()),
  ('a.json', b'\xef\xbb\xbf \n' + json.dumps(ROWS).encode()),
  ('a.json.gz', gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
  ('rankings', lines(ROWS)),
])
def test_json_by_name_and_content(name, content, tmp_path):
  (tmp_path / name).write_bytes(content)
  records, reading = read(tmp_path / name)
  assert records == RECORDS and reading.rows == 3


@pytest.mark.parametrize('options', [{}, {'row_group_size': 1, 'compression': 'gzip'}])
def test_parquet_holds_the_same_rows(options, tmp_path):
  path = parquet(tmp_path / 'a.parquet', ROWS, **options)
  records, reading = read(path)
  assert records == RECORDS and reading.rows == 3
  assert read(path, 'parquet')[0] == RECORDS
  path.rename(tmp_path / 'train-00000-of-00001')
  assert read(tmp_path / 'train-00000-of-00001')[0] == RECORDS


def test_parquet_of_messages_with_columns_that_are_null(tmp_path):
  talk = [{'role': 'user', 'content': 'Hi', 'name': None}, {'role': 'assistant', 'content': 'Yes',
                                                           'name': None}]
  rows = [{'messages': talk, 'prompt': None, 'completion': None, 'category': None},
          {'messages': None, 'prompt': 'p', 'completion': 'c', 'category': 'chat'}]
  path = parquet(tmp_path / 'a.parquet', rows)
  records, _ = read(path, kind='demonstrations')
  assert records == [Demonstration(Chat(talk[:1]), 'Yes'), Demonstration('p', 'c', 'chat')]
  assert records[0].prompt.messages == ({'role': 'user', 'content': 'Hi'},)


def test_meta_of_parquet_has_messages_in_some_rows_alone(tmp_path):
  messages = [{'role': 'user', 'content': 'Hi'}]
  path = parquet(tmp_path / 'a.parquet', [
    {'prompt': 'p', 'meta': {'n': 1, 'messages': None}},
    {'prompt': 'Human: Hi\n\nAssistant:', 'meta': {'n': 2, 'messages': messages}}])
  plain, chat = read(path, kind='prompts')[0]
  assert plain == Prompt('p', meta={'n': 1}) and not isinstance(plain.prompt, Chat)
  assert list(chat.prompt.messages) == messages and chat.meta == {'n': 2}


def test_a_date_in_meta_is_a_bad_row(tmp_path):
  """No rankings, rows or cards of JSON could hold it, which would be found after all sampling."""
  when = datetime.datetime(2024, 5, 6)
  path = parquet(tmp_path / 'a.parquet', [{'prompt': 'p', 'meta': {'n': 1, 'when': None}},
                                          {'prompt': 'q', 'meta': {'n': 2, 'when': when}}])
  with pytest.raises(BadInput, match=r"a\.parquet: row 2: field 'meta\.when': expected what JSON"):
    read(path, kind='prompts')
  assert read(path, kind='prompts', skip=True)[1].refused == {'meta that is no JSON': 1}


def test_a_bad_row_of_parquet_is_named_or_counted(tmp_path):
  path = parquet(tmp_path / 'a.parquet', [*ROWS, ROWS[0] | {'ranks': [1, 2]}])
  with pytest.raises(BadInput, match=r"a\.parquet: row 4: field 'ranks': expected 3 ranks"):
    read(path)
  records, reading = read(path, skip=True)
  assert records == RECORDS and reading.refused == {'ranks of the wrong length': 1}
  floats = parquet(tmp_path / 'b.parquet', [ROWS[0] | {'ranks': [1.0, 2.0, 2.0]}])
  with pytest.raises(BadInput, match=r"row 1: field 'ranks\[0\]': expected a whole number"):
    read(floats)


@pytest.mark.parametrize(('name', 'content', 'message'), [
  ('a.parquet', b'', 'expected Parquet'),
  ('a.parquet', lines(ROWS), 'expected Parquet'),
  ('a.json', b'', 'found an empty file'),
  ('a.json', b'"text"', 'expected JSON lines, a JSON list, Parquet or text, found'),
  ('a.csv', b'prompt,response\n', 'expected JSON lines, a JSON list, Parquet or text, found'),
  ('a.json.gz', b'[]', 'expected gzip data'),
  ('a.json', b'[]', 'found an empty list'),
])
@pytest.mark.parametrize('skip', [False, True])
def test_a_file_of_no_known_form_stops(name, content, message, skip, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(BadInput, match=message) as error:
    read(tmp_path / name, skip=skip)
  assert name in str(error.value) and '\n' not in str(error.value)


def test_parquet_that_is_cut_or_without_rows(tmp_path):
  path = parquet(tmp_path / 'a.parquet', ROWS)
  path.write_bytes(path.read_bytes()[:-50])
  with pytest.raises(BadInput, match=r'a\.parquet: expected Parquet'):
    read(path)
  pa.parquet.write_table(pa.table({'text': pa.array([], pa.string())}), path)
  with pytest.raises(BadInput, match='expected rows, found a file without any'):
    read(path, kind='text')


def test_a_text_file_is_documents_parted_by_blank_lines(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('one\ntwo\n\n\nthree\n')
  assert read(path, kind='text')[0] == [Text('one\ntwo'), Text('three')]
  with pytest.raises(BadInput, match=r"a\.txt:1: field 'prompt': expected a row with {prompt"):
    read(path, kind='demonstrations')


def test_a_bad_line_of_a_text_file_does_not_part_its_document(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'one\ncaf\xe9\ntwo\n\n\xff\n\n\xe9\nthree\n')
  with pytest.raises(BadInput, match=r'a\.txt:2: expected UTF-8'):
    read(path, kind='text')
  found, reading = readers.read_file(path, '', 'text', True)
  assert found == [(1, Text('one\ntwo')), (8, Text('three'))]
  assert reading.rows == 5 and reading.refused == {'not UTF-8': 3}


def test_a_text_of_parquet_that_is_no_utf8_is_a_bad_row(tmp_path):
  content, ends = b'one\xff\xfetwo', np.array([0, 3, 5, 8], np.int32)
  texts = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(ends), pa.py_buffer(content)])
  pa.parquet.write_table(pa.table({'text': texts}), tmp_path / 'a.parquet')
  with pytest.raises(BadInput, match=r'a\.parquet: row 2: expected UTF-8'):
    read(tmp_path / 'a.parquet', kind='text')
  records, reading = read(tmp_path / 'a.parquet', kind='text', skip=True)
  assert records == [Text('one'), Text('two')]
  assert reading.rows == 3 and reading.refused == {'not UTF-8': 1}


def test_times_that_python_has_not_are_a_bad_row(tmp_path):
  pa.parquet.write_table(pa.table({
    'text': ['one', 'two'], 'at': pa.array([1, 1000], pa.timestamp('ns'))}), tmp_path / 'a.parquet')
  with pytest.raises(BadInput, match=r'row 1: expected values that Python has.*drop it'):
    read(tmp_path / 'a.parquet', kind='text')
  found, reading = read(tmp_path / 'a.parquet', kind='text', skip=True)
  assert found == [Text('two')] and reading.refused == {'no value of Python': 1}


def test_prompts_are_read_from_rankings_and_demonstrations(tmp_path):
  assert read(parquet(tmp_path / 'a.parquet', ROWS), kind='prompts')[0] == [
    Prompt(f'ask {index}', meta={'n': index}) for index in range(3)]
  (tmp_path / 'b.json').write_text('["one", {"prompt": "two", "response": "x"}]')
  assert read(tmp_path / 'b.json', kind='prompts')[0] == [Prompt('one'), Prompt('two')]


OWN = '''
import csv
def answers(path, kind, split):
  with open(path, newline='') as file:
    for row in csv.DictReader(file):
      if row['split'] == split:
        yield {'messages': [{'role': 'user', 'content': row['ask']},
                            {'role': 'assistant', 'content': row['say']}]}
def wrong(path, kind, split):
  yield {'prompt': 'a', 'response': 'b'}
  yield ('a', 'b')
def nothing(path, kind, split):
  return []
'''


@pytest.fixture
def own(tmp_path):
  (tmp_path / 'own.py').write_text(OWN)
  (tmp_path / 'a.csv').write_text('split,ask,say\ntrain,q1,a1\ntest,q2,a2\ntrain,q3,a3\n')
  return tmp_path


def test_a_reader_of_ones_own(own):
  source = Source('demonstrations', ('a.csv',), f'{own / "own.py"}:answers')
  found, card = sources.read((source,), Place(own / 'w', own))
  assert [(record.prompt.messages[0]['content'], record.response) for record in found] == [
    ('q1', 'a1'), ('q3', 'a3')]
  assert card['a.csv']['read'] == card['a.csv']['kept'] == 2
  test = Source('demonstrations', ('a.csv',), f'{own / "own.py"}:answers', split='test')
  assert [record.response for record in sources.read((test,), Place(own / 'w', own))[0]] == ['a2']


@pytest.mark.parametrize(('name', 'message'), [
  ('answer', 'did you mean answers'),
  ('wrong', r'a\.csv: row 2: expected a JSON object'),
  ('nothing', 'expected rows, found none by reader'),
])
def test_a_bad_reader_of_ones_own(name, message, own):
  source = Source('demonstrations', ('a.csv',), f'{own / "own.py"}:{name}')
  with pytest.raises(BadInput, match=message):
    sources.read((source,), Place(own / 'w', own))


def test_what_a_reader_depends_on_names_the_dataset(own):
  tokenizer, place = Tokenizer.train(['q'], 259), Place(own / 'w', own)

  def build(split='train'):
    source = Source('demonstrations', ('a.csv',), f'{own / "own.py"}:answers', split=split)
    builders.build((source,), tokenizer, place,
                   builders.Limits(prompt_length=40, response_length=8))
    return len(list((own / 'w' / 'data').iterdir()))

  assert (build(), build(), build('test')) == (1, 1, 2)
  (own / 'own.py').write_text(OWN + '# changed\n')
  assert build() == 3


def test_no_line_of_a_json_list_is_skipped(tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes(b'[{"prompt": "p", "chosen": "a",\n"rejected": "caf\xe9"}, {"prompt": "q",\n'
                   b'"chosen": "x", "rejected": "y"}]')  # without its line 2: p, x, y
  with pytest.raises(BadInput, match=r'a\.json:2: expected UTF-8, found other bytes in a list'):
    readers.read_file(path, '', 'rankings', True)
