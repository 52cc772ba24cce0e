"""environment.sh: which Python makes .venv, and which platform jax is told to take."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def shell(words, cwd, **variables):
  """stdout of a bash that sourced environment.sh; devices are looked for in `cwd`, not /dev."""
  text = (ROOT / 'launch/environment.sh').read_text()
  for device in ('accel0', 'vfio/0', 'nvidia0'):
    assert f'/dev/{device}' in text
    text = text.replace(f'/dev/{device}', device)
  (cwd / 'environment.sh').write_text(text)
  known = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'}
  return subprocess.run(
    ['bash', '-euc', f'source ./environment.sh; {words}'], cwd=cwd, text=True,
    env=known | variables, capture_output=True, check=True, timeout=60).stdout.strip()


def program(path: pathlib.Path, text: str) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/usr/bin/env bash\n{text}\n')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return path


def test_a_python_whose_path_has_blanks(tmp_path):
  mine = program(tmp_path / 'my tools' / 'python', f'exec {sys.executable} "$@"')
  assert shell('find_python', tmp_path, PYTHON=str(mine)) == str(mine)


def test_a_python_that_is_too_old_is_passed_over(tmp_path):
  old = program(tmp_path / 'old', 'exit 1')
  assert shell('find_python', tmp_path, PYTHON=str(old)) != str(old)


@pytest.mark.parametrize('installed, devices, platforms', [
  ((), (), ''), (('libtpu',), (), 'cpu'), (('jax_cuda12_plugin',), ('nvidia0',), ''),
  (('libtpu', 'jax_cuda12_plugin'), ('nvidia0',), 'cuda,cpu'),
  (('libtpu', 'jax_cuda13_plugin'), ('nvidia0',), 'cuda,cpu'), (('libtpu',), ('nvidia0',), 'cpu'),
  (('libtpu', 'jax_cuda12_plugin'), (), 'cpu'), (('libtpu',), ('accel0',), ''),
  (('libtpu',), ('vfio/0',), '')])
def test_libtpu_without_a_tpu_is_kept_from_waiting_for_one(
    tmp_path, installed, devices, platforms):
  # A stand-in for Python: new enough, and with those modules.
  program(tmp_path / '.venv/bin/python',
          f'[[ $* != *find_spec* || " {" ".join(installed)} " == *" ${{!#}} "* ]]')
  (tmp_path / 'requirements.txt').write_text('')
  (tmp_path / '.venv/installed').write_text('\n')
  for device in devices:
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).write_text('')
  assert shell('set_up; echo "${JAX_PLATFORMS:-}"', tmp_path) == platforms


def test_a_platform_that_is_set_stays(tmp_path):
  program(tmp_path / '.venv/bin/python', 'exit 0')
  (tmp_path / 'requirements.txt').write_text('')
  (tmp_path / '.venv/installed').write_text('\n')
  assert shell('set_up; echo "$JAX_PLATFORMS"', tmp_path, JAX_PLATFORMS='tpu') == 'tpu'


def test_a_start_after_one_that_was_interrupted_puts_pip_in(tmp_path):
  program(tmp_path / '.venv/bin/python', '''case "$*" in
  *ensurepip*) touch pip;;
  "-m pip --version") test -e pip;;
  "-m pip install"*) test -e pip;;
esac''')
  (tmp_path / 'requirements.txt').write_text('jax\n')
  shell('set_up', tmp_path)
  assert (tmp_path / '.venv/installed').read_text() == 'jax\n'


@pytest.mark.parametrize('name', ['quickstart.sh', 'test.sh'])
def test_a_script_finds_its_repository(tmp_path, name):
  """Through a link, and where CDPATH leads to another folder of that name."""
  (tmp_path / 'trap/launch').mkdir(parents=True)
  launch = tmp_path / 'my repo/launch'
  launch.mkdir(parents=True)
  (launch / name).write_bytes((ROOT / 'launch' / name).read_bytes())
  (launch / 'environment.sh').write_text('pwd; exit\n')
  (tmp_path / 'link').symlink_to(launch / name)
  for script in (f'launch/{name}', tmp_path / 'link'):
    done = subprocess.run(['bash', script], cwd=launch.parent, text=True, capture_output=True,
                          env=os.environ | {'CDPATH': str(tmp_path / 'trap')})
    assert done.stdout.splitlines() == [str(launch.parent)], done.stderr
