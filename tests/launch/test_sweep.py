"""launch/sweep.sh: what it would start, and in which order."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
FILE = 'experiments/kl_sweep.py'


def dry(path, file=FILE):
  done = subprocess.run(['bash', 'launch/sweep.sh', file, 'runs/a', '--dry-run'], cwd=ROOT,
                        capture_output=True, text=True, env=os.environ | {'PATH': path})
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_base_runs_first_then_a_job_a_point(tmp_path):
  """With a Slurm that would say so if it were asked, and without one."""
  here = f'{pathlib.Path(sys.executable).parent}:/usr/bin:/bin'
  asked = tmp_path / 'asked'
  sbatch = tmp_path / 'sbatch'
  sbatch.write_text(f'#!/bin/sh\ntouch {asked}\n')
  sbatch.chmod(0o755)
  said = dry(f'{tmp_path}:{here}')
  points = [line for line in said if line.startswith('sweep ')]
  assert len(points) == len(set(points)) == 18
  first, second = (line for line in said if line.startswith('sbatch'))
  assert said[1] == f'run {FILE} gpt sft rankings reward --workdir runs/a'
  assert '--array=0-17 --dependency=afterok:' in second and '--dependency' not in first
  assert not asked.exists() and not (ROOT / 'runs' / 'a').exists()


def test_what_any_point_rests_on_is_made_first(tmp_path):
  (tmp_path / 'sbatch').write_text('#!/bin/sh\n')
  (tmp_path / 'sbatch').chmod(0o755)
  here = f'{tmp_path}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin'
  said = dry(here, 'experiments/overoptimization.py')
  runs = next(line for line in said if line.startswith('run ')).split()
  assert {'reward', 'reward_large', 'reward_300_2'} < set(runs)
  assert runs.index('gpt_large') < runs.index('sft_large') < runs.index('reward_large_1')


def test_a_file_without_a_sweep_is_told_in_one_line():
  done = subprocess.run(['bash', 'launch/sweep.sh', 'experiments/quickstart.py', 'runs/a',
                         '--dry-run'], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and not done.stdout
  assert 'quickstart.py: sets no `sweep`' in done.stderr and 'Traceback' not in done.stderr
