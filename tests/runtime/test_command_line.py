"""What a user meets: exit codes, the last line of stderr, what goes to a pipe."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from rlhf_jax import __main__
from rlhf_jax.runtime import checkpoint, loop, workdir

FILE = """
from rlhf_jax.configs import *
runs = {'gpt': Language(steps=8, evaluate_every=3, optimizer=Optimizer(learning_rate=0.1)),
        'sft': Language(steps=4, init_from='gpt')}
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(FILE)
  return str(path)


@pytest.fixture
def main(monkeypatch, capfd):
  """Runs a command line; returns (exit code, stdout, stderr)."""
  monkeypatch.setattr(loop.Stopping, 'install', lambda self: None)
  monkeypatch.setattr(__main__, '_report',
                      lambda options: print(options.workdir / 'report.html') or 0)

  def call(*words):
    try:
      code = __main__.main([str(w) for w in words])
    except SystemExit as stopped:
      code = stopped.code
    out, err = capfd.readouterr()
    return code, out, err
  return call


def last(text):
  return text.rstrip('\n').split('\n')[-1]


def test_list_is_one_name_a_line(main, file):
  assert main('list', file) == (0, 'gpt\nsft\n', '')


def test_run_ends_with_table_and_report(main, faults, file, tmp_path):
  code, out, _ = main('run', file, '--workdir', tmp_path / 'w', '--sft.steps', '3')
  assert code == 0 and last(out) == str(tmp_path / 'w' / 'report.html')
  told = json.loads((tmp_path / 'w' / 'results.json').read_text())
  assert told['seconds'].keys() == {'gpt', 'sft'} and told['runs']['sft']['loss'] > 0
  assert json.loads((tmp_path / 'w' / 'sft' / 'finished.json').read_text())['steps'] == 3
  code, out, _ = main('run', file, '--workdir', tmp_path / 'w', '--sft.steps=3')
  assert code == 0 and 'gpt: finished' in out and 'sft: finished' in out


@pytest.mark.parametrize('words', ['FILE gpt --workdir W', 'FILE --workdir W gpt',
                                   '--workdir W FILE --gpt.steps 8 gpt --seed 0'])
def test_only_what_is_named_and_needed(main, faults, file, tmp_path, words):
  words = words.replace('FILE', file).replace('W', str(tmp_path / 'w')).split()
  assert main('run', *words)[0] == 0
  assert (tmp_path / 'w' / 'gpt' / 'finished.json').exists()
  assert not (tmp_path / 'w' / 'sft').exists()


def test_seed_is_passed_on(main, faults, file, tmp_path):
  assert main('run', file, '--workdir', tmp_path / 'w', '--seed', '5')[0] == 0
  assert workdir.config_of(tmp_path / 'w' / 'sft').seed == 5


@pytest.mark.parametrize('words, said', [
  (['run', 'FILE', 'sfd', '--workdir', 'W'], "no run 'sfd'; did you mean sft?"),
  (['run', 'FILE', '--workdir', 'W', '--sft.stps', '3'], 'did you mean steps'),
  (['run', 'FILE', '--workdir', 'W', '--sft.steps', 'x'], "'x' is not int"),
  (['run', 'FILE', '--workdir', 'W', '--data', 'W/none'], 'no such folder'),
  (['run', 'FILE', '--workdir', 'FILE'], 'is a file, expected a folder'),
  (['run', 'FILE', '--workdir', 'W/a[1]'], 'below a path with [ in it'),
  (['run', 'FILE'], 'required: --workdir'),
  (['run'], 'required: FILE'),
  (['run', 'FILE.py', '--workdir', 'W'], 'no such experiment file'),
  (['run', 'FILE', '--workdir', 'W', '--sede', '3'], 'unrecognized arguments: --sede'),
  (['rum', 'FILE'], "invalid choice: 'rum'"),
  (['sample', '--workdir', 'W', '--run', 'sft'], 'w: no such folder'),
  (['export', '--workdir', 'W', '--run', 'sft', '--out', 'W'], 'w: no such folder'),
  (['run', 'FILE', '--workdir', 'W', '--gpt.model.heads', '3'],
   "runs['gpt']: model.heads = 3 does not divide model.width"),
  (['run', 'FILE', '--workdir', 'W', '--checkpoint-seconds', 'nan'],
   "--checkpoint-seconds: 'nan' is not a number of at least 0"),
  (['sweep', 'FILE', '--workdir', 'W', '--checkpoint-seconds', '-1'],
   "--checkpoint-seconds: '-1' is not a number of at least 0"),
  (['run', 'FILE', '--workdir', 'W', '--profile', '-1'],
   "--profile: '-1' is not a whole number of at least 0"),
  (['preflight', 'FILE', 'gpt', '--topology', 'cpu:1', '--hbm', 'nan'],
   "--hbm: 'nan' is not a number of at least 0"),
  (['sweep'], 'required: FILE'),
  ([], 'required: COMMAND'),
])
def test_bad_input_is_the_last_line_and_exit_code_2(main, faults, file, tmp_path, words, said):
  words = [w.replace('FILE', file).replace('W', str(tmp_path / 'w'), 1) if w[0] in 'FW' else w
           for w in words]
  code, _, err = main(*words)
  assert code == 2
  assert said in last(err)
  assert 'Traceback' not in err
  assert not (tmp_path / 'w').exists()


