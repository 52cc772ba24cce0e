"""Cards and the command that shows them: every number from files small enough to count by hand."""

import json
import pathlib
import subprocess
import sys

import pytest

from rlhf_jax import __main__ as command
from rlhf_jax.configs import Source
from rlhf_jax.data import builders, cards
from rlhf_jax.data.sources import Place
from rlhf_jax.data.tokenizer import Tokenizer

DATA = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'
LONG = 'Please write to my landlord about the heating, which has not worked for weeks now. ' * 4


def ranking(prompt, completions, ranks, labeler='', **more):
  return {'prompt': prompt, 'completions': completions, 'ranks': ranks, 'labeler': labeler} | more


ROWS = [
  ranking('ask', ['abcdX', 'abcdY', 'b'], [1, 2, 3], 'ann', category='chat', customer='c1'),
  ranking('ask', ['b', 'abcdY', 'abcdX'], [3, 2, 1], 'bob', category='chat', customer='c1'),
  ranking('ask', ['b', 'c'], [1, 2], 'cy', category='chat', customer='c2'),  # saw another pair
  ranking('say', ['d', 'e'], [1, 2], 'ann', category='summarise'),
  ranking('say', ['e', 'd'], [1, 2], 'bob'),
  ranking('say', ['e', 'd'], [1, 2], 'bob'),  # the same row
  ranking(LONG + 'one', ['d', 'e'], [1, 2]),
  ranking(LONG + 'two', ['d', 'e'], [1, 2]),
  ranking('bad', ['d', 'e'], [1, 1]),
]


@pytest.fixture
def files(tmp_path):
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  Tokenizer.train(['a'], 259).save(tmp_path / 'tokenizer.json')  # a token a character
  return tmp_path


def test_the_card_of_rankings(files):
  limits = builders.Limits(prompt_length=400, response_length=5, k_max=3)
  built = builders.build((Source('rankings', ('a.jsonl',)),),
                         Tokenizer.from_file(files / 'tokenizer.json'),
                         Place(files / 'w', files, True), limits, heldout=0.3)
  card = built.card
  saved = list((files / 'w' / 'data').glob('rankings-*/card.json'))
  assert [json.loads(path.read_text()) for path in saved] == [card]
  assert card['sources']['a.jsonl'] == {
    'read': 9, 'refused': {'all ranks tied': 1}, 'records': 8, 'duplicates': 1,
    'long_prefix_duplicates': 1, 'not_taken': 0, 'kept': 6, 'labelers': 3}
  assert card['records'] == 6 and card['prompts'] == 3 and card['customers'] == 2
  assert card['categories'] == {'chat': 0.5, 'none': 0.3333, 'summarise': 0.1667}
  # ' abcdX' and ' abcdY' are six tokens and an end: at five they are the same.
  assert card['cut']['completions'] == {'count': 4, 'share': round(4 / 14, 4)}
  # ann and bob rank all three unlike, the other four rankings have a pair each
  assert card['pairs'] == {'read': 3 + 3 + 4, 'equal_by_truncation': 2}
  assert card['completions_removed'] == {'equal by truncation': 2}
  assert card['limits'] == {'prompt_length': 400, 'response_length': 5, 'k_max': 3,
                            'prompt_cut': 'refuse'}
  assert card['tokens'] == {
    'prompt': {'p50': 4, 'p90': 336, 'p99': 336, 'max': 336},
    'response': {'p50': 3, 'p90': 7, 'p99': 7, 'max': 7}}
  # ask: ann and bob order all three pairs alike; say: they order its pair unlike
  assert card['labelers'] == 3
  assert (card['agreement']['agreement'], card['agreement']['pairs']) == (0.75, 4)
  assert card['split'] == {'train': 4, 'heldout': 2} and card['heldout_also_in_train'] == 0
  assert cards.lines(card) == [
    'a.jsonl: 9 rows read, 6 records kept, refused: 1 all ranks tied, removed: 1 duplicates, 1 '
    'with the long prefix of another',
    '4 rows to train on, 2 held out',
    'cut at the limits: 4 completions (28.6%)',
    'completions removed: 2 equal by truncation',
    '2 of 10 pairs made equal by truncation and removed',
    'prompt tokens: median 4, 90 % up to 336, 99 % up to 336, all up to 336, limit 400',
    'response tokens: median 3, 90 % up to 7, 99 % up to 7, all up to 7, limit 5',
    '3 labelers agree on 75.0% (95 %: 0.0% to 100.0%) of 4 pairs that two of them ordered, 2 '
    'prompts',
    '2 customers',
    'use cases: chat 50.0%, none 33.3%, summarise 16.7%']
  assert cards.summary(card) == 'rankings: ' + '; '.join(cards.lines(card))
  card['agreement'] |= {'agreement_ci': None, 'prompts': 1}
  assert ('3 labelers agree on 75.0% of 4 pairs that two of them ordered, 1 prompts'
          in cards.lines(card))


def test_many_use_cases_are_not_all_named():
  card = {'kind': 'prompts', 'sources': {},
          'categories': {f'c{index}': 1 / 16 for index in range(16)}}
  named = ', '.join(f'c{index} 6.2%' for index in range(10))
  assert cards.lines(card) == [f'use cases: {named}, 6 others 37.5%']


def shown(capsys, *words):
  code = command.main(['data', *map(str, words)])
  captured = capsys.readouterr()
  return code, captured.out.splitlines(), captured.err.strip()


