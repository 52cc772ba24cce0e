"""Sources: order, counts, duplicates, functions that make records, and splits that do not leak."""

import collections
import json
import re

import pytest

from rlhf_jax.configs import BadInput, Source
from rlhf_jax.data import duplicates, sources
from rlhf_jax.data.records import Demonstration, Prompt, Text
from rlhf_jax.data.sources import Place


def write(path, *texts):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
  return path


@pytest.fixture
def place(tmp_path):
  return Place(tmp_path / 'workdir', tmp_path / 'data')


def test_records_come_in_the_order_of_the_sources(place):
  write(place.data / 'b.jsonl', 'one', 'two')
  write(place.data / 'x' / 'a.jsonl', 'three', 'one')
  records, card = sources.read((Source(files=('b.jsonl', 'x/a.jsonl')),), place)
  assert [record.text for record in records] == ['one', 'two', 'three']
  assert list(card) == ['b.jsonl', 'x/a.jsonl']
  assert card['x/a.jsonl'] == {'read': 2, 'refused': {}, 'records': 2, 'duplicates': 1,
                               'long_prefix_duplicates': 0, 'not_taken': 0, 'kept': 1}


def test_every_row_is_accounted_for(place):
  place = Place(place.workdir, place.data, skip_bad_rows=True)
  write(place.data / 'a.jsonl', 'one', 'one', '', 'two', 5, 'three')
  gathered = sources.gather((Source(files=('a.jsonl',), size=2),), place)
  counts = gathered.card['a.jsonl']
  assert counts['refused'] == {'empty text': 1, 'wrong type': 1}
  assert counts['read'] == sum(counts['refused'].values()) + counts['records'] == 6
  assert counts['records'] == counts['duplicates'] + counts['not_taken'] + counts['kept'] == 4
  assert counts['kept'] == len(gathered.records) == 2
  lines = {1: 'one', 4: 'two', 6: 'three'}
  assert [lines[line] for _, line in gathered.origins] == [r.text for r in gathered.records]


def test_size_takes_some_by_seed_in_file_order(place):
  texts = [f'text {index:02d}' for index in range(40)]
  write(place.data / 'a.jsonl', *texts)
  taken = [tuple(record.text for record in sources.read(
    (Source(files=('a.jsonl',), size=10, seed=seed),), place)[0]) for seed in (0, 0, 1)]
  assert taken[0] == taken[1] != taken[2]
  assert list(taken[0]) == sorted(taken[0]) and len(set(taken[0])) == 10
  assert taken[0] != tuple(texts[:10])


def test_bad_rows_stop_with_the_whole_path(place):
  path = write(place.data / 'a.jsonl', 'one', 5)
  with pytest.raises(BadInput, match=re.escape(f'{path}:2: ')):
    sources.read((Source(files=('a.jsonl',)),), place)


def test_nothing_left_says_why(place):
  write(place.data / 'a.jsonl', 5, '')
  with pytest.raises(BadInput, match=r'found none after refusing.*"empty text": 1'):
    sources.read((Source(files=('a.jsonl',)),), Place(place.workdir, place.data, True))


@pytest.mark.parametrize(('source', 'message'), [
  (Source('texts', ('a.jsonl',)), "kind: expected 'text', found 'texts'"),
  (Source('text', ('a.jsonl',), reader='jsnl'), "reader: expected 'jsonl'"),
  (Source('text', ('.',)), 'expected files, found a folder; name the files in it'),
  (Source('text'), 'either files or make, found neither'),
  (Source('text', ('a.jsonl',), make='a:b'), 'either files or make, found both'),
  (Source('text', make='no_such_thing:text'), "no module 'no_such_thing'"),
])
def test_bad_sources(source, message, place):
  write(place.data / 'a.jsonl', 'one')
  with pytest.raises(BadInput, match=message):
    sources.read((source,), place)


def test_kinds_are_not_mixed(place):
  write(place.data / 'a.jsonl', 'one')
  both = (Source('text', ('a.jsonl',)), Source('prompts', ('a.jsonl',)))
  with pytest.raises(BadInput, match='sources of one kind, found prompts, text'):
    sources.read(both, place)


