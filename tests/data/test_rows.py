"""Rows: the one layout, token by token, and what the limits do to prompts, responses and pairs."""

import random
import re
import time

import numpy as np
import pytest

from rlhf_jax.configs import BadInput
from rlhf_jax.data import rows
from rlhf_jax.data.records import Chat, Demonstration, Prompt, Ranking, Text
from rlhf_jax.data.rows import Limits
from rlhf_jax.data.tokenizer import Tokenizer

PAD, BOS, EOS = 0, 1, 2


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer.train(['a b'], 259)  # bytes alone: a token a character, so lengths are plain


def ids(tokenizer, text):
  return tokenizer.encode(text)


def made(kind, records, tokenizer, skip=False, **limits):
  limits = Limits(**limits).of(kind)
  origins = [('f.jsonl', line) for line in range(1, len(records) + 1)]
  pieces = rows.pieces(kind, records, origins, tokenizer, limits, skip)
  return pieces, rows.arrays(kind, pieces.tokens, tokenizer, limits)


def test_documents_are_packed_one_after_the_other(tokenizer):
  _, found = made('text', [Text('abc'), Text('de'), Text('f')], tokenizer, length=4)
  a, b, c, d, e, f = (ids(tokenizer, letter)[0] for letter in 'abcdef')
  np.testing.assert_array_equal(found['tokens'], [
    [BOS, a, b, c], [EOS, BOS, d, e], [EOS, BOS, f, EOS]])
  assert found['valid'].all()
  np.testing.assert_array_equal(found['mask'], [[False, True, True, True]] * 3)


def test_only_the_last_packed_row_is_padded(tokenizer):
  _, found = made('text', [Text('abcd')], tokenizer, length=5)
  assert found['tokens'].dtype == np.int32 and found['tokens'][1].tolist() == [EOS] + [PAD] * 4
  assert found['valid'].sum() == 6 and found['valid'].dtype == bool
  assert found['mask'].tolist() == [[False] + [True] * 4, [False] * 5]


@pytest.mark.parametrize('kind', ['text', 'prompts', 'demonstrations', 'rankings'])
def test_texts_are_encoded_few_at_a_time(kind, tokenizer, monkeypatch):
  """16 MB in 5,000 documents: a peak of 173 MiB; as lists of Python of all at once, 592 MiB."""
  records = {'text': [Text(f'text {index}') for index in range(7)],
             'prompts': [Prompt(f'ask {index}') for index in range(7)],
             'demonstrations': [Demonstration(f'ask {index}', 'yes') for index in range(7)],
             'rankings': [Ranking(f'ask {index}', ('a', 'b', 'cd'), (1, 2, 2))
                          for index in range(7)]}[kind]
  limits = {'length': 5, 'prompt_length': 9, 'response_length': 5, 'k_max': 3}
  pieces, whole = made(kind, records, tokenizer, **limits)
  counts, real = [], tokenizer.encode_all
  monkeypatch.setattr(tokenizer, 'encode_all', lambda texts: counts.append(len(texts)) or real(
    texts))
  monkeypatch.setattr(rows, '_CHUNK', 2)
  _, found = made(kind, records, tokenizer, **limits)
  np.testing.assert_equal(found, whole)
  assert max(counts) == 2 and pieces.places == list(range(7))
  ids = pieces.tokens[0] if kind in ('text', 'prompts') else pieces.tokens[0][0]
  assert isinstance(ids, np.ndarray) and ids.dtype == np.int32


def test_demonstrations_are_prompt_left_response_right(tokenizer):
  pieces, found = made('demonstrations', [Demonstration('ab', 'c'), Demonstration('a ', 'cd')],
                       tokenizer, prompt_length=4, response_length=3)
  a, b, c, d, space = (ids(tokenizer, letter)[0] for letter in 'abcd ')
  np.testing.assert_array_equal(found['tokens'], [
    [PAD, BOS, a, b, space, c, EOS], [PAD, BOS, a, space, c, d, EOS]])
  np.testing.assert_array_equal(found['valid'], np.array([[0, 1, 1, 1, 1, 1, 1]] * 2, bool))
  np.testing.assert_array_equal(found['mask'], np.array([[0, 0, 0, 0, 1, 1, 1]] * 2, bool))
  assert len(pieces.records) == 2


