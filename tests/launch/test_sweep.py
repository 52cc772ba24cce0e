"""launch/sweep.sh: what it would start, and in which order."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILE = 'experiments/kl_sweep.py'


def dry(path, file=FILE, options=('--dry-run',)):
  done = subprocess.run(['bash', 'launch/sweep.sh', file, 'runs/a', *options], cwd=ROOT,
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
  last = dry(f'{tmp_path}:{here}', options=('--gpus-per-node=1', '--dry-run'))[-1]
  assert '--gpus-per-node=1' in last and '--dry-run' not in last
  assert not asked.exists()


def test_what_any_point_rests_on_is_made_first(tmp_path):
  (tmp_path / 'sbatch').write_text('#!/bin/sh\n')
  (tmp_path / 'sbatch').chmod(0o755)
  here = f'{tmp_path}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin'
  said = dry(here, 'experiments/overoptimization.py')
  runs = next(line for line in said if line.startswith('run ')).split()
  assert {'reward', 'reward_large', 'reward_300_2'} < set(runs)
  assert runs.index('gpt_large') < runs.index('sft_large') < runs.index('reward_large_1')


def test_a_sweep_that_rests_on_no_run_starts_with_its_points(tmp_path):
  file = tmp_path / 'folders.py'
  file.write_text("""
from rlhf_jax.configs import *
runs = {'ppo': PPO(policy='models/a', reward='x.py:f', prompts=(Source('prompts', ('p',)),),
                   evaluation_prompts=(Source('prompts', ('p',)),))}
sweep = Sweep(base='ppo', grid=({'kl_coef': (0.0, 0.1)},))
""")
  here = f'{pathlib.Path(sys.executable).parent}:/usr/bin:/bin'
  (tmp_path / 'sbatch').write_text('#!/bin/sh\n')
  (tmp_path / 'sbatch').chmod(0o755)
  said = dry(f'{tmp_path}:{here}', str(file))
  assert not any(line.startswith('run ') for line in said)
  only, = (line for line in said if line.startswith('sbatch'))
  assert '--array=0-1 ' in only and '--dependency' not in only
  said = dry(without_slurm(tmp_path), str(file))
  assert len(said) == 2 and all(' sweep ' in line for line in said)


def without_slurm(tmp_path):
  """A PATH on which there is no sbatch."""
  folder = tmp_path / 'plain'
  folder.mkdir()
  for name in ('bash', 'dirname', 'sh'):
    (folder / name).symlink_to(shutil.which(name))
  return f'{folder}:{pathlib.Path(sys.executable).parent}'


@pytest.mark.parametrize(('codes', 'made', 'last'), [
  ({1: 1}, 3, 1), ({1: 2}, 1, 2), ({2: 143}, 2, 143), ({2: 130}, 2, 130), ({}, 3, 0)])
def test_without_slurm_a_failed_point_keeps_no_other_from_being_made(tmp_path, codes, made, last):
  """Bad input and a wish to stop do."""
  path = without_slurm(tmp_path)
  asked = tmp_path / 'asked'
  python = tmp_path / 'plain' / 'python3'
  ends = ' '.join(f'p{number}) exit {code};;' for number, code in codes.items())
  python.write_text(f"""#!/bin/sh
case "$*" in
  *--list) echo p1; echo p2; echo p3;;
  -c*) echo;;
  *) for word; do :; done; echo $word >>{asked}; case $word in {ends} esac;;
esac
""")
  python.chmod(0o755)
  launch = tmp_path / 'launch'
  launch.mkdir()
  shutil.copy(ROOT / 'launch' / 'sweep.sh', launch)
  done = subprocess.run(['bash', 'launch/sweep.sh', 'f.py', 'with a blank'], cwd=tmp_path,
                        capture_output=True, text=True, env=os.environ | {'PATH': path})
  assert done.returncode == last, done.stderr
  assert asked.read_text().split() == [f'p{number + 1}' for number in range(made)]


def test_a_signal_to_the_script_reaches_the_program_which_saves(tmp_path):
  """And no further point is begun."""
  path = without_slurm(tmp_path)
  python = tmp_path / 'plain' / 'python3'
  log = tmp_path / 'log'
  (tmp_path / 'plain' / 'sleep').symlink_to(shutil.which('sleep'))
  python.write_text(f"""#!/bin/sh
case "$*" in
  *--list) echo p1; echo p2;;
  -c*) echo;;
  *) trap 'sleep 0.3; echo saved >>{log}; exit 143' TERM
     echo begun >>{log}
     while :; do sleep 0.05; done;;