def test_an_option_of_the_file_has_any_name_and_any_comment(main, faults, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text("""
from rlhf_jax.configs import *
def runs(
  file: str,  # 50 % of it is read
  runs: int = 2,  # steps of each
):
  return {file: Language(steps=runs)}
""")
  code, out, _ = main('run', path, '--help')
  assert code == 0 and '50 % of it is read' in out and '--FILE.steps' in out
  assert main('run', path, '--file', 'mine', '--runs', '3', '--workdir', tmp_path / 'w')[0] == 0
  assert workdir.config_of(tmp_path / 'w' / 'mine').steps == 3


def test_another_configuration_loses_nothing(main, faults, file, tmp_path):
  assert main('run', file, 'gpt', '--workdir', tmp_path / 'w')[0] == 0
  before = {p: p.read_bytes() for p in (tmp_path / 'w').rglob('*') if p.is_file()}
  code, _, err = main('run', file, 'sft', '--workdir', tmp_path / 'w', '--gpt.batch', '5')
  assert code == 2 and 'batch is 32 there and 5 now' in last(err) and '--gpt.batch 32' in last(err)
  assert {p: p.read_bytes() for p in (tmp_path / 'w').rglob('*') if p.is_file()} == before


def test_1_in_the_file_and_1_as_an_option_are_the_same(main, faults, file, tmp_path):
  pathlib.Path(file).write_text(FILE.replace('steps=8', 'steps=2, epochs=1').replace(
    'steps=4', 'steps=2'))
  assert main('run', file, '--workdir', tmp_path / 'w')[0] == 0
  code, out, err = main('run', file, '--workdir', tmp_path / 'w', '--gpt.epochs', '1')
  assert code == 0 and 'gpt: finished' in out and 'sft: finished' in out, err


def test_a_loss_that_is_not_finite_is_exit_code_1(main, faults, file, tmp_path):
  faults.nan_at = 4
  code, _, err = main('run', file, '--workdir', tmp_path / 'w', '--checkpoint-seconds', '0')
  assert code == 1 and last(err).startswith('gpt: loss is nan at step 5 (batch 4')
  assert 'step 4' in last(err) and 'Traceback' not in err


def test_a_fault_of_the_program_keeps_its_traceback(main, faults, file, tmp_path):
  faults.batch = {2: ZeroDivisionError('a bug')}
  with pytest.raises(ZeroDivisionError):
    main('run', file, '--workdir', tmp_path / 'w')


@pytest.mark.parametrize('where', ['checkpoint', 'metrics', 'export'])
def test_no_space_is_told_and_nothing_is_lost(main, faults, file, tmp_path, monkeypatch, where):
  words = ['run', file, 'gpt', '--checkpoint-seconds', '0', '--workdir']
  assert main(*words, tmp_path / 'whole')[0] == 0
  with monkeypatch.context() as full:
    if where == 'checkpoint':
      def save(self, path, state, save=checkpoint.ocp.StandardCheckpointer.save):
        if pathlib.Path(path).name == '5':
          raise ValueError(f'RESOURCE_EXHAUSTED: Error writing "{path}": No space left on device')
        return save(self, path, state)
      full.setattr(checkpoint.ocp.StandardCheckpointer, 'save', save)
    elif where == 'metrics':
      def write(self, step, metrics, write=loop.Metrics.write):
        if step == 6:
          self._file.write('{"step": 6, "lo')
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, step, metrics)
      full.setattr(loop.Metrics, 'write', write)
    else:
      def export(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      full.setattr(checkpoint, 'export', export)
    code, _, err = main(*words, tmp_path / 'w')
  assert code == 2
  assert last(err).startswith(f'no space left on the disk of {tmp_path / "w"}')
  assert 'start the same command again' in last(err)
  faults.batch = {0: AssertionError('started from the beginning')}
  assert main(*words, tmp_path / 'w')[0] == 0
  for name in ('params', 'ema'):
    one, other = (checkpoint.load_parent(tmp_path / d / 'gpt', name).params['w']
                  for d in ('whole', 'w'))
    assert (one == other).all()


@pytest.mark.parametrize('words, option', [
  (['export', '--workdir', 'W', '--run', 'sft', '--out', 'OUT/model'], '--out'),
  (['data', 'OUT/none.jsonl', '--kind', 'text', '--out', 'OUT/card.json'], '--out'),
  (['preflight', 'FILE', 'gpt', '--topology', 'cpu:1', '--json', 'OUT/told.json'], '--json')])
def test_no_space_beside_the_workdir_names_what_did_not_fit(main, file, tmp_path, monkeypatch,
                                                            words, option):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  monkeypatch.setattr(__main__, f'_{words[0]}', full)
  out = tmp_path / 'out'
  out.mkdir()
  words = [w.replace('OUT', str(out)).replace('FILE', file) for w in words]
  code, _, err = main(*(str(tmp_path / 'w') if w == 'W' else w for w in words))
  assert code == 2 and 'Traceback' not in err
  assert last(err).startswith(f'no space left on the disk of {out} (')
  assert f'choose another {option}, then' in last(err)


@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_without_access_is_told(main, faults, file, tmp_path, monkeypatch, number):
  def make(path):
    raise OSError(number, os.strerror(number), str(path))
  monkeypatch.setattr(__main__.store, 'make', make)
  code, _, err = main('run', file, '--workdir', tmp_path / 'w')
  assert code == 2 and 'Traceback' not in err
  assert last(err) == (f'{tmp_path / "w"}: {os.strerror(number)}; give access to it, or name '
                       'another place')


@pytest.mark.parametrize('code, ordinary', [(143, False), (130, False), (2, True)])
def test_a_signal_ends_the_process_without_the_libraries_exits(code, ordinary):
  """A signal that came while XLA compiled ended most processes with a crash at exit, 139."""
  program = f"""
import atexit, runpy, sys
from rlhf_jax import arguments
def parser():
  print('told')
  raise SystemExit({code})
arguments.parser = parser
atexit.register(print, 'ordinary')
sys.argv = ['rlhf_jax', 'list']
runpy.run_module('rlhf_jax', run_name='__main__')
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                        cwd=pathlib.Path(__file__).parents[2])
  assert done.returncode == code
  assert done.stdout.split() == ['told'] + ['ordinary'] * ordinary


def test_help_explains_without_a_file_and_lists_every_field_with_one(main, file):
  code, out, _ = main('--help')
  assert code == 0 and 'experiments/quickstart.py' in out
  assert main('run', '--help')[0] == 0
  code, out, _ = main('run', file, '--help', '--sft.steps', '77')
  assert code == 0
  assert '--gpt.optimizer.b2' in out and 'int = 77  # optimizer steps' in out
  assert len([x for x in out.splitlines() if x.startswith('  --sft.')]) > 50


def test_help_is_shown_where_there_are_no_arrows():
  done = subprocess.run([sys.executable, '-m', 'rlhf_jax', '--help'], capture_output=True,
                        env=os.environ | {'PYTHONIOENCODING': 'latin-1'},
                        cwd=pathlib.Path(__file__).parents[2])
  assert done.returncode == 0, done.stderr
  assert b'pretrain ? SFT' in done.stdout and b'--kind rankings' in done.stdout


def test_profile_leaves_a_trace(main, faults, file, tmp_path):
  assert main('run', file, 'gpt', '--workdir', tmp_path / 'w', '--profile', '2')[0] == 0
  traces = [p.name for p in (tmp_path / 'w' / 'gpt' / 'profile').rglob('*') if p.is_file()]
  assert any(name.endswith('.xplane.pb') for name in traces)
  assert any('perfetto' in name for name in traces)


def test_sample_in_a_pipe_is_the_plain_text(main, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'w').mkdir()
  from rlhf_jax.model.responses import Response
  from rlhf_jax.runtime import sample
  shown = [sample.Sample('p', Response('one two', (1, 2), -3.0, True), 0.5, 1.5),
           sample.Sample('p', Response('three', (3,), -1.0, False), None, None)]
  monkeypatch.setattr(sample, 'sample', lambda *_: shown)
  assert main('sample', '--workdir', 'w', '--run', 'r') == (0, 'one two\nthree\n', '')
  import io

  import rich.console
  out = io.StringIO()
  monkeypatch.setattr(sample, 'console', rich.console.Console(
    force_terminal=True, color_system=None, file=out, width=100))
  assert main('sample', '--workdir', 'w', '--run', 'r')[0] == 0
  assert 'log-prob -3.00 · 2 tokens · reward 0.500 · KL 1.50 nats' in out.getvalue()
  assert 'three …' in out.getvalue() and 'log-prob -1.00 · 1 tokens\n' in out.getvalue()
