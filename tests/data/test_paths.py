"""Paths as words: what they may be is told before anything is read, made or written."""

import argparse
import json
import pathlib

import pytest

from rlhf_jax import __main__, arguments
from rlhf_jax.data import paths, store
from rlhf_jax.runtime import preflight

FILE = 'experiments/quickstart.py'
SHOWN = ('data', 'README.md', '--kind', 'text')


def refused(capsys, *words):
  """The last line of stderr of a command that ends with code 2."""
  try:
    code = __main__.main(words)
  except SystemExit as stopped:
    code = stopped.code
  told = capsys.readouterr().err
  assert code == 2 and 'Traceback' not in told
  return told.strip().splitlines()[-1]


@pytest.mark.parametrize('words', [
  ('export', '--workdir', 'W', '--run', 'sft', '--out'), ('run', FILE, '--workdir', 'W', '--data'),
  ('sample', '--workdir', 'W', '--run', 'sft', '--data'), (*SHOWN, '--data'), (*SHOWN, '--out'),
  ('preflight', FILE, 'sft', '--topology', 'cpu:1', '--json')])
def test_what_must_be_local_is_not_made_of_a_name_in_a_store(capsys, words):
  last = refused(capsys, *words, 'gs://bucket/x')
  assert f'{words[-1]}: gs://bucket/x: must be a local' in last


def test_texts_of_a_store_keep_their_scheme():
  top, *_ = arguments.parser()
  words = ['perplexity', '--model', 'm', '--text', 'gs://bucket/x', '--text', 'y']
  assert [str(text) for text in top.parse_args(words).text] == ['gs://bucket/x', 'y']


def test_a_scheme_that_is_none_is_refused():
  with pytest.raises(argparse.ArgumentTypeError, match='https://x/y: must be a local path, or gs:'):
    paths.anywhere('https://x/y')
  assert isinstance(paths.local('x'), pathlib.Path)


@pytest.mark.parametrize('words', [
  ('run', FILE, '--workdir'), ('sweep', 'experiments/kl_sweep.py', '--workdir'),
  ('sample', '--run', 'sft', '--workdir'), ('export', '--out', 'x', '--run', 'sft', '--workdir'),
  ('perplexity', '--text', 'x', '--run', 'sft', '--workdir'), ('report',),
  ('export', '--workdir', 'W', '--run', 'sft', '--out'), ('run', FILE, '--data')])
def test_an_empty_path_is_not_the_current_folder(capsys, tmp_path, monkeypatch, words):
  words = [str(pathlib.Path(word).absolute()) if word.endswith('.py') else word for word in words]
  monkeypatch.chdir(tmp_path)
  assert 'is empty, as of a shell variable that is not set' in refused(capsys, *words, '')
  assert not any(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder_whoever_reads_it(monkeypatch):
  monkeypatch.setenv('HOME', '/home/a')
  top, run, preflight, sweep = arguments.parser()
  words = ['--workdir=~/w', '--data=~/d']
  found = [vars(command.parse_args([FILE, *words])) for command in (run, sweep)]
  found += [vars(top.parse_args(['export', '--run', 'sft', '--workdir=~/w', '--out=~/d'])),
            vars(top.parse_args(['perplexity', '--text=~/w'])),
            vars(preflight.parse_args([FILE, 'sft', '--topology', 'cpu:1', '--json=~/w'])),
            vars(top.parse_args([*SHOWN, '--data=~/d', '--out=~/w', '--model=~/m']))]
  paths_in = [str(path) for told in found for value in told.values()
              for path in (value if isinstance(value, list) else [value])
              if isinstance(path, pathlib.PurePath) and str(path) != FILE]
  assert sorted(paths_in) == ['/home/a/d'] * 4 + ['/home/a/m'] + ['/home/a/w'] * 6
  assert str(store.path('~/w')) == '/home/a/w' and str(store.path('gs://b/~')) == 'gs://b/~'


def test_what_is_below_a_file_is_told_in_a_line(capsys, tmp_path):
  plain = tmp_path / 'plain'
  plain.write_text('x')
  (tmp_path / 'w' / 'sft').mkdir(parents=True)
  (tmp_path / 'w' / 'sft' / 'config.json').write_text('{}')
  below = f'{plain}/x/y'
  for words in (
      ('run', FILE, '--workdir'), ('sweep', 'experiments/kl_sweep.py', '--workdir'),
      ('report',), ('export', '--workdir', str(tmp_path / 'w'), '--run', 'sft', '--out'),
      (*SHOWN, '--out'), ('preflight', FILE, 'gpt', '--topology', 'cpu:1', '--json')):
    last = refused(capsys, *words, below)
    assert last == f'{words[-1]} {below}: {plain} is a file, expected a folder'
  for words in ((*SHOWN, '--out'), ('preflight', FILE, 'gpt', '--topology', 'cpu:1', '--json')):
    last = refused(capsys, *words, str(tmp_path))
    assert last == f'{words[-1]} {tmp_path}: is a folder, expected a file'


def test_the_folder_of_json_is_made(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setattr(__main__.signal, 'signal', lambda *_: None)
  monkeypatch.setattr(preflight, 'preflight', lambda wish: {'fits': True})
  monkeypatch.setattr(preflight, 'text', lambda told: 'it fits')
  out = tmp_path / 'new' / 'told.json'
  words = ['preflight', FILE, 'gpt', '--topology', 'cpu:1', '--json', str(out)]
  assert __main__.main(words) == 0 and json.loads(out.read_text()) == {'fits': True}
