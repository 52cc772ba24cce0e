"""Rows, what is cut from them, and what a pipe sees."""

import io
import json

import numpy as np
import pytest
import rich.console

from rlhf_jax.runtime import board, metrics


def test_rows_are_json_without_nan_and_cut_back_on_opening(tmp_path):
  first = metrics.Metrics(tmp_path, 0)
  for step in (1, 2, 3):
    first.write(step, {
      'loss': np.float32(step / 2),
      'undefined': float('nan'),
      'step_seconds': 0.1
    })
  first.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 4, "lo')
  metrics.Metrics(tmp_path, 2).close()
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert rows == [{
    'step': s,
    'loss': s / 2,
    'undefined': None,
    'step_seconds': 0.1
  } for s in (1, 2)]
  assert metrics.timeless(rows[0]) == {'step': 1, 'loss': 0.5, 'undefined': None}


@pytest.mark.parametrize('damage', [b'\xff\xfe\n', b'[1]\n', b'{"loss": 1}\n', b'\n'])
def test_a_line_that_is_no_row_is_cut(tmp_path, damage):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 2}\n')
  metrics.cut_back(path, 5)
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_tensorboard_is_purged_on_resume(tmp_path):
  """The events tell a reader to drop what the stopped process wrote above the checkpoint."""
  from tensorboardX.proto import event_pb2
  for step in (0, 2):
    writer = metrics.Metrics(tmp_path, step)
    for t in range(step + 1, step + 4):
      writer.write(t, {'loss': 1.0})
    writer.close()
  starts, steps = [], []
  for file in sorted((tmp_path / 'tensorboard').iterdir()):
    data, at = file.read_bytes(), 0
    while at < len(data):
      length = int.from_bytes(data[at:at + 8], 'little')
      event = event_pb2.Event.FromString(data[at + 12:at + 12 + length])
      if event.HasField('session_log') and event.session_log.status == 1:
        starts.append(event.step)
      steps += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
      at += 16 + length
  assert starts == [3]
  assert sorted(steps) == [(t, 'loss', 1.0) for t in (1, 2, 3, 3, 4, 5)]


def test_a_pipe_sees_plain_lines(capsys, monkeypatch):
  monkeypatch.setattr(metrics, 'console', metrics.rich.console.Console(highlight=False, width=200))
  monkeypatch.setattr(metrics, 'PLAIN_SECONDS', 0.0)
  progress = metrics.Progress('sft', 0, 3, ('loss', 'kl'))
  progress.show(1, {'loss': 2.5, 'kl': None, 'tokens_per_second': 12345.0})
  progress.show(3, {'loss': 2.25, 'kl': 0.5})
  progress.close()
  first, last = capsys.readouterr().out.splitlines()
  assert first.startswith('sft  1/3  loss 2.500  12.3k tokens/s  ') and first.endswith(' left')
  assert last.startswith('sft  3/3  loss 2.250  kl 0.500  ') and last.endswith(' taken')


def test_times_and_sizes_are_short():
  assert [metrics.clock(s) for s in (0, 62, 3662, float('inf'))] == ['0:00', '1:02', '1:01:02', '?']
  assert [metrics.short(v) for v in (7, 1234, 5.6e6, 7e9)] == ['7', '1.2k', '5.6M', '7.0G']


def test_cutting_back_keeps_rows_with_line_separators(tmp_path):
  """json leaves U+2028 and U+0085 as they are; str.splitlines would split there."""
  path = tmp_path / 'samples.jsonl'
  rows = [{'step': i, 'response': 'a\u2028b\x85c'} for i in (1, 2, 3)]
  path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 'utf-8')
  metrics.cut_back(path, 2)
  assert [json.loads(line) for line in path.read_text('utf-8').strip('\n').split('\n')] == rows[:2]
  assert metrics.last_row(path) == rows[1]


def test_the_point_at_work_is_seen_in_a_terminal_that_is_lower_than_the_table(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(board, 'console', rich.console.Console(
    file=out, force_terminal=True, height=20, width=90))
  with board.Board({f'point_{i:02}': 3 for i in range(60)}) as points:
    for name in [f'point_{i:02}' for i in range(40)]:
      points.ended(name, 'finished')
    out.truncate(0)
    points.progress('point_40', 0, 3, ())
    points.show('point_40', 1, {'score': 0.5}, pace=2.0)
    seen = out.getvalue()
    out.truncate(0)
  assert 'point_40' in seen and '14 of 60 points' in seen and 'point_00' not in seen
  assert all(f'point_{i:02}' in out.getvalue() for i in range(60))  # all of them at the end


def test_a_sweep_that_goes_on_counts_the_time_of_what_is_left_alone(capsys, monkeypatch):
  monkeypatch.setattr(board, 'PLAIN_SECONDS', 0.0)
  points = board.Board({'a': 10, 'b': 10, 'c': 10}, finished=['a', 'c'])
  with points:
    points.progress('b', 0, 10, ('score',))
    points.show('b', 4, {'score': 0.5}, pace=2.0)
    points.ended('b', 'finished')
  assert '4/10  score 0.500  0:12 left  (point 3 of 3, all in 0:12)' in capsys.readouterr().out
