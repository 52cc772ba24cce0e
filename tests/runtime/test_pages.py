"""Huge pages are asked for once, by starting again in the same process, and can be declined."""

import os
import pathlib
import subprocess
import sys

import pytest

from rlhf_jax.runtime import pages

ROOT = pathlib.Path(__file__).parents[2]
SHOW = """
import os, sys
from rlhf_jax.runtime import pages
pages.KERNEL = pages.pathlib.Path(sys.argv[1])
pages.os.confstr = lambda name: sys.argv[2]
print(os.getpid(), os.environ.get('GLIBC_TUNABLES', ''), sys.argv[3:], flush=True)
pages.ask()
print('stayed')
"""


def starts(tmp_path, kernel='always [madvise] never', library='glibc 2.36', said=None):
  """What a program that asks prints at each of its starts, and its process id."""
  file = tmp_path / 'enabled'
  file.write_text(kernel)
  left = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
  program = subprocess.Popen(
    [sys.executable, '-c', SHOW, str(file), library, 'a word', '--seed', '1'], cwd=ROOT, text=True,
    stdout=subprocess.PIPE, env=left | ({} if said is None else {'GLIBC_TUNABLES': said}))
  *lines, last = program.communicate(timeout=60)[0].splitlines()
  assert program.returncode == 0 and last == 'stayed'
  for line in lines:
    assert line.startswith(f'{program.pid} ') and line.endswith("['a word', '--seed', '1']"), line
  return [line.split(' ', 2)[1] for line in lines]


def test_the_same_process_starts_once_more_with_its_words(tmp_path):
  assert starts(tmp_path) == ['', 'glibc.malloc.hugetlb=1']
  assert starts(tmp_path, said='glibc.malloc.check=0') == [
    'glibc.malloc.check=0', 'glibc.malloc.check=0:glibc.malloc.hugetlb=1']


@pytest.mark.parametrize('place', [
  {'said': 'glibc.malloc.hugetlb=0'}, {'said': 'glibc.malloc.hugetlb=2'},
  {'kernel': '[always] madvise never'}, {'kernel': 'always madvise [never]'},
  {'library': 'glibc 2.34'}, {'library': 'musl 1.2'}, {'library': ''}])
def test_nothing_starts_again_where_it_is_decided_or_of_no_use(tmp_path, place):
  assert starts(tmp_path, **place) == [place.get('said', '')]


def test_a_machine_without_the_file_or_the_name_stays_as_it_is(tmp_path, monkeypatch):
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  monkeypatch.setattr(os, 'execv', lambda *_: pytest.fail('started again'))
  monkeypatch.setattr(pages, 'KERNEL', tmp_path / 'none')
  pages.ask()
  monkeypatch.setattr(pages, 'KERNEL', tmp_path / 'enabled')
  (tmp_path / 'enabled').write_text('[madvise]')
  monkeypatch.setattr(os, 'confstr', lambda _: None)
  pages.ask()


def test_a_start_that_is_refused_goes_on_without(tmp_path, monkeypatch):
  def refused(*_):
    raise OSError('no')
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  monkeypatch.setattr(os, 'execv', refused)
  monkeypatch.setattr(os, 'confstr', lambda _: 'glibc 2.40')
  monkeypatch.setattr(pages, 'KERNEL', tmp_path / 'enabled')
  (tmp_path / 'enabled').write_text('always [madvise] never')
  pages.ask()
  assert os.environ.pop('GLIBC_TUNABLES') == 'glibc.malloc.hugetlb=1'


@pytest.mark.skipif(not pages._heard(), reason='this kernel or C library takes no such request')
def test_what_malloc_maps_comes_in_huge_pages(tmp_path):
  touch = """
import ctypes, resource, sys
from rlhf_jax.runtime import pages
if sys.argv[1] == 'ask': pages.ask()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
ctypes.memset(c.malloc(128 << 20), 1, 128 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
  left = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
  faults = {how: int(subprocess.run(
    [sys.executable, '-c', touch, how], cwd=ROOT, env=left, text=True, capture_output=True,
    check=True).stdout) for how in ('ask', 'leave')}
  assert faults['ask'] < faults['leave'] / 2, faults