def test_a_long_demonstration_is_refused_and_counted(tokenizer):
  pieces, found = made('demonstrations', [Demonstration('a ', 'bc'), Demonstration('a ', 'bcd')],
                       tokenizer, prompt_length=4, response_length=3)
  assert [record.response for record in pieces.records] == ['bc'] and len(found['tokens']) == 1
  assert pieces.refused == {'response too long': 1}


def test_prompts_are_left_padded(tokenizer):
  _, found = made('prompts', [Prompt('ab'), Prompt('abc')], tokenizer, prompt_length=4)
  a, b, c = ids(tokenizer, 'abc')
  assert found['tokens'].tolist() == [[PAD, BOS, a, b], [BOS, a, b, c]]
  assert found['valid'].tolist() == [[False, True, True, True], [True] * 4]
  assert set(found) == {'tokens', 'valid'}


def test_rankings_are_a_row_a_completion(tokenizer):
  ranking = Ranking('a ', ('b', '', 'cd'), (2, 3, 1))
  _, found = made('rankings', [ranking], tokenizer, prompt_length=3, response_length=3, k_max=5)
  a, b, c, d, space = (ids(tokenizer, letter)[0] for letter in 'abcd ')
  np.testing.assert_array_equal(found['tokens'][0], [
    [BOS, a, space, b, EOS, PAD], [BOS, a, space, EOS, PAD, PAD], [BOS, a, space, c, d, EOS],
    [PAD] * 6, [PAD] * 6])
  assert found['mask'][0].sum(1).tolist() == [2, 1, 3, 0, 0]
  assert found['valid'][0].sum(1).tolist() == [5, 4, 6, 0, 0]
  assert found['ranks'].tolist() == [[2, 3, 1, 0, 0]] and found['ranks'].dtype == np.int32
  assert found['present'].tolist() == [[True, True, True, False, False]]


def test_a_cut_completion_has_no_eos(tokenizer):
  ranking = Ranking('a ', ('bcde', 'bc …', 'b'), (1, 2, 3))
  pieces, found = made('rankings', [ranking], tokenizer, prompt_length=3, response_length=3,
                       k_max=3)
  assert [row.tolist()[3:] for row in found['tokens'][0]] == [
    ids(tokenizer, 'bcd'), [*ids(tokenizer, 'bc'), PAD], [*ids(tokenizer, 'b'), EOS, PAD]]
  assert pieces.cut['completions'] == {'count': 1, 'share': round(1 / 3, 4)}


def test_a_completion_that_just_fits_keeps_its_eos(tokenizer):
  ranking = Ranking('a ', ('bc', 'bcd'), (1, 2))
  _, found = made('rankings', [ranking], tokenizer, prompt_length=3, response_length=3, k_max=2)
  assert [row.tolist()[-1] for row in found['tokens'][0]] == [EOS, ids(tokenizer, 'd')[0]]


@pytest.mark.parametrize(('ranking', 'kept', 'removed', 'refused'), [
  (Ranking('a ', ('bcdX', 'bcdY', 'b'), (1, 3, 2)), [1, 2], {'equal by truncation': 1}, {}),
  (Ranking('a ', ('bcdX', 'bcdY', 'b'), (1, 1, 2)), [1, 2], {'equal by truncation': 1}, {}),
  (Ranking('a ', ('bcdX', 'bcdY'), (1, 2)), None, {'equal by truncation': 1},
   {'nothing left to compare': 1}),
  (Ranking('a ', ('b', 'c', 'b'), (1, 2, 3)), [1, 2], {'equal, ranked differently': 1}, {}),
  (Ranking('a ', ('b', 'c', 'b'), (1, 2, 1)), [1, 2, 1], {}, {}),
  (Ranking('a ', ('b', 'c', ' …'), (1, 2, 3)), [1, 2], {'unfinished without a token': 1}, {}),
])
def test_pairs_that_became_equal_are_removed(ranking, kept, removed, refused, tokenizer):
  other = Ranking('z ', ('b', 'c'), (1, 2))
  pieces, found = made('rankings', [ranking, other], tokenizer, prompt_length=3, response_length=3,
                       k_max=3)
  assert dict(pieces.removed) == removed and dict(pieces.refused) == refused
  assert pieces.records[-1] == other and len(pieces.records) == (2 if kept else 1)
  if kept:
    assert found['ranks'][0][found['present'][0]].tolist() == kept


