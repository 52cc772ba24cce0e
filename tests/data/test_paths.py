"""Paths as words: what they may be is told before anything is read, made or written."""

import argparse
import pathlib

import pytest

from rlhf_jax import __main__, arguments
from rlhf_jax.data import paths

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