esac
""")
  python.chmod(0o755)
  (tmp_path / 'launch').mkdir()
  shutil.copy(ROOT / 'launch' / 'sweep.sh', tmp_path / 'launch')
  process = subprocess.Popen(['bash', 'launch/sweep.sh', 'f.py', 'w'], cwd=tmp_path,
                             stdout=subprocess.DEVNULL, env=os.environ | {'PATH': path})
  while not log.exists() or not log.read_text():
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  assert process.wait(20) == 143
  assert log.read_text().split() == ['begun', 'saved']


def test_words_behind_two_dashes_are_the_programs(tmp_path):
  """With and without Slurm; they change the points and what those rest on, too."""
  bin_ = pathlib.Path(sys.executable).parent
  (tmp_path / 'sbatch').write_text('#!/bin/sh\n')
  (tmp_path / 'sbatch').chmod(0o755)
  words = ('--dry-run', '--mem=1G', '--', '--ppo_ptx.reward', 'x.py:f', '--data', 'X')
  plain = dry(without_slurm(tmp_path), options=(*words[:1], *words[2:]))
  slurm = dry(f'{tmp_path}:{bin_}:/usr/bin:/bin', options=words)
  further = ' '.join(words[3:])
  assert slurm[1] == f'run {FILE} gpt sft --workdir runs/a {further}'
  lines = [line for line in slurm if line.startswith('sweep ')]
  assert len(lines) == 18
  assert all(f' --workdir runs/a {further} --point kl_coef' in line for line in lines)
  assert all('--mem=1G' in line and further not in line
             for line in slurm if line.startswith('sbatch'))
  assert [line.split(' -m rlhf_jax ')[1] for line in plain] == [slurm[1], *lines]


def test_without_slurm_its_options_are_refused_by_name(tmp_path):
  done = subprocess.run(
    ['bash', 'launch/sweep.sh', FILE, 'runs/a', '--dry-run', '--ppo.updates', '3'], cwd=ROOT,
    capture_output=True, text=True, env=os.environ | {'PATH': without_slurm(tmp_path)})
  assert done.returncode == 2 and not done.stdout
  assert '--ppo.updates 3: taken for options of sbatch' in done.stderr
  assert 'stand behind --' in done.stderr


def test_the_cluster_behind_a_jobs_number_is_no_part_of_it(tmp_path):
  bin_ = pathlib.Path(sys.executable).parent
  sbatch = tmp_path / 'sbatch'
  sbatch.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\necho "12;here"\n')
  sbatch.chmod(0o755)
  done = subprocess.run(['bash', 'launch/sweep.sh', FILE, tmp_path / 'w'], cwd=ROOT, text=True,
                        capture_output=True,
                        env=os.environ | {'PATH': f'{tmp_path}:{bin_}:/usr/bin:/bin'})
  assert done.returncode == 0, done.stderr
  second = (tmp_path / 'asked').read_text().splitlines()[1].split()
  assert '--dependency=afterok:12' in second


def asked_of_slurm(tmp_path, *words):
  """The commands that a stub of sbatch is given, by a copy of the launchers in `tmp_path`."""
  (tmp_path / 'launch').mkdir(exist_ok=True)
  shutil.copy(ROOT / 'launch' / 'sweep.sh', tmp_path / 'launch')
  (tmp_path / 'sbatch').write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\necho 12\n')
  python = tmp_path / 'python3'
  python.write_text('#!/bin/sh\ncase "$*" in *--list) echo p1; echo p2;; *) echo gpt sft;; esac\n')
  for program in (python, tmp_path / 'sbatch'):
    program.chmod(0o755)
  done = subprocess.run(['bash', 'launch/sweep.sh', 'f.py', *words], cwd=tmp_path, text=True,
                        capture_output=True, env=os.environ | {'PATH': f'{tmp_path}:/usr/bin:/bin'})
  asked = tmp_path / 'asked'
  return done, asked.read_text().splitlines() if asked.exists() else []


def test_lists_of_a_workdir_in_a_store_lie_on_a_disk(tmp_path):
  done, asked = asked_of_slurm(tmp_path, 'gs://bucket/a/kl')
  assert done.returncode == 0, done.stderr
  lists = tmp_path / 'runs' / 'bucket' / 'a' / 'kl' / 'jobs'
  assert (lists / 'bases').read_text() == 'run f.py gpt sft --workdir gs://bucket/a/kl\n'
  assert (lists / 'points').read_text().splitlines() == [
    f'sweep f.py --workdir gs://bucket/a/kl --point p{number}' for number in (1, 2)]
  assert not (tmp_path / 'gs:').exists()
  for command, name in zip(asked, ('bases', 'points'), strict=True):
    assert command.endswith(f' launch/slurm.sh {lists.relative_to(tmp_path) / name}')


def test_points_wait_for_what_they_rest_on_whatever_else_was_asked(tmp_path):
  """Slurm takes the last of two options of a name."""
  done, (first, second) = asked_of_slurm(tmp_path, 'w', '--dependency=afterok:3')
  assert done.returncode == 0, done.stderr
  last = lambda line: [word for word in line.split() if word.startswith('--dependency')][-1]
  assert last(first) == '--dependency=afterok:3' and last(second) == '--dependency=afterok:12'


@pytest.mark.parametrize('words', [('--array=0-1%1',), ('-a', '0-1%1'), ('--array', '%1')])
def test_an_array_of_the_users_is_refused(tmp_path, words):
  """It would count for what the points rest on too, whose list has one line."""
  done, asked = asked_of_slurm(tmp_path, 'w', *words)
  assert done.returncode == 2 and not asked and not (tmp_path / 'w').exists()
  assert 'ArrayTaskThrottle' in done.stderr


def test_under_slurm_blanks_are_refused(tmp_path):
  (tmp_path / 'sbatch').write_text('#!/bin/sh\n')
  (tmp_path / 'sbatch').chmod(0o755)
  here = f'{tmp_path}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin'
  done = subprocess.run(['bash', 'launch/sweep.sh', FILE, 'runs/a b', '--dry-run'], cwd=ROOT,
                        capture_output=True, text=True, env=os.environ | {'PATH': here})
  assert done.returncode == 2 and not done.stdout
  assert 'must not hold blanks' in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_without_a_sweep_is_told_in_one_line():
  done = subprocess.run(['bash', 'launch/sweep.sh', 'experiments/quickstart.py', 'runs/a',
                         '--dry-run'], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and not done.stdout
  assert 'quickstart.py: sets no `sweep`' in done.stderr and 'Traceback' not in done.stderr
