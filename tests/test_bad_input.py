"""What a user's mistakes look like from outside: exit code 2, and the last line of stderr says what
to mend.
"""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENT = """
from rlhf_jax.configs import Language, Model, Reward, Source, Tokenizer
small = Model(layers=1, width=16, heads=2, context=32)
runs = {
  'gpt': Language(data=(Source('text', ('text.jsonl',)),), tokenizer=Tokenizer(300), model=small,
                  length=32, batch=2, steps=2),
  'sft': Language(init_from='gpt', data=(Source('demonstrations', ('bad.jsonl',)),), batch=1,
                  prompt_length=8, response_length=8),
  'reward': Reward(init_from='gpt', data=(Source('rankings', ('bad.jsonl',)),), batch=1,
                   prompt_length=8, response_length=8),
}
"""
TEXT = ''.join(json.dumps({'text': f'the cat number {i} sat on the mat and ate'}) + '\n'
               for i in range(60))
CASES = {
  'an empty file': ('sft', b'', ('bad.jsonl',)),
  'not UTF-8': ('sft', b'{"prompt": "a", "response": "\xff"}\n', ('bad.jsonl:1', 'UTF-8')),
  'a missing field': ('sft', b'{"prompt": "a"}\n', ('bad.jsonl:1', 'response')),
  'ranks of the wrong length': (
    'reward', b'{"prompt": "a", "completions": ["b", "c"], "ranks": [1]}\n',
    ('bad.jsonl:1', 'ranks')),
  'all ties': ('reward', b'{"prompt": "a", "completions": ["b", "c"], "ranks": [1, 1]}\n',
               ('bad.jsonl:1', 'ranks')),
  'a prompt above the limit': (
    'sft', b'{"prompt": "the cat sat and sat and sat and sat and sat", "response": "b"}\n',
    ('bad.jsonl:1', 'prompt')),
}


def run(folder, *words):
  return subprocess.run([sys.executable, '-m', 'rlhf_jax', 'run', str(folder / 'e.py'), *words,
                         '--workdir', str(folder / 'w'), '--data', str(folder)], cwd=ROOT,
                        capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
  """A folder whose first run is finished."""
  folder = tmp_path_factory.mktemp('begun')
  (folder / 'e.py').write_text(EXPERIMENT)
  (folder / 'text.jsonl').write_text(TEXT)
  done = run(folder, 'gpt')
  assert done.returncode == 0, done.stderr
  return folder


@pytest.mark.parametrize('name', CASES)
def test_a_bad_file_is_named_and_nothing_is_lost(begun, name):
  of, content, wanted = CASES[name]
  (begun / 'bad.jsonl').write_bytes(content)
  before = (begun / 'w' / 'gpt' / 'metrics.jsonl').read_bytes()
  done = run(begun, of)
  last = done.stderr.strip().splitlines()[-1]
  assert done.returncode == 2, done.stderr
  assert all(word in last for word in wanted), last
  assert 'Traceback' not in done.stderr
  assert (begun / 'w' / 'gpt' / 'metrics.jsonl').read_bytes() == before


def test_a_missing_file_of_a_later_run_is_told_before_the_first_step(tmp_path):
  (tmp_path / 'e.py').write_text(EXPERIMENT)
  (tmp_path / 'text.jsonl').write_text(TEXT)
  done = run(tmp_path, 'sft')
  assert done.returncode == 2 and 'bad.jsonl' in done.stderr.strip().splitlines()[-1]
  assert not (tmp_path / 'w' / 'gpt').exists()


def flip(checkpoint):
  """Other bytes of the same number in every file of arrays."""
  files = [path for path in checkpoint.rglob('*') if path.is_file() and path.stat().st_size > 100]
  assert files
  for path in files:
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


def test_a_corrupt_checkpoint_is_not_used_and_none_left_stops_the_run(tmp_path):
  (tmp_path / 'e.py').write_text(EXPERIMENT)
  (tmp_path / 'text.jsonl').write_text(TEXT)
  words = ('gpt', '--gpt.steps', '6', '--checkpoint-seconds', '0')
  assert run(tmp_path, *words).returncode == 0
  folder = tmp_path / 'w' / 'gpt'
  losses = lambda: [json.loads(row)['loss'] for row in (folder / 'metrics.jsonl').open()]
  whole = losses()
  steps = sorted(int(path.name) for path in (folder / 'checkpoints').iterdir())
  assert steps == [5, 6]

  (folder / 'finished.json').unlink()  # as if killed before its last file
  flip(folder / 'checkpoints' / '6')
  done = run(tmp_path, *words)
  assert done.returncode == 0, done.stderr
  assert 'checkpoints/6 is damaged' in done.stderr
  assert 'trying the one before it, 5' in done.stderr
  assert 'going on after step 5 of 6' in done.stdout
  assert (folder / 'finished.json').exists() and losses() == whole

  (folder / 'finished.json').unlink()
  for path in (folder / 'checkpoints').iterdir():
    flip(path)
  done = run(tmp_path, *words)
  last = done.stderr.strip().splitlines()[-1]
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert 'no checkpoint is whole' in last and f'delete {folder.resolve()} to train it again' in last
