"""launch/sky.yaml as SkyPilot's own library reads it, without a network."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
import yaml

from rlhf_jax import arguments

ROOT = pathlib.Path(__file__).parents[2]
# Any attempt to reach another machine fails at once.
LOAD = """
import json, socket, sys
def refuse(*_): raise OSError('no network')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import sky
changes = json.loads(sys.argv[1])
task = sky.Task.from_yaml('launch/sky.yaml')
task.update_envs(changes.pop('envs'))
task.set_resources_override(changes.pop('resources', {}))
if 'num_nodes' in changes: task.num_nodes = changes.pop('num_nodes')
resources, = task.resources
print(json.dumps({'name': task.name, 'nodes': task.num_nodes, 'envs': task.envs,
                  'accelerators': resources.accelerators, 'spot': resources.use_spot,
                  'recovery': resources.job_recovery, 'cloud': str(resources.cloud),
                  'run': task.run}))
"""


def load(tmp_path, **changes):
  if importlib.util.find_spec('sky') is None:
    pytest.skip('skypilot is not installed: pip install -e .[sky]')
  changes = {'envs': {'WORKDIR': '/shared/a'}} | changes
  done = subprocess.run([sys.executable, '-c', LOAD, json.dumps(changes)], cwd=ROOT, text=True,
                        capture_output=True, env=os.environ | {'HOME': str(tmp_path)})
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_it_is_a_task_that_goes_on_after_preemption(tmp_path):
  task = load(tmp_path)
  assert task['accelerators'] == {'H100': 8} and task['spot']
  assert task['recovery']['recover_on_exit_codes'] == [143]
  assert task['envs']['WORKDIR'] == '/shared/a'


@pytest.mark.long
@pytest.mark.parametrize(('resources', 'nodes'), [
  ({'accelerators': 'tpu-v5p-64'}, 1), ({'infra': 'kubernetes', 'accelerators': 'A100:4'}, 4),
  ({'infra': 'slurm', 'use_spot': False}, 2)], ids=str)
def test_other_machines_are_options_of_the_command(tmp_path, resources, nodes):
  task = load(tmp_path, resources=resources, num_nodes=nodes)
  assert task['nodes'] == nodes and task['cloud'].lower() in ('gcp', 'kubernetes', 'slurm')


def test_hosts_get_their_numbers(tmp_path):
  """The shell part, on two hosts that are folders of this machine."""
  task = yaml.safe_load((ROOT / 'launch' / 'sky.yaml').read_text())
  python = tmp_path / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\necho "${JAX_COORDINATOR_ADDRESS:-none} ${JAX_NUM_PROCESSES:-none} '
                    '${JAX_PROCESS_ID:-none} $*"\n')
  python.chmod(0o755)

  def said(**changes):
    environment = {'PATH': os.environ['PATH'], 'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2',
                   'SKYPILOT_NUM_NODES': '2', 'SKYPILOT_NODE_RANK': '1'} | task['envs'] | changes
    done = subprocess.run(['bash', '-c', task['run']], cwd=tmp_path, env=environment, text=True,
                          capture_output=True, check=True)
    return done.stdout.strip()

  words = ('-m rlhf_jax run experiments/quickstart.py gpt sft --workdir /shared/a --mesh -1,1,1 '
           '--multihost --checkpoint-seconds 300')
  assert said(WORKDIR='/shared/a', RUNS='gpt sft') == f'10.0.0.1:8476 2 1 {words}'
  words_of_run = arguments.joined(words.split()[3:], '--mesh')
  options = arguments.parser()[1].parse_intermixed_args(words_of_run[:-2])  # sky.yaml's own
  assert (options.mesh, options.runs) == ('-1,1,1', ['gpt', 'sft']) and options.multihost
  assert said(WORKDIR='/shared/a', RUNS='gpt sft', EXTRA='tpu') == f'none none none {words}'
