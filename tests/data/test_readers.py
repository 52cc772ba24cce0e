"""Readers: every layout from a small file, every refusal with its line, every count."""

import gzip
import itertools
import json
import pathlib

import pytest

from rlhf_jax import __main__
from rlhf_jax.configs import BadInput
from rlhf_jax.data import layouts, readers
from rlhf_jax.data.records import Demonstration, Prompt, Ranking, Refused, Text


def write(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return path


def read(path, reader, kind, skip=False):
  found, reading = readers.read_file(path, reader, kind, skip)
  return [record for _, record in found], reading


def test_jsonl_plain_and_compressed_are_the_same(tmp_path):
  plain = write(tmp_path / 'a.jsonl', {'text': 'one'}, {'text': 'zwei\u2028drei'})
  packed = tmp_path / 'a.jsonl.gz'
  packed.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
  assert read(plain, 'jsonl', 'text')[0] == [Text('one'), Text('zwei\u2028drei')]
  assert read(packed, 'jsonl', 'text')[0] == read(plain, 'jsonl', 'text')[0]


def test_byte_order_mark_blank_lines_and_crlf_are_no_rows(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "two"}')
  records, reading = read(path, 'jsonl', 'text')
  assert records == [Text('one'), Text('two')] and reading.rows == 2
  assert [line for line, _ in readers.read_file(path, 'jsonl', 'text', False)[0]] == [1, 4]


BAD_LINES = [
  (b'{"text": "caf\xe9"}', 'not UTF-8', 'expected UTF-8, found byte 0xe9 at byte 14 of the line'),
  (b'{"text": "a"', 'not JSON', 'expected a JSON object'),
  (b'[' * 100000, 'not JSON', 'expected a JSON object'),
  (b'"a"', 'not an object', 'expected a JSON object'),
  (b'{"txt": "a"}', 'missing field', "field 'text': expected a row with {text}, found only 'txt'"),
  (b'{"text": 5}', 'wrong type', "field 'text': expected a text, found a whole number 5"),
  (b'{"text": ""}', 'empty text', "field 'text': expected some text"),
]


@pytest.mark.parametrize(('line', 'reason', 'message'), BAD_LINES)
def test_a_bad_row_stops_or_is_counted(line, reason, message, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
  with pytest.raises(BadInput) as error:
    read(path, 'jsonl', 'text')
  assert str(error.value).startswith(f'{path}:2: ')
  assert message in str(error.value)
  assert str(error.value).endswith('(or --skip-bad-rows)') and '\n' not in str(error.value)
  records, reading = read(path, 'jsonl', 'text', skip=True)
  assert records == [Text('one'), Text('two')]
  assert reading.refused == {reason: 1} and reading.rows == 3


@pytest.mark.parametrize('skip', [False, True])
@pytest.mark.parametrize(('name', 'content', 'message'), [
  ('a.jsonl', b'', 'expected rows, found an empty file'),
  ('a.jsonl', b'\n \n', 'expected rows, found an empty file'),
  ('a.jsonl.gz', b'', 'found an empty file'),
  ('a.jsonl.gz', b'{"text": "a"}', 'expected gzip data'),
  ('a.jsonl.gz', gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:40], 'expected gzip data'),
  ('a.jsonl', None, 'expected a file, found nothing there'),
])
def test_a_bad_file_stops_even_when_bad_rows_are_skipped(name, content, message, skip, tmp_path):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(BadInput, match=message) as error:
    read(tmp_path / name, 'jsonl', 'text', skip)
  assert name in str(error.value)


def test_json_list_of_texts_or_objects(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(['one', {'text': 'two'}, 3], indent=1))
  with pytest.raises(BadInput, match='json: element 3: expected a JSON object'):
    read(path, 'json_list', 'text')
  records, reading = read(path, 'json_list', 'text', skip=True)
  assert records == [Text('one'), Text('two')]
  assert (reading.rows, reading.refused) == (3, {'not an object': 1})
  path.write_text('["what?"]')
  assert read(path, 'json_list', 'prompts')[0] == [Prompt('what?')]


@pytest.mark.parametrize('content', ['{"text": "a"}', '[]', '["a"', '{'])
def test_json_list_wants_a_list(content, tmp_path):
  (tmp_path / 'a.json').write_text(content)
  with pytest.raises(BadInput, match='expected'):
    read(tmp_path / 'a.json', 'json_list', 'text')


def test_blank_lines_part_plain_text(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('\nfirst line\n  second\n\n \nanother\n')
  found, reading = readers.read_file(path, 'plain', 'text', False)
  assert found == [(2, Text('first line\n  second')), (6, Text('another'))]
  assert reading.rows == 2


def test_self_instruct(tmp_path):
  path = write(
    tmp_path / 'a.jsonl',
    {'instruction': 'Say it.', 'is_classification': False,
     'instances': [{'input': '', 'output': 'It.\n'}, {'input': 'twice', 'output': 'It, it.'}]},
    {'instruction': 'Sort.', 'is_classification': True,
     'instances': [{'input': 'b a', 'output': 'a b'}]})
  records, reading = read(path, 'self_instruct', 'demonstrations')
  assert records == [Demonstration('Say it.', 'It.'), Demonstration('Say it.\n\ntwice', 'It, it.'),
                     Demonstration('Sort.\n\nb a', 'a b', 'classification')]
  assert reading.rows == 2
  assert read(path, 'self_instruct', 'prompts')[0][2] == Prompt('Sort.\n\nb a', 'classification')


def test_dolly(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'text': '### Human: Why?\nTell me. ### Assistant: So. '})
  assert read(path, 'dolly', 'demonstrations')[0] == [
    Demonstration('Human: Why?\nTell me.\n\nAssistant:', 'So.')]


def test_hh_rlhf(tmp_path):
  start = '\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:'
  path = write(
    tmp_path / 'a.jsonl',
    {'chosen': f'{start} good ', 'rejected': f'{start} bad'},
    {'chosen': f'{start} good', 'rejected': '\n\nHuman: other\n\nAssistant: bad'},
    {'chosen': f'{start} same', 'rejected': f'{start} same'},
    {'chosen': f'{start} good', 'rejected': f'{start}'})
  records, reading = read(path, 'hh_rlhf', 'rankings')
  assert records == [Ranking(start.strip(), ('good', 'bad'), (1, 2)),
                     Ranking(start.strip(), ('good', ''), (1, 2))]
  assert reading.refused == {'no common prompt': 1, 'equal completions': 1}
  assert read(path, 'hh_rlhf', 'prompts')[0] == [Prompt(start.strip())]


def comparison(better, worse, labeler='ann', post='t1', choice=0):
  pair = [{'text': f' {better}'}, {'text': f' {worse}'}]
  return {'info': {'id': post, 'post': f'post {post}', 'title': 'T'}, 'choice': choice,
          'summaries': pair if choice == 0 else pair[::-1], 'worker': labeler}


PROMPT = 'TITLE: T\n\nPOST: post t1\n\nTL;DR:'


def test_the_pairs_of_one_labeler_become_one_ranking(tmp_path):
  order = ['c', 'a', 'd', 'b']  # best first
  pairs = [comparison(*sorted(pair, key=order.index), choice=index % 2)
           for index, pair in enumerate(itertools.combinations('abcd', 2))]
  other = [comparison('b', 'a', 'bob')]  # the same post, seen by somebody else
  path = write(tmp_path / 'a.jsonl', *pairs[:3], *other, *pairs[3:])
  records, reading = read(path, 'openai_summarize', 'rankings')
  assert len(records) == 2
  ranking = records[0]
  assert ranking.prompt == PROMPT and ranking.labeler == 'ann'
  assert dict(zip(ranking.ranks, ranking.completions, strict=True)) == dict(enumerate(order, 1))
  assert records[1] == Ranking(PROMPT, ('b', 'a'), (1, 2), 'bob')
  assert reading.sets == {'sets of 4': 1, 'pairs': 1} and reading.rows == 7
  assert read(path, 'openai_summarize', 'prompts')[0] == [Prompt(PROMPT)]


@pytest.mark.parametrize('pairs', [
  ['ab', 'bc', 'ca'],
  ['ab', 'ac', 'ad', 'bc', 'cd', 'db'],
  ['ab', 'ba'],
])
def test_intransitive_sets_are_left_out_and_counted(pairs, tmp_path):
  path = write(tmp_path / 'a.jsonl', *[comparison(*pair) for pair in pairs],
               comparison('x', 'y', post='t2'))
  records, reading = read(path, 'openai_summarize', 'rankings')
  assert [record.completions for record in records] == [('x', 'y')]
  assert reading.sets['intransitive sets'] == 1
  assert reading.refused == {'intransitive set': len(pairs)}


def test_prompts_of_intransitive_sets_are_prompts(tmp_path):
  path = write(tmp_path / 'a.jsonl', *[comparison(*pair) for pair in ('ab', 'bc', 'ca')],
               comparison('x', 'y', post='t2'))
  prompts, reading = read(path, 'openai_summarize', 'prompts')
  assert [record.prompt for record in prompts] == [PROMPT, PROMPT.replace('t1', 't2')]
  assert reading.rows == 4 and not reading.refused and not reading.sets
  pairs = [{'prompt': 'p', 'chosen': a, 'rejected': b, 'labeler': 'ann'} for a, b in ('ab', 'ba')]
  assert read(write(tmp_path / 'b.jsonl', *pairs), 'pairs', 'prompts')[0] == [Prompt('p')]


def test_an_incomplete_set_stays_pairs(tmp_path):
  path = write(tmp_path / 'a.jsonl', *[comparison(*pair) for pair in ('ab', 'cb', 'cd')])
  records, reading = read(path, 'openai_summarize', 'rankings')
  assert [record.completions for record in records] == [('a', 'b'), ('c', 'b'), ('c', 'd')]
  assert reading.sets == {'pairs': 3}


def test_news_articles_are_read_like_posts(tmp_path):
  row = comparison('a', 'b')
  row['info'] = {'id': '5', 'article': 'news', 'title': None}
  assert read(write(tmp_path / 'a.jsonl', row), 'openai_summarize', 'rankings')[0][0].prompt == (
    'ARTICLE: news\n\nTL;DR:')


def without(row, *names):
  return {name: value for name, value in row.items() if name not in names}


TASK = {'instruction': 'a', 'instances': [{'input': '', 'output': 'b'}]}
QUESTION = {'text': '### Human: a ### Assistant: b'}
DIALOGUES = {'chosen': 'Human: a\n\nAssistant: b', 'rejected': 'Human: a\n\nAssistant: c'}
PAIR = comparison('a', 'b')


@pytest.mark.parametrize(('reader', 'kind', 'good', 'bad', 'field'), [
  ('self_instruct', 'demonstrations', TASK,
   {'instruction': 'a', 'instances': [{'input': ''}]}, 'instances[0].output'),
  ('self_instruct', 'demonstrations', TASK,
   {'instances': []}, 'instruction'),
  ('dolly', 'demonstrations', QUESTION, {'text': 'a'}, 'text'),
  ('dolly', 'demonstrations', QUESTION,
   {'text': '### Human: a ### Assistant: '}, 'response'),
  ('dolly', 'demonstrations', QUESTION,
   {'text': '### Human: ### Assistant: b'}, 'text'),
  ('hh_rlhf', 'rankings', DIALOGUES,
   {'chosen': 'Human: a\n\nAssistant: b'}, 'rejected'),
  ('hh_rlhf', 'rankings', DIALOGUES,
   {'chosen': 'b', 'rejected': 'c'}, 'chosen'),
  ('openai_summarize', 'rankings', PAIR, PAIR | {'choice': 2}, 'choice'),
  ('openai_summarize', 'rankings', PAIR, without(PAIR, 'worker'), 'worker'),
  ('openai_summarize', 'rankings', PAIR, comparison('a', 'a'), 'summaries'),
  ('openai_summarize', 'rankings', PAIR, PAIR | {'summaries': []}, 'summaries'),
  ('openai_summarize', 'rankings', PAIR,
   PAIR | {'info': {'id': '1', 'post': ''}}, 'info.post'),
])
def test_bad_rows_of_published_layouts_name_their_field(reader, kind, good, bad, field, tmp_path):
  path = write(tmp_path / 'a.jsonl', good, bad)
  with pytest.raises(BadInput) as error:
    read(path, reader, kind)
  assert str(error.value).startswith(f"{path}:2: field '{field}': expected ")
  records, reading = read(path, reader, kind, skip=True)
  assert len(records) == 1 and reading.refused.total() == 1 and reading.rows == 2


def test_a_reader_of_another_kind_is_refused(tmp_path):
  path = write(tmp_path / 'a.jsonl', {'text': '### Human: a ### Assistant: b'})
  with pytest.raises(BadInput, match="'dolly' gives demonstrations, found a source of kind 'text'"):
    read(path, 'dolly', 'text')
  with pytest.raises(BadInput, match="'plain' gives text"):
    read(path, 'plain', 'prompts')


VOTE = {'judge': 'expert_1', 'model_a': 'm1', 'model_b': 'm2', 'question_id': 81, 'turn': 1,
        'winner': 'model_a'}


@pytest.fixture
def votes(tmp_path):
  """A function that writes votes on four models' answers to two questions."""
  answers = tmp_path / 'mt_bench_answers'
  answers.mkdir()
  write(answers / 'question.jsonl',
        {'question_id': 81, 'category': 'writing', 'turns': ['Write.', 'Rewrite.']},
        {'question_id': 82, 'category': 'math', 'turns': ['Count.', 'Again.']})
  for name, text in (('m1', 'one'), ('m2', 'two'), ('m3', 'three'), ('m4', 'two')):
    write(answers / f'{name}.jsonl', *[
      {'question_id': number, 'model_id': name, 'choices': [{'index': 0, 'turns': [
        f' {text} {number}', 'second']}]} for number in ((81,) if name == 'm3' else (81, 82))])
  (tmp_path / 'mt_bench_votes').mkdir()
  return lambda *rows: write(tmp_path / 'mt_bench_votes' / 'human.jsonl', *rows)


def test_votes_by_judge_over_model_answers(votes):
  path = votes(
    VOTE, VOTE | {'model_a': 'm3', 'winner': 'tie'},  # m1 > m2 = m3
    VOTE | {'judge': 'expert_2', 'winner': 'model_b'},
    VOTE | {'judge': 'expert_3', 'question_id': 82, 'winner': 'tie (bothbad)'},
    VOTE | {'turn': 2}, VOTE | {'model_b': 'm3', 'question_id': 82}, VOTE | {'model_b': 'gpt-7'},
    VOTE | {'model_a': 'm4', 'winner': 'tie (inconsistent)'})
  records, reading = read(path, 'mt_bench', 'rankings')
  assert records == [
    Ranking('Write.', ('one 81', 'two 81', 'three 81'), (1, 2, 2), 'expert_1', 'writing'),
    Ranking('Write.', ('one 81', 'two 81'), (2, 1), 'expert_2', 'writing')]
  assert reading.rows == 8 and reading.sets == {'sets of 3': 1, 'pairs': 1}
  assert reading.refused == {'all ranks tied': 1, 'not of the first turn': 1,
                             'no question or answer': 2, 'equal completions': 1}
  assert read(path, 'mt_bench', 'prompts')[0] == [
    Prompt('Write.', 'writing'), Prompt('Count.', 'math')]  # whose only vote is a tie


def test_the_answers_belong_to_what_a_dataset_is_made_of(votes):
  path = votes(VOTE)
  assert [file.name for file in readers.beside(path, 'mt_bench')] == [
    'm1.jsonl', 'm2.jsonl', 'm3.jsonl', 'm4.jsonl', 'question.jsonl']
  assert readers.beside(path, '') == []


def test_votes_may_be_named_from_within_their_folder(votes, monkeypatch):
  path = votes(VOTE)
  monkeypatch.chdir(path.parent)
  bare = pathlib.Path(path.name)
  assert read(bare, 'mt_bench', 'rankings')[0] == read(path, 'mt_bench', 'rankings')[0]
  assert readers.beside(bare, 'mt_bench') == readers.beside(path, 'mt_bench')


def test_votes_without_their_answers(votes, tmp_path):
  path = votes(VOTE)
  (tmp_path / 'mt_bench_answers' / 'm1.jsonl').write_text('{"question_id": 81, "choices": []}\n')
  with pytest.raises(BadInput, match=r'm1\.jsonl:1: expected a question or an answer of MT-bench'):
    read(path, 'mt_bench', 'rankings')
  (tmp_path / 'mt_bench_answers' / 'question.jsonl').unlink()
  with pytest.raises(BadInput, match=r'mt_bench_answers: expected question\.jsonl'):
    read(path, 'mt_bench', 'rankings')


def test_pairs_of_any_layout_are_put_back_by_labeler(tmp_path):
  def pair(chosen, rejected, **more):
    return {'prompt': 'p', 'chosen': chosen, 'rejected': rejected, 'labeler': 'ann'} | more
  path = write(tmp_path / 'a.jsonl', pair('a', 'b'), pair('c', 'b', labeler='bob'), pair('b', 'c'),
               pair('d', 'a', category='chat'), {'prompt': 'q', 'completions': ['x', 'y', 'z'],
                                                 'ranks': [3, 1, 2], 'labeler': 'ann'})
  records, reading = read(path, 'pairs', 'rankings')
  assert records == [Ranking('p', ('a', 'b', 'c', 'd'), (2, 3, 4, 1), 'ann'),
                     Ranking('p', ('c', 'b'), (1, 2), 'bob'),
                     Ranking('q', ('x', 'y', 'z'), (3, 1, 2), 'ann')]
  assert reading.sets == {'sets of 4': 1, 'pairs': 1, 'sets of 3': 1}
  path = write(tmp_path / 'b.jsonl', {'prompt': 'p', 'chosen': 'a', 'rejected': 'b'})
  with pytest.raises(BadInput, match=r"b\.jsonl:1: field 'labeler': expected the name"):
    read(path, 'pairs', 'rankings')


def test_pairs_may_be_tied(tmp_path):
  def pair(first, second, ranks, **more):
    return {'prompt': 'p', 'completions': [first, second], 'ranks': ranks, 'labeler': 'ann'} | more
  path = write(tmp_path / 'a.jsonl', pair('a', 'b', [1, 1]), pair('b', 'c', [1, 2]),
               pair('a', 'b', [1, 1], labeler='bob'), pair('x', 'y', [2, 2], prompt='q'))
  records, reading = read(path, 'pairs', 'rankings')
  assert records == [Ranking('p', ('a', 'b', 'c'), (1, 1, 2), 'ann')]
  assert reading.refused == {'all ranks tied': 2} and reading.sets == {'sets of 3': 1}
  assert read(path, 'pairs', 'prompts')[0] == [Prompt('p'), Prompt('q')]
  with pytest.raises(BadInput, match='at least two different ranks'):  # what nobody puts together
    read(path, 'jsonl', 'rankings')


def test_the_help_of_data_names_every_reader(capsys):
  with pytest.raises(SystemExit):
    __main__.main(['data', '--help'])
  told = capsys.readouterr().out.replace(',', ' ').split()
  assert {name for name in readers.READERS if name} <= {*told}


HELLO = [{'role': 'user', 'content': 'Hi'}]
PUBLISHED = [
  ('nectar', {'prompt': '\n\nHuman: Hi \n\nAssistant: ', 'answers': [
    {'answer': 'worst', 'rank': 7.0}, {'answer': 'best', 'rank': 1.0},
    {'answer': 'so', 'rank': 3.0}, {'answer': 'best', 'rank': 6.0}]},
   ('worst', 'best', 'so'), (3, 1, 2)),
  ('ultrafeedback', {'instruction': 'Hi', 'completions': [
    {'response': 'a', 'fine-grained_score': 3.25, 'overall_score': 9.0},
    {'response': 'b', 'fine-grained_score': 4.5, 'overall_score': 1.0},
    {'response': 'c', 'fine-grained_score': 3.25, 'overall_score': 1.0}]},
   ('a', 'b', 'c'), (2, 1, 2)),
  ('shp', {'history': 'Hi', 'human_ref_A': 'a', 'human_ref_B': 'b', 'labels': 1},
   ('a', 'b'), (1, 2)),
  ('shp', {'history': 'Hi', 'human_ref_A': 'a', 'human_ref_B': 'b', 'labels': 0},
   ('a', 'b'), (2, 1)),
  ('webgpt', {'question': {'full_text': 'Hi'}, 'answer_0': 'a', 'answer_1': 'b', 'score_0': -0.5,
              'score_1': 0.5}, ('a', 'b'), (2, 1)),
  ('pku_saferlhf', {'prompt': 'Hi', 'response_0': 'a', 'response_1': 'b', 'better_response_id': 1,
                    'safer_response_id': 0}, ('a', 'b'), (2, 1)),
  ('helpsteer3', {'context': HELLO, 'response1': 'a', 'response2': 'b', 'overall_preference': -3},
   ('a', 'b'), (1, 2)),
  ('helpsteer3', {'context': HELLO, 'response1': 'a', 'response2': 'b', 'overall_preference': 1},
   ('a', 'b'), (2, 1)),
]


@pytest.mark.parametrize(('reader', 'row', 'completions', 'ranks'), PUBLISHED)
def test_published_rankings_have_their_publishers_order(reader, row, completions, ranks, tmp_path):
  path = write(tmp_path / 'a.jsonl', row)
  (record,), _ = read(path, reader, 'rankings')
  assert (record.completions, record.ranks) == (completions, ranks)
  assert record.prompt == ('Human: Hi\n\nAssistant:' if reader == 'helpsteer3' else
                           'Human: Hi \n\nAssistant:' if reader == 'nectar' else 'Hi')
  if reader in ('helpsteer3', 'nectar'):
    assert list(record.prompt.messages) == HELLO
  assert [prompt.prompt for prompt in read(path, reader, 'prompts')[0]] == [record.prompt]
  with pytest.raises(BadInput, match=f"name the reader '{reader}'"):
    read(path, '', 'rankings')


@pytest.mark.parametrize(('reader', 'row', 'reason'), [
  ('webgpt', {'question': {'full_text': 'Hi'}, 'answer_0': 'a', 'answer_1': 'b', 'score_0': 0.0,
              'score_1': 0.0}, 'all ranks tied'),
  ('helpsteer3', {'context': HELLO, 'response1': 'a', 'response2': 'a', 'overall_preference': 2},
   'equal completions')])
def test_published_rows_that_prefer_nothing_are_counted(reader, row, reason, tmp_path):
  good = next(row for name, row, *_ in PUBLISHED if name == reader)
  records, reading = read(write(tmp_path / 'a.jsonl', row, good), reader, 'rankings')
  assert len(records) == 1 and reading.refused == {reason: 1}


@pytest.mark.parametrize(('reader', 'row', 'message'), [
  ('nectar', {'prompt': 'Human: Hi', 'answers': [{'answer': 'a', 'rank': True}]},
   r"field 'answers\[0\].rank': expected a number, found true"),
  ('webgpt', {'question': {'full_text': 'Hi'}, 'answer_0': 'a', 'answer_1': 'b', 'score_0': 1.0},
   "field 'score_1': expected a number, found null"),
  ('shp', {'history': 'Hi', 'human_ref_A': 'a', 'labels': 1}, "field 'human_ref_B'")])
def test_published_rows_that_are_broken_are_refused(reader, row, message, tmp_path):
  with pytest.raises(BadInput, match=message):
    read(write(tmp_path / 'a.jsonl', row), reader, 'rankings')


def test_the_readers_that_messages_name_are_there_and_give_that_kind():
  for kind, known in layouts.KNOWN_BY.items():
    assert {readers.READERS[reader][1] for reader in known.values()} == {kind}
  with pytest.raises(Refused, match="name the reader 'alpaca'"):
    layouts.record('demonstrations', {'instruction': 'Sum up', 'context': '', 'response': 'It.'})
  with pytest.raises(Refused, match="is the kind 'text' right"):
    layouts.record('text', {'instruction': 'Sum up', 'response': 'It.'})


def test_published_demonstrations(tmp_path):
  alpaca = write(tmp_path / 'a.jsonl', {'instruction': 'Add', 'input': '1 2', 'output': '3'},
                 {'instruction': 'Say', 'input': '', 'output': 'x'},
                 {'instruction': 'Sum up', 'context': 'All of it.', 'response': 'It.',
                  'category': 'summarization'})
  assert read(alpaca, 'alpaca', 'demonstrations')[0] == [
    Demonstration('Add\n\n1 2', '3'), Demonstration('Say', 'x'),
    Demonstration('Sum up\n\nAll of it.', 'It.', 'summarization')]
  turn = lambda speaker, text: {'from': speaker, 'value': text}
  shared = write(tmp_path / 's.jsonl', {'conversations': [
    turn('system', 'Be kind.'), turn('human', 'Hi'), turn('gpt', 'Hello')]},
    {'conversations': [turn('human', 'Hi'), turn('gpt', 'Hello'), turn('human', 'Bye')]})
  (record,), reading = read(shared, 'sharegpt', 'demonstrations')
  assert [one['role'] for one in record.prompt.messages] == ['system', 'user']
  assert record.response == 'Hello' and reading.refused == {"the human's turn last": 1}


def test_a_reader_of_ones_own_that_fails_is_told_with_its_line(tmp_path):
  (tmp_path / 'mine.py').write_text(
    "def read(path, kind, split):\n  yield {'text': 'a'}\n  yield {'text': {}['b']}\n")
  path = write(tmp_path / 'a.jsonl', {})
  with pytest.raises(BadInput, match=r"a.jsonl: reader .*: /.*mine.py:3: KeyError: 'b'"):
    read(path, f'{tmp_path}/mine.py:read', 'text')
