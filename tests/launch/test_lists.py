"""launch/slurm.sh: how it reads a line of its list, without a Slurm."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize('end', ['\n', '\r\n', ''])
def test_a_line_is_its_words_whatever_ends_it(tmp_path, end):
  srun = tmp_path / 'srun'
  srun.write_text('#!/bin/sh\nshift 4\nfor word; do echo "<$word>"; done\n')
  srun.chmod(0o755)
  (tmp_path / 'list').write_bytes(f"run a.py{end or chr(10)}run b.py --x 'y z' $HOME{end}".encode())
  done = subprocess.run(
    ['bash', 'launch/slurm.sh', tmp_path / 'list'], cwd=ROOT, capture_output=True, text=True,
    env=os.environ | {'PATH': f"{tmp_path}:{os.environ['PATH']}", 'SLURM_ARRAY_TASK_ID': '1',
                      'SLURM_JOB_ID': '7'})
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[1:] == ['<run>', '<b.py>', '<--x>', "<'y>", '<z\'>', '<$HOME>']