def test_missing_data_says_where_it_is_published(tmp_path):
  wanted = (Source('rankings', ('hh_rlhf/a.jsonl.gz',), 'hh_rlhf'),
            Source('rankings', ('openai_summarize_comparisons/b.jsonl.gz', 'mine.jsonl')))
  with pytest.raises(BadInput) as error:
    sources.require(wanted, Place(tmp_path))
  message = str(error.value)
  assert '--data DIR was not given' in message and '\n' not in message
  assert 'hh_rlhf from github.com/anthropics/hh-rlhf' in message
  assert 'github.com/openai/summarize-from-feedback' in message
  assert 'mine.jsonl' in message and 'mine.jsonl from' not in message
  with pytest.raises(BadInput, match=re.escape(f'found nothing below {tmp_path / "data"}')):
    sources.require(wanted, Place(tmp_path, tmp_path / 'data'))


def test_paths_start_at_data_here_or_the_root(tmp_path, monkeypatch):
  path = write(tmp_path / 'a.jsonl', 'one')
  monkeypatch.chdir(tmp_path)
  for place, name in ((Place(tmp_path / 'w', tmp_path), 'a.jsonl'),
                      (Place(tmp_path / 'w'), 'a.jsonl'),
                      (Place(tmp_path / 'w', tmp_path / 'elsewhere'), str(path))):
    assert sources.read((Source(files=(name,)),), place)[0] == [Text('one')]


MAKER = '''
from rlhf_jax.data.records import Prompt
CALLS = []
def prompts(split, size, seed):
  CALLS.append(split)
  for index in range(size):
    yield Prompt(f'{split} {index % 2} {seed}', meta={'index': index})
def wrong(split, size, seed):
  yield 'text'
def broken(split, size, seed):
  yield Prompt('first')
  raise RuntimeError('on the way')
'''


def test_a_function_makes_records_once_and_repeats_are_kept(place, tmp_path):
  maker = tmp_path / 'maker.py'
  maker.write_text(MAKER)
  source = Source('prompts', make=f'{maker}:prompts', split='heldout', size=4, seed=3)
  first, card = sources.read((source,), place)
  assert [record.prompt for record in first] == ['heldout 0 3', 'heldout 1 3'] * 2
  assert first[3].meta == {'index': 3}
  assert card[f'{maker}:prompts heldout']['kept'] == 4
  files = list((place.workdir / 'data' / 'sources').iterdir())
  assert len(files) == 1 and files[0].suffix == '.jsonl'
  stamp = files[0].stat().st_mtime_ns
  assert sources.read((source,), place)[0] == first
  assert files[0].stat().st_mtime_ns == stamp
  maker.write_text(MAKER + '\n# another world\n')  # made anew when the code has changed
  sources.read((source,), place)
  assert len(list((place.workdir / 'data' / 'sources').iterdir())) == 2


def test_what_a_function_yields_is_checked_and_never_half_written(place, tmp_path):
  maker = tmp_path / 'maker_b.py'
  maker.write_text(MAKER)
  with pytest.raises(BadInput, match="yield Prompt for kind 'prompts', found str"):
    sources.read((Source('prompts', make=f'{maker}:wrong'),), place)
  with pytest.raises(BadInput, match=r'maker_b.py:\d+: RuntimeError: .*on the way'):
    sources.read((Source('prompts', make=f'{maker}:broken'),), place)
  assert not list(place.workdir.rglob('*.jsonl'))


def demonstrations(prompts):
  return [Demonstration(f'Prompt {index % prompts}', f'{index}', customer=f'c{index % 13}')
          for index in range(500)]


def test_splits_keep_customers_and_prompts_apart():
  train, heldout = sources.split(demonstrations(400), 0.2, seed=0)
  assert not {r.customer for r in train} & {r.customer for r in heldout}
  assert not {r.prompt for r in train} & {r.prompt for r in heldout}
  assert len(train) + len(heldout) > 450 and len(heldout) > 40


def test_where_customers_share_all_prompts_the_split_is_by_prompt():
  train, heldout = sources.split(demonstrations(70), 0.2, seed=0)
  assert not {r.prompt for r in train} & {r.prompt for r in heldout}
  assert len(train) + len(heldout) == 500 and len(heldout) > 80