LONG = [
  ('prompts', Prompt('abcdef'), "field 'prompt': expected at most 4 tokens, found 7"),
  ('demonstrations', Demonstration('abcdef', 'b'), "field 'prompt': expected at most 4 tokens"),
  ('rankings', Ranking('abcdef', ('a', 'b'), (1, 2)), "field 'prompt': expected at most 4 tokens"),
  ('rankings', Ranking('a', ('a', 'b', 'c'), (1, 2, 3)),
   "field 'completions': expected at most 2, found 3; raise k_max"),
]


@pytest.mark.parametrize(('kind', 'record', 'message'), LONG)
def test_a_prompt_above_the_limit_stops_or_is_counted(kind, record, message, tokenizer):
  limits = {'prompt_length': 4, 'response_length': 3, 'k_max': 2}
  good = type(record)('a', *([('a', 'b'), (1, 2)] if kind == 'rankings' else
                             ['b'] if kind == 'demonstrations' else []))
  with pytest.raises(BadInput, match=re.escape(f'f.jsonl:2: {message}')):
    made(kind, [good, record], tokenizer, **limits)
  pieces, found = made(kind, [good, record, good], tokenizer, skip=True, **limits)
  assert pieces.records == [good, good] and pieces.refused.total() == 1
  assert len(found['tokens']) == 2


@pytest.mark.parametrize(('prompt', 'limit', 'expected'), [
  ('One. Two. Three.\n\nTL;DR:', 20, 'One. Two.\n\nTL;DR:'),
  ('One. Two. Three.\n\nTL;DR:', 26, 'One. Two. Three.\n\nTL;DR:'),
  ('TITLE: x\n\nPOST: aaa bbb ccc\n\nTL;DR:', 32, 'TITLE: x\n\nPOST: aaa bbb\n\nTL;DR:'),
  ('First line\nsecond line goes on', 20, 'First line'),
  ('Pi is 3.14159 they say. Not so.', 22, 'Pi is 3.14159 they'),
  ('Wait?" he said and went away', 10, 'Wait?"'),
  ('wordwithoutend', 6, None),
  ('a b\n\nAnswer:', 5, None),
  ('一二三。四五六！七八九', 25, '一二三。四五六！'),
  ('一二三。」四五六', 16, '一二三。」'),
  ('一二三四五六七八九', 16, '一二三四五'),
  ('AI 一二三四五六七八九', 16, 'AI 一二三四'),
  ('これは一体\n\n答え:', 21, 'これは\n\n答え:'),
  ('x' * 300, 201, 'x' * 200),
  ('Human: a?\n\nAssistant: b\n\nHuman: c?\n\nAssistant:', 24, 'Human: c?\n\nAssistant:'),
  ('Human: a?\n\nAssistant: b\n\nHuman: c?\n\nAssistant: d\n\nHuman: e?\n\nAssistant:', 50,
   'Human: c?\n\nAssistant: d\n\nHuman: e?\n\nAssistant:'),
  ('Human: a?\n\nAssistant: b\n\nHuman: Why so? And why now?\n\nAssistant:', 30,
   'Human: Why so?\n\nAssistant:'),
  # as in full-hh-rlhf and Nectar
  ('\n\nHuman: a?\n\nAssistant: b\n\nHuman: c?\n\nAssistant: ', 25, 'Human: c?\n\nAssistant: '),
])
def test_prompts_are_cut_where_a_sentence_or_a_turn_ends(prompt, limit, expected, tokenizer):
  found = rows.cut(prompt, tokenizer, limit)
  if expected is None:
    assert found is None
    return
  assert found[0] == expected
  assert found[1] == tokenizer.encode_prompt(expected) and len(found[1]) <= limit


def first_that_fits(prompt, tokenizer, limit):
  """`rows.cut` turn by turn, where a whole turn can stay."""
  if isinstance(prompt, Chat):
    turns = [index for index, one in enumerate(prompt.messages) if one['role'] == 'user'][1:]
    system = prompt.messages[:int(prompt.messages[0]['role'] == 'system')]
    shorter = [Chat((*system, *prompt.messages[turn:])) for turn in turns]
  else:
    shorter = [prompt[found.start() + 2:] for found in re.finditer('\n\nHuman:', prompt)]
  return next((one for one in shorter if len(tokenizer.encode_prompt(one)) <= limit), None)


