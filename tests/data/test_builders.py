"""Builders: the card adds up; builds are reused, repeatable, whole or absent; no TensorFlow."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from rlhf_jax.configs import BadInput, Source
from rlhf_jax.configs import Tokenizer as TokenizerConfig
from rlhf_jax.data import builders, datasets
from rlhf_jax.data.builders import Limits, Place
from rlhf_jax.data.tokenizer import Tokenizer

LIMITS = {'prompt_length': 12, 'response_length': 8, 'length': 16, 'k_max': 3, 'heldout': 0.2}
ROWS = {
  'text': [{'text': f'some text number {index}'} for index in range(30)],
  'prompts': [{'prompt': f'ask {index}'} for index in range(30)],
  'demonstrations': [{'prompt': f'ask {index}', 'response': f'r{index}'} for index in range(30)],
  'rankings': [{'prompt': f'ask {index}', 'completions': ['a', 'b', f'c{index % 3}'],
                'ranks': [1, 2 + index % 2, 2], 'labeler': f'l{index % 4}'} for index in range(30)],
}


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer.train(['some text number ask'] * 9, 280)


@pytest.fixture
def place(tmp_path):
  data = tmp_path / 'data'
  data.mkdir()
  for kind, rows in ROWS.items():
    (data / f'{kind}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return Place(tmp_path / 'workdir', data)


def source(kind):
  return (Source(kind, (f'{kind}.jsonl',)),)


def build(data, tokenizer, place, *, heldout=0.0, seed=0, **limits):
  return builders.build(data, tokenizer, place, Limits(**limits), heldout=heldout, seed=seed)


def stacked(rows):
  return {name: np.stack([rows[index][name] for index in range(len(rows))]) for name in rows[0]}


def test_a_build_leaves_nothing_outside_its_folder(place, tokenizer, tmp_path, monkeypatch):
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  monkeypatch.setattr('tempfile.tempdir', str(elsewhere))
  build(source('prompts'), tokenizer, place, **LIMITS)
  build(source('prompts'), tokenizer, place, **LIMITS)  # opened, not built again
  assert not list(elsewhere.iterdir())


@pytest.mark.parametrize('kind', ROWS)
def test_rows_come_back_as_they_were_laid_out(kind, place, tokenizer):
  built = build(source(kind), tokenizer, place, **LIMITS)
  shapes = {'text': (16,), 'prompts': (12,), 'demonstrations': (20,), 'rankings': (3, 20)}
  for rows in (built.train, built.heldout):
    assert len(rows) and rows[0]['tokens'].shape == shapes[kind]
    assert rows[0]['tokens'].dtype == np.int32 and rows[0]['valid'].dtype == bool
    for _ in range(2):  # decoded, then from memory
      row = rows[len(rows) - 1]
      assert set(row) == {'text': {'tokens', 'valid', 'mask'}, 'prompts': {'tokens', 'valid'},
                          'demonstrations': {'tokens', 'valid', 'mask'},
                          'rankings': {'tokens', 'valid', 'mask', 'ranks', 'present'}}[kind]
    with pytest.raises(IndexError):
      rows[len(rows)]
    with pytest.raises(ValueError, match='read-only'):
      rows[0]['tokens'][0] = 5
  card = built.card
  assert card['rows'] == {'train': len(built.train), 'heldout': len(built.heldout)}
  assert card['split']['train'] + card['split']['heldout'] == 30 and card['split']['heldout'] == 6
  assert card['sources'][f'{kind}.jsonl']['kept'] == card['records'] == 30
  assert card['valid_tokens']['train'] == int(stacked(built.train)['valid'].sum())
  if kind == 'rankings':
    assert card['labelers'] == 4 and card['k'] == {'3': 30}
    one = built.train[0]
    assert one['present'].all() and tokenizer.decode(one['tokens'][0][12:]) == 'a'


def test_a_demonstration_reads_back_as_text(place, tokenizer):
  rows = build(source('demonstrations'), tokenizer, place, **LIMITS | {'heldout': 0}).train
  texts = [(tokenizer.decode(row['tokens'][:12][row['valid'][:12]]),
            tokenizer.decode(row['tokens'][row['mask']])) for row in (rows[0], rows[29])]
  assert texts == [('ask 0', 'r0'), ('ask 29', 'r29')]
  assert [row['tokens'][row['mask']][-1] for row in (rows[0], rows[29])] == [tokenizer.eos] * 2


def test_no_held_out_rows_when_none_are_asked_for(place, tokenizer):
  built = build(source('text'), tokenizer, place, **LIMITS | {'heldout': 0.0})
  assert len(built.heldout) == 0 and built.card['split'] == {'train': 30, 'heldout': 0}
  with pytest.raises(IndexError):
    built.heldout[0]


def test_a_second_call_reuses_and_a_change_builds_anew(place, tokenizer, monkeypatch):
  first = build(source('demonstrations'), tokenizer, place, **LIMITS)
  folders = sorted((place.workdir / 'data').iterdir())
  assert len(folders) == 1
  with monkeypatch.context() as patch:
    patch.setattr(datasets, 'write', lambda *_: pytest.fail('built again'))
    again = build(source('demonstrations'), tokenizer, place,
                           **LIMITS | {'length': 99, 'k_max': 7})  # of no use to demonstrations
    assert again.card == first.card
    np.testing.assert_equal(stacked(again.train), stacked(first.train))
  for change in ({'seed': 1}, {'prompt_length': 13}, {'response_length': 9}, {'heldout': 0.1},
                 {'prompt_cut': 'head'}):
    build(source('demonstrations'), tokenizer, place, **LIMITS | change)
  build(source('demonstrations'), Tokenizer.train(['x'], 259), place, **LIMITS)
  build(source('demonstrations'), tokenizer, Place(place.workdir, place.data, True),
                 **LIMITS)
  path = place.data / 'demonstrations.jsonl'
  path.write_text(path.read_text() + '{"prompt": "new", "response": "one"}\n')
  assert build(source('demonstrations'), tokenizer, place, **LIMITS).card['records'] == 31
  assert len(list((place.workdir / 'data').iterdir())) == 9


@pytest.mark.parametrize('lost', ['card.json', '*/*/*.array_record*', '*/*/dataset_info.json',
                                  '*/*/features.json', '*/'])
@pytest.mark.parametrize('cut', [True, False])
def test_what_was_lost_since_is_told(place, tokenizer, lost, cut):
  build(source('text'), tokenizer, place, length=16)
  folder, = (path for path in (place.workdir / 'data').iterdir() if path.is_dir())
  for path in folder.glob(lost):
    if path.is_dir():
      shutil.rmtree(path)
    elif cut:
      path.write_bytes(path.read_bytes()[:30])
    else:
      path.unlink()
  with pytest.raises(BadInput, match=f'{folder}: is damaged .*; delete it, and the same'):
    build(source('text'), tokenizer, place, length=16).train[0]
  shutil.rmtree(folder)
  build(source('text'), tokenizer, place, length=16).train[0]


def test_two_workdirs_hold_the_same_bits(place, tokenizer, tmp_path):
  for kind in ROWS:
    one = build(source(kind), tokenizer, place, **LIMITS)
    two = build(source(kind), tokenizer, Place(tmp_path / 'other', place.data), **LIMITS)
    assert one.card == two.card
    np.testing.assert_equal(stacked(one.train), stacked(two.train))
    np.testing.assert_equal(stacked(one.heldout), stacked(two.heldout))
  names = [sorted(path.name for path in (folder / 'data').iterdir())
           for folder in (place.workdir, tmp_path / 'other')]
  assert names[0] == names[1]


def test_a_rankings_file_is_given_by_its_path(place, tokenizer):
  path = place.data / 'rankings.jsonl'
  for data in (path, str(path)):
    built = build(data, tokenizer, place, **LIMITS)
    assert built.card['kind'] == 'rankings' and built.card['records'] == 30


def test_nothing_left_to_train_on(place, tokenizer):
  with pytest.raises(BadInput, match=r'found none of 30 left; refused: {"response too long": 30}'):
    build(source('demonstrations'), tokenizer, place, **LIMITS | {'response_length': 2})
  assert not list(place.workdir.rglob('*'))


def test_a_failed_build_leaves_nothing(place, tokenizer, monkeypatch):
  def fail(kind, splits, folder):
    (folder / 'half').write_text('x')
    raise RuntimeError('array_record: No space left on device')
  with monkeypatch.context() as patch:
    patch.setattr(datasets, 'write', fail)
    with pytest.raises(BadInput, match='no space left on the disk'):
      build(source('text'), tokenizer, place, **LIMITS)
  assert list((place.workdir / 'data').iterdir()) == []
  assert len(build(source('text'), tokenizer, place, **LIMITS).train)


SCRIPT = textwrap.dedent('''
  import os, pathlib, signal, sys
  from rlhf_jax.configs import Source
  from rlhf_jax.data import builders, datasets
  from rlhf_jax.data.tokenizer import Tokenizer
  when, workdir, data, tokenizer = sys.argv[1:]
  real = datasets.write
  def write(*args):
    if when == 'before':
      (args[2] / 'rubbish').write_text('torn')
      os.kill(os.getpid(), signal.SIGKILL)
    real(*args)
    if when == 'after':
      os.kill(os.getpid(), signal.SIGKILL)
  datasets.write = write
  place = builders.Place(pathlib.Path(workdir), pathlib.Path(data))
  built = builders.build((Source('text', ('text.jsonl',)),), Tokenizer.from_file(tokenizer), place,
                         builders.Limits(length=16), heldout=.2)
  print(len(built.train), 'tensorflow' in sys.modules, 'jax' in sys.modules)
''')


def test_a_killed_build_is_done_again_without_tensorflow_or_jax(place, tokenizer, tmp_path):
  tokenizer.save(tmp_path / 'tokenizer.json')

  def start(when):
    return subprocess.run(
      [sys.executable, '-c', SCRIPT, when, place.workdir, place.data, tmp_path / 'tokenizer.json'],
      capture_output=True, text=True, check=False, env=os.environ | {
        'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)})

  for when in ('before', 'after'):
    assert start(when).returncode == -signal.SIGKILL
    folders = list((place.workdir / 'data').iterdir())
    assert len(folders) == 1 and folders[0].name.startswith('.')
    for path in (*folders[0].rglob('*'), folders[0]):
      os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)  # nobody is building there still
  done = start('never')
  assert done.returncode == 0, done.stderr
  whole = build(source('text'), tokenizer, Place(tmp_path / 'whole', place.data),
                         length=16, heldout=0.2)
  assert done.stdout.split() == [str(len(whole.train)), 'False', 'False']
  folders = list((place.workdir / 'data').iterdir())
  assert len(folders) == 1 and not folders[0].name.startswith('.')
  again = build(source('text'), tokenizer, place, length=16, heldout=0.2)
  np.testing.assert_equal(stacked(again.train), stacked(whole.train))


@pytest.mark.parametrize('ends', ['first', 'never'])
def test_two_commands_build_the_same_at_once(ends, place, tokenizer, tmp_path, monkeypatch):
  whole = build(source('text'), tokenizer, Place(tmp_path / 'whole', place.data), **LIMITS)
  real, halves = datasets.write, []

  def write(*args):
    halves.append(args[2])
    if len(halves) == 2 and ends == 'never':
      raise RuntimeError('stopped')
    real(*args)
    if len(halves) == 1:
      with pytest.raises(RuntimeError) if ends == 'never' else contextlib.nullcontext():
        build(source('text'), tokenizer, place, **LIMITS)  # the other command
  monkeypatch.setattr(datasets, 'write', write)
  built = build(source('text'), tokenizer, place, **LIMITS)
  assert len(set(halves)) == 2
  np.testing.assert_equal(stacked(built.train), stacked(whole.train))
  folder, = (place.workdir / 'data').iterdir()
  assert not folder.name.startswith('.') and folder.stat().st_mode & 0o777 == (
    place.workdir.stat().st_mode & 0o777)  # others may read it as far as the workdir


def test_what_a_file_is_taken_for_names_the_dataset(place, tokenizer):
  content = (place.data / 'text.jsonl').read_text()
  (place.data / 'text.txt').write_text(content)
  (place.data / 'text.dat').write_text(content)
  builds = [build((Source('text', (name,), reader),), tokenizer, place, length=16)
            for name, reader in (('text.jsonl', ''), ('text.txt', ''), ('text.dat', 'plain'))]
  assert [built.card['records'] for built in builds] == [30, 1, 1]
  assert [list(built.card['sources']) for built in builds] == [
    ['text.jsonl'], ['text.txt'], ['text.dat']]


@pytest.mark.parametrize('prompt_cut', ['head', 'refuse'])
def test_what_a_cut_makes_unlike_stays_on_one_side(prompt_cut, place, tokenizer):
  turns = [[f'Human: dialogue {name}, turn {turn}: {word * 40}\n\nAssistant:'
            for turn, word in enumerate(('ab ', 'cd ', 'ef '))] for name in range(8)]
  rows = [{'prompt': ' Yes.\n\n'.join(of[:count]), 'category': f'd{name}'}
          for name, of in enumerate(turns) for count in (2, 3)]
  (place.data / 'prompts.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  limit = 200 if prompt_cut == 'head' else 2000
  pieces, split_of, card = builders.account(
    source('prompts'), tokenizer, place, Limits(prompt_length=limit, prompt_cut=prompt_cut)
    .of('prompts'), heldout=0.25, seed=0)
  assert card['cut']['prompts']['count'] == (16 if prompt_cut == 'head' else 0)
  train, heldout = ({pieces.records[index].category for index in split_of[name]}
                    for name in ('train', 'heldout'))
  assert not train & heldout and len(train | heldout) == 8 and len(heldout) == 2


def test_other_processes_wait_for_the_first(place, tokenizer, monkeypatch):
  built = build(source('text'), tokenizer, place, **LIMITS)
  monkeypatch.setattr(builders.processes, 'index', lambda: 1)
  monkeypatch.setattr(datasets, 'write', lambda *_: pytest.fail('not process 0'))
  assert build(source('text'), tokenizer, place, **LIMITS).card == built.card
  waited = []
  monkeypatch.setattr(builders.processes, 'wait_for', lambda path: waited.append(path.name))
  with pytest.raises(BadInput, match='is damaged'):  # the wait was none
    build(source('prompts'), tokenizer, place, **LIMITS)
  assert len(waited) == 1 and waited[0].startswith('prompts-')


def test_the_summary_is_one_paragraph(place, tokenizer, caplog):
  path = place.data / 'demonstrations.jsonl'
  path.write_text(path.read_text() + '{"prompt": "a", "response": "much too long a thing"}\n5\n')
  caplog.set_level('INFO', logger='rlhf_jax')
  place = Place(place.workdir, place.data, skip_bad_rows=True)
  build(source('demonstrations'), tokenizer, place, **LIMITS)
  said = [record.getMessage() for record in caplog.records if record.name == 'rlhf_jax']
  assert said == ['demonstrations: demonstrations.jsonl: 32 rows read, 31 records kept, refused: '
                  '1 not an object; 24 rows to train on, 6 held out; refused at the limits: '
                  '1 response too long; prompt tokens: median 6, 90 % up to 6, 99 % up to 6, all '
                  'up to 6, limit 12; response tokens: median 5, 90 % up to 5, 99 % up to 23, all '
                  'up to 23, limit 8']


def test_a_tokenizer_is_trained_once_on_training_text_alone(place):
  config, limits = TokenizerConfig(vocabulary=300), {'heldout': 0.2, 'seed': 0}
  first = builders.tokenizer_for(config, source('text'), place, **limits)
  assert 259 < first.vocabulary <= 300
  files = list((place.workdir / 'data').glob('tokenizer-*.json'))
  assert len(files) == 1
  assert builders.tokenizer_for(config, source('text'), place, **limits).json == first.json
  train, heldout = builders.split(builders.read(source('text'), place)[0], 0.2, 0)
  assert heldout and first.json == Tokenizer.train([r.text for r in train], 300).json
  named = builders.tokenizer_for(TokenizerConfig(file=str(files[0])), (), place)
  assert named.json == first.json


def test_prompts_for_sampling_are_cut_like_those_of_datasets(place, tokenizer):
  path = place.data / 'prompts.jsonl'
  path.write_text('{"prompt": "ask 1. And then some more that is long", "customer": "c"}\n')
  found, card = builders.read_prompts(source('prompts'), tokenizer, place,
                                      Limits(prompt_length=8, prompt_cut='head'))
  assert [(record.prompt, record.customer) for record in found] == [('ask 1.', 'c')]
  assert card['cut']['prompts']['count'] == 1
  path.with_name('rankings.jsonl').write_text(
    '{"prompt": "ask 1. And then some more", "chosen": "a", "rejected": "b much longer than R"}\n')
  found, _ = builders.read_prompts(source('rankings'), tokenizer, place,
                                   Limits(prompt_length=8, prompt_cut='head'))
  assert [(r.prompt, r.completions) for r in found] == [('ask 1.', ('a', 'b much longer than R'))]
  with pytest.raises(BadInput, match=r"prompts.jsonl:1: field 'prompt': expected at most 8 tokens"):
    builders.read_prompts(source('prompts'), tokenizer, place, Limits(prompt_length=8))


def test_a_tokenizer_that_the_model_has_no_rows_for_is_refused(place):
  """Its tokens would have an infinite loss, for which the learning rate would be blamed."""
  trained = TokenizerConfig(vocabulary=300)
  first = builders.tokenizer_for(trained, source('text'), place)
  ids = first.vocabulary
  assert builders.tokenizer_for(trained, source('text'), place, most=ids).json == first.json
  with pytest.raises(BadInput) as told:
    builders.tokenizer_for(trained, source('text'), place, most=ids - 1)
  assert str(told.value) == (
    f'model.vocabulary: expected at least {ids}, as many as the tokenizer has ids, found {ids - 1};'
    " raise it, leave it out (0 takes the tokenizer's), or lower tokenizer.vocabulary (300)")
  file = TokenizerConfig(file=str(next((place.workdir / 'data').glob('tokenizer-*.json'))))
  with pytest.raises(BadInput, match=r"\(0 takes the tokenizer's\)$"):
    builders.tokenizer_for(file, (), place, most=259)