def test_splits_by_prompt_have_the_share_asked_for():
  items = [Prompt(f'prompt {index}') for index in range(200)]
  train, heldout = sources.split(items, 0.1, seed=0)
  assert (len(train), len(heldout)) == (180, 20)
  assert train == [item for item in items if item in train]
  assert sources.split(items, 0.1, seed=1)[1] != heldout
  assert sources.split(items, 0.0, seed=0) == (items, [])


def test_splits_do_not_depend_on_the_order():
  items = [Prompt(f'prompt {index}') for index in range(50)]
  heldout = sources.split(items, 0.3, seed=5)[1]
  assert set(r.prompt for r in sources.split(items[::-1], 0.3, seed=5)[1]) == {
    r.prompt for r in heldout}


def test_whitespace_and_case_do_not_make_another_prompt():
  items = [Prompt(text) for index in range(30)
           for text in (f'Say {index}', f'say  {index}', f' SAY\n{index}')]
  train, heldout = sources.split(items, 0.4, seed=0)
  side = collections.defaultdict(set)
  for name, found in (('train', train), ('heldout', heldout)):
    for record in found:
      side[duplicates.normal(record.prompt)].add(name)
  assert set(map(len, side.values())) == {1} and len(heldout) == 36


def test_a_prompt_of_two_customers_is_held_out_of_neither_side_twice():
  items = [Prompt('common', customer=f'c{index}') for index in range(10)]
  items += [Prompt(f'own {index}', customer=f'c{index}') for index in range(10)]
  train, heldout = sources.split(items, 0.2, seed=0)
  assert Prompt('common', customer=heldout[0].customer) not in train
  assert all(record.prompt != 'common' for record in heldout)


def variations(index):
  """Nearly the same prompt several times: case, punctuation, whitespace, another last word."""
  start = f'Question {index}: ' + ' '.join(f'word{index}{number}' for number in range(40))
  return [Prompt(text) for text in (
    f'{start} and so it ends', f'{start.upper()}, and so it ends!', f'{start}  and\nso it ended.',
    f'{start} and so it ends. And there is more, though not much', f'Short {index}?',
    f'short {index}')]


def test_nearly_the_same_prompts_are_never_on_both_sides():
  items = [prompt for index in range(40) for prompt in variations(index)]
  train, heldout = sources.split(items, 0.3, seed=0)
  assert len(train) + len(heldout) == 240 and 60 < len(heldout) < 84
  numbers = {side: {int(re.search(r'\d+', record.prompt).group()) for record in found
                    if record.prompt.lower().startswith(start)}
             for side, found in (('train', train), ('heldout', heldout))
             for start in ('question',)}
  assert not numbers['train'] & numbers['heldout']
  short = [{record.prompt.lower().rstrip('?') for record in found
            if record.prompt.lower().startswith('short')} for found in (train, heldout)]
  assert not short[0] & short[1] and len(short[0]) + len(short[1]) == 40


def test_nearly_the_same_prompts_of_two_customers_are_on_one_side():
  items = [Prompt(prompt.prompt, customer=f'c{number % 7}') for index in range(30)
           for number, prompt in enumerate(variations(index), index)]
  train, heldout = sources.split(items, 0.3, seed=0)
  sides = [set(duplicates.groups(items)[items.index(record)] for record in found)
           for found in (train, heldout)]
  assert heldout and not sides[0] & sides[1]
  shuffled = items[::-1]
  again = sources.split(shuffled, 0.3, seed=0)[1]
  assert sorted(r.prompt + r.customer for r in again) == sorted(
    r.prompt + r.customer for r in heldout)


def test_small_and_odd_splits():
  assert sources.split([Prompt('a')], 0.5, 0) == ([Prompt('a')], [])
  train, heldout = sources.split([Prompt('a'), Prompt('b')], 0.01, 0)
  assert len(train) == len(heldout) == 1
  same = [Prompt('a', customer=f'c{index}') for index in range(5)]
  assert sources.split(same, 0.5, 0) == (same, [])
  big = [Prompt(f'{index}', customer='big') for index in range(90)] + [
    Prompt(f'small {index}', customer='small') for index in range(10)]
  assert {r.customer for r in sources.split(big, 0.05, 0)[1]} == {'small'}
  with pytest.raises(BadInput, match='heldout'):
    sources.split(same, 1.0, 0)