@pytest.mark.parametrize('seed', range(40))
def test_a_dialogue_keeps_all_turns_that_fit(seed, tokenizer):
  dice = random.Random(seed)
  text = lambda: 'the sun, ' * dice.randint(0, 3) + 'why?'
  messages = [{'role': 'system', 'content': text()}] if seed % 2 else []
  for _ in range(dice.randint(1, 9)):
    messages += [{'role': 'user', 'content': text()}, {'role': 'assistant', 'content': text()}]
  chat, limit = Chat([*messages, {'role': 'user', 'content': text()}]), dice.randint(60, 300)
  for prompt in (chat,) if seed % 2 else (chat, str(chat)):
    expected, found = first_that_fits(prompt, tokenizer, limit), rows.cut(prompt, tokenizer, limit)
    if expected is not None:
      assert found == (expected, tokenizer.encode_prompt(expected))
      assert getattr(found[0], 'messages', ()) == getattr(expected, 'messages', ())
    elif found:
      assert len(found[1]) <= limit


@pytest.mark.parametrize('prompt', [
  'Human: a\n\n' * 500 + 'Human: what now?',
  Chat([{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}] * 250
       + [{'role': 'user', 'content': 'what now?'}])])
def test_few_turns_of_a_long_dialogue_are_tried(prompt, tokenizer, monkeypatch):
  tried, encode = [], tokenizer.encode_prompt
  monkeypatch.setattr(tokenizer, 'encode_prompt', lambda text: tried.append(1) or encode(text))
  found, _ = rows.cut(prompt, tokenizer, 60)
  assert found.count('Human') > 1 and found.rstrip().endswith(('now?', 'Assistant:'))
  assert len(tried) < 15


@pytest.mark.parametrize(('prompt', 'body'), [
  ('a\n\nTL;DR:', 'a'), ('a \n \t\nTL;DR: \n', 'a'), ('a\n:', 'a\n:'), ('TL;DR:', 'TL;DR:'),
  ('a\nno mark \n', 'a\nno mark \n'), ('\nA:', ''), (f'a\n{"x" * 24}:', 'a'),
  (f'a\n{"x" * 25}:', f'a\n{"x" * 25}:'), ('a\nb:\nA: c', 'a\nb:\nA: c')])
def test_the_last_line_that_asks(prompt, body):
  assert rows._body(prompt) == body


def test_blank_lines_take_no_time(tokenizer):
  start = time.process_time()
  rows.cut('x' + '\n' * 30_000 + 'y. ' * 50, tokenizer, 32)
  assert time.process_time() - start < 2


def test_cut_prompts_are_counted_and_the_rest_refused(tokenizer):
  records = [Prompt('One. Two. Three.'), Prompt('wordwithoutend'), Prompt('One.')]
  with pytest.raises(BadInput, match='no sentence or word that could stay; raise prompt_length '):
    made('prompts', records, tokenizer, prompt_length=10, prompt_cut='head')
  pieces, _ = made('prompts', records, tokenizer, skip=True, prompt_length=10, prompt_cut='head')
  assert [record.prompt for record in pieces.records] == ['One. Two.', 'One.']
  assert pieces.cut['prompts'] == {'count': 1, 'share': round(1 / 3, 4)}
  assert pieces.refused == {'prompt too long': 1}
  assert pieces.lengths['prompt'] == {'p50': 15, 'p90': 17, 'p99': 17, 'max': 17}


@pytest.mark.parametrize(('kind', 'limits', 'message'), [
  ('text', {'length': 0}, 'length: expected at least 2 for text, found 0'),
  ('prompts', {'prompt_length': 0}, 'prompt_length: expected at least 1'),
  ('rankings', {'prompt_length': 4, 'response_length': 4}, 'k_max: expected at least 2'),
  ('prompts', {'prompt_length': 4, 'prompt_cut': 'tail'}, 'prompt_cut: expected one of refuse'),
])
def test_limits_that_make_no_sense(kind, limits, message):
  with pytest.raises(BadInput, match=message):
    Limits(**limits).of(kind)