def test_the_command_without_a_tokenizer_counts_words(files, capsys):
  code, out, _ = shown(capsys, files / 'a.jsonl', '--kind', 'rankings', '--skip-bad-rows',
                       '--heldout', '0.3', '--out', files / 'card.json')
  assert code == 0
  assert out[0] == 'rankings: lengths in words and characters: no tokenizer is named'
  assert out[1].endswith('9 rows read, 6 records kept, refused: 1 all ranks tied, removed: 1 '
                         'duplicates, 1 with the long prefix of another')
  assert '  4 records to train on, 2 held out' in out
  assert '  prompt words: median 1, 90 % up to 61, 99 % up to 61, all up to 61' in out
  assert '  response characters: median 1, 90 % up to 5, 99 % up to 5, all up to 5' in out
  assert any('3 labelers agree on 75.0%' in line for line in out)
  card = json.loads((files / 'card.json').read_text())
  assert card['words']['prompt']['max'] == 61 and card['characters']['response']['max'] == 5
  assert sorted(path.name for path in files.iterdir()) == ['a.jsonl', 'card.json', 'tokenizer.json']


@pytest.mark.parametrize('where', ['--tokenizer', 'folder', 'run'])
def test_the_command_with_a_tokenizer_tries_limits(where, files, capsys):
  words = {'--tokenizer': ('--tokenizer', files / 'tokenizer.json'), 'folder': ('--model', files),
           'run': ('--model', files / 'run')}[where]
  if where == 'run':
    (files / 'run' / 'model').mkdir(parents=True)
    (files / 'tokenizer.json').rename(files / 'run' / 'model' / 'tokenizer.json')
  code, out, _ = shown(capsys, 'a.jsonl', '--data', files, '--kind', 'rankings', *words,
                       '--skip-bad-rows', '--response-length', '5', '--prompt-length', '50')
  assert code == 0 and out[0] == 'rankings: lengths in tokens'
  assert '  refused at the limits: 1 prompt too long' in out
  assert '  2 of 9 pairs made equal by truncation and removed' in out
  assert '  response tokens: median 3, 90 % up to 7, 99 % up to 7, all up to 7, limit 5' in out
  _, out, _ = shown(capsys, 'a.jsonl', '--data', files, '--kind', 'prompts', *words)
  assert out[1:] == [
    '  a.jsonl: 9 rows read, 5 records kept, removed: 3 duplicates, 1 with the long prefix of '
    'another', '  5 records to train on, 0 held out',
    '  prompt tokens: median 4, 90 % up to 336, 99 % up to 336, all up to 336', '  2 customers',
    '  use cases: chat 40.0%, none 40.0%, summarise 20.0%']


@pytest.mark.parametrize(('words', 'message'), [
  (('a.jsonl', '--kind', 'rankings'), "a.jsonl:9: field 'ranks': expected at least two"),
  (('a.jsonl', '--kind', 'text'), "a.jsonl:1: field 'text': expected a row with {text}"),
  (('none.jsonl', '--kind', 'text'), 'none.jsonl: expected this file, found nothing below'),
  (('a.jsonl', '--kind', 'rankings', '--reader', 'hh-rlhf'), "reader: expected 'hh_rlhf'"),
  (('a.jsonl', '--kind', 'rankings', '--prompt-length', '5'), 'limits are in tokens'),
  (('a.jsonl', '--kind', 'prompts', '--model', 'nowhere'), '--model nowhere: expected a folder'),
  (('a.jsonl', '--kind', 'prompts', '--model', 'a', '--tokenizer', 'b'), 'found both'),
  (('a.jsonl', '--kind', 'prompts', '--heldout', '1'), 'heldout: expected a share'),
])
def test_the_command_names_what_is_wrong(words, message, files, capsys):
  code, out, error = shown(capsys, '--data', files, *words)
  assert code == 2 and not out and message in error and '\n' not in error


@pytest.mark.parametrize(('words', 'message'), [
  (('--out', '.'), '--out .: is a folder, expected a file'),
  (('--out', 'a.jsonl/card.json'), 'a.jsonl is a file, expected a folder'),
  (('--k-max', '-1'), 'k_max: expected at least 2 for rankings, found -1'),
  (('--response-length', '1'), 'response_length: expected at least 2 for rankings, found 1'),
  (('--prompt-length', '-5'), 'prompt_length: expected at least 1 for rankings, found -5'),
])
def test_the_command_refuses_what_no_build_or_file_can_be(words, message, files, capsys,
                                                          monkeypatch):
  monkeypatch.chdir(files)
  code, out, error = shown(capsys, 'a.jsonl', '--kind', 'rankings', '--skip-bad-rows',
                           '--tokenizer', 'tokenizer.json', *words)
  assert code == 2 and not out and message in error and '\n' not in error


def test_the_command_needs_no_jax(files):
  code = ('import sys; from rlhf_jax.__main__ import main; '
          f'main(["data", {str(files / "a.jsonl")!r}, "--kind", "prompts"]); '
          'assert not {"jax", "flax", "tensorflow_datasets"} & set(sys.modules)')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False,
                        env={'PYTHONPATH': ':'.join(path for path in sys.path if path)})
  assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not DATA.is_dir(), reason='no folder ../shared/data')
def test_labelers_of_real_comparisons_agree_as_is_known_of_them():
  source = Source('rankings', ('openai_summarize_comparisons/batch13.jsonl.gz',),
                  'openai_summarize')
  told = cards.described('rankings', builders.sources.gather((source,), Place(DATA, DATA)))
  assert told['labelers'] == 27
  assert told['agreement']['agreement'] == pytest.approx(0.726, abs=0.0005)
