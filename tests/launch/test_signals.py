"""What the launchers do with a signal and with a job that saved, with stubs in place of Slurm."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Counts what it hears for a second after the first signal.
HEARS = """
import pathlib, signal, sys, time
heard = []
for number in (signal.SIGTERM, signal.SIGINT):
  signal.signal(number, lambda number, frame: heard.append(signal.Signals(number).name))
file = pathlib.Path(sys.argv[1]) / str(__import__('os').environ['JAX_PROCESS_ID'])
file.write_text('ready')
while not heard:
  time.sleep(0.05)
time.sleep(1)
file.write_text(' '.join(sorted(heard)))
sys.exit(143)
"""
# bash sets no trap for a signal that was ignored when it began, as in a job in the background.
HEARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def stub(tmp_path):
  """(name, script) puts a command in front of PATH; its environment."""
  folder = tmp_path / 'bin'
  folder.mkdir()

  def make(name, script):
    (folder / name).write_text(f'#!/bin/sh\n{script}\n')
    (folder / name).chmod(0o755)

  make.environment = os.environ | {'PATH': f'{folder}:/usr/bin:/bin'}
  return make


@pytest.mark.parametrize(('group', 'heard'), [(True, 'SIGINT SIGTERM'), (False, 'SIGTERM')])
def test_ctrl_c_interrupts_a_process_once(tmp_path, group, heard):
  """The terminal signals the whole group; a second SIGINT would end a process unsaved."""
  process = subprocess.Popen(
    [sys.executable, '-c', HEARING, 'bash', 'launch/local_processes.sh', '2', '--', sys.executable,
     '-c', HEARS, str(tmp_path)], cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
  files = [tmp_path / '0', tmp_path / '1']
  deadline = time.monotonic() + 60
  while not all(file.exists() and file.read_text() for file in files):
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.05)
  (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
  assert process.wait(60) == 143
  assert [file.read_text() for file in files] == [heard, heard]


@pytest.mark.parametrize(('array', 'name'), [
  ({'SLURM_ARRAY_JOB_ID': '7', 'SLURM_ARRAY_TASK_ID': '2'}, '7_2'), ({}, '7')])
def test_a_saved_element_queues_itself_again_and_no_other(tmp_path, stub, array, name):
  """The last element's SLURM_JOB_ID is that of the array, and squeue then answers for them all."""
  stub('srun', 'exit 143')
  stub('squeue', f'case "$*" in *--jobs={name}\\ *) echo RUNNING;; *) echo RUNNING; echo PENDING;; '
       'esac')
  stub('scontrol', f'echo "$@" >>{tmp_path}/asked')
  (tmp_path / 'list').write_text('run a\nrun b\nrun c\n')
  done = subprocess.run(['bash', 'launch/slurm.sh', str(tmp_path / 'list')], cwd=ROOT,
                        env=stub.environment | {'SLURM_JOB_ID': '7'} | array,
                        stdout=subprocess.PIPE, text=True)
  assert done.returncode == 143
  assert (tmp_path / 'asked').read_text() == f'requeue {name}\n'


@pytest.mark.parametrize(('told', 'words', 'devices'), [
  ({'SLURM_NNODES': '2', 'SLURM_GPUS_ON_NODE': '3'}, '--multihost', '0,1,2'),  # srun: a task a node
  ({'SLURM_NNODES': '2', 'SLURM_NTASKS': '6', 'SLURM_GPUS_ON_NODE': '3'}, '--multihost', ''),
  ({'SLURM_NNODES': '1'}, '', ''), ({'SLURM_NNODES': '1', 'SLURM_NTASKS': '1'}, '', '')])
def test_several_tasks_are_one_run_and_one_a_node_has_its_devices(
    tmp_path, stub, told, words, devices):
  """Two tasks that do not know of each other would write one workdir."""
  stub('srun', 'shift 5; echo "$* $JAX_LOCAL_DEVICE_IDS"')
  (tmp_path / 'list').write_text('run\n')
  done = subprocess.run(['bash', 'launch/slurm.sh', str(tmp_path / 'list')], cwd=ROOT,
                        env=stub.environment | {'SLURM_JOB_ID': '7'} | told,
                        stdout=subprocess.PIPE, text=True, check=True)
  assert done.stdout.splitlines()[-1].split() == f'{words} {devices}'.split()
