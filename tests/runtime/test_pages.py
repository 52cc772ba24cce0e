"""Huge pages are asked for once, by starting again in the same process, and can be declined."""

import os
import pathlib
import runpy
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax import configs
from rlhf_jax.data.builders import Place
from rlhf_jax.runtime import loop, pages, workdir

ROOT = pathlib.Path(__file__).parents[2]
SHOW = """
import os, sys
from rlhf_jax.runtime import pages
pages.KERNEL = pages.pathlib.Path(sys.argv[1])
pages.os.confstr = lambda name: sys.argv[2]
exec(os.environ['ODD'])
os.environ['COUNT'] = str(int(os.environ.get('COUNT', 0)) + 1)
show = lambda: print(os.getpid(), os.environ.get('GLIBC_TUNABLES', ''), sys.argv[3:6], flush=True)
show()
if int(os.environ['COUNT']) < 4:
  pages.ask()
show()
"""
SET = 'glibc.malloc.hugetlb=1'


def environment(**changes):
  """This one, without what decides on huge pages."""
  left = {name: value for name, value in os.environ.items()
          if name not in ('GLIBC_TUNABLES', pages.STARTED)}
  return left | changes


def starts(tmp_path, kernel='always [madvise] never', library='glibc 2.36', odd='', **changes):
  """GLIBC_TUNABLES as each start of a program that asks finds it."""
  file = tmp_path / 'enabled'
  file.write_text(kernel)
  program = subprocess.Popen(
    [sys.executable, '-c', SHOW, str(file), library, 'a word', '--seed', '1'], cwd=ROOT, text=True,
    stdout=subprocess.PIPE, env=environment(ODD=odd, **changes))
  *lines, last = program.communicate(timeout=60)[0].splitlines()
  assert program.returncode == 0 and last == lines[-1]  # what comes to stay changes nothing
  for line in lines:
    assert line.startswith(f'{program.pid} ') and line.endswith("['a word', '--seed', '1']"), line
  return [line.split(' ', 2)[1] for line in lines]


def test_the_same_process_starts_once_more_with_its_words(tmp_path):
  assert starts(tmp_path) == ['', SET]
  assert starts(tmp_path, GLIBC_TUNABLES='glibc.malloc.check=0') == [
    'glibc.malloc.check=0', f'glibc.malloc.check=0:{SET}']


def test_a_setting_that_is_taken_away_is_not_asked_for_for_ever(tmp_path):
  assert starts(tmp_path, odd="os.environ.pop('GLIBC_TUNABLES', None)") == ['', '']


def test_the_mark_of_another_process_means_nothing(tmp_path):
  assert starts(tmp_path, **{pages.STARTED: '1'}) == ['', SET]


@pytest.mark.parametrize('place', [
  {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'}, {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=2'},
  {'kernel': '[always] madvise never'}, {'kernel': 'always madvise [never]'},
  {'library': 'glibc 2.34'}, {'library': 'musl 1.2'}, {'library': ''}])
def test_nothing_starts_again_where_it_is_decided_or_of_no_use(tmp_path, place):
  assert starts(tmp_path, **place) == [place.get('GLIBC_TUNABLES', '')]


@pytest.mark.parametrize('odd', [
  "sys.ps1 = '>>> '", 'sys.settrace(lambda *_: None)', "sys.argv.append('run')",
  "sys.executable = ''", 'sys.executable = None', "sys.executable = '/no/such/python'"],
  ids=['shell', 'debugger', 'below another program', 'no name', 'nothing', 'no such file'])
def test_nothing_starts_again_that_would_not_come_back_as_it_was(tmp_path, odd):
  assert starts(tmp_path, odd=odd) == ['']


def test_a_machine_without_the_file_or_the_name_stays_as_it_is(tmp_path, monkeypatch):
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  monkeypatch.setattr(pages, '_alone', lambda: True)
  (tmp_path / 'enabled').write_text('[madvise]')
  begun = []
  monkeypatch.setattr(os, 'execve', lambda *_: begun.append(1))
  for kernel, library, expected in (
      ('none', 'glibc 2.36', 0), ('enabled', None, 0), ('enabled', 'glibc 2.36', 1)):
    monkeypatch.setattr(pages, 'KERNEL', tmp_path / kernel)
    monkeypatch.setattr(os, 'confstr', lambda _, library=library: library)
    pages.ask()
    assert len(begun) == expected, (kernel, library)


@pytest.mark.parametrize('words, asks', [
  (['run', '--help'], 1), (['sweep', '--help'], 1), (['list', '--help'], 0), (['--help'], 0)])
def test_which_commands_ask(monkeypatch, capsys, words, asks):
  asked = []
  monkeypatch.setattr(pages, 'ask', lambda: asked.append(1))
  monkeypatch.setattr(sys, 'argv', ['rlhf_jax', *words])
  monkeypatch.delitem(sys.modules, 'rlhf_jax.__main__', raising=False)
  with pytest.raises(SystemExit) as ended:
    runpy.run_module('rlhf_jax', run_name='__main__')
  assert not ended.value.code and len(asked) == asks
  assert 'usage' in capsys.readouterr().out


def grants():
  """Whether what is asked for can be had here: huge pages small enough, forbidden by nobody."""
  size = pathlib.Path('/sys/kernel/mm/transparent_hugepage/hpage_pmd_size')
  status = pathlib.Path('/proc/self/status')
  return (pages._heard() and size.exists() and int(size.read_text()) <= 2 << 20
          and 'THP_enabled:\t1' in status.read_text())


@pytest.mark.skipif(not grants(), reason='huge pages cannot be had here')
def test_what_malloc_maps_comes_in_huge_pages(tmp_path):
  touch = """
import ctypes, resource, sys
from rlhf_jax.runtime import pages
if sys.argv[1] != 'leave': pages.ask()
for word in sys.argv[2:]: pages.use(word == 'on')
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
ctypes.memset(c.malloc(128 << 20), 1, 128 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
  faults = {how: min(int(subprocess.run(
    [sys.executable, '-c', touch, *how.split()], cwd=ROOT, env=environment(), text=True,
    capture_output=True, check=True, timeout=60).stdout) for _ in range(3))
    for how in ('ask', 'ask off on', 'leave', 'leave on', 'ask off')}
  huge, small = list(faults.values())[:2], list(faults.values())[2:]
  assert max(huge) < min(small) / 2, faults


@pytest.mark.parametrize('ppo, taken, huge', [
  (False, pages.LARGE, True), (True, pages.LARGE, False), (True, pages.LARGE - 1, True),
  (True, None, True)])
def test_only_large_ppo_updates_have_small_pages(monkeypatch, ppo, taken, huge):
  asked = []
  monkeypatch.setattr(pages, 'use', asked.append)
  sizes = None if taken is None else types.SimpleNamespace(temp_size_in_bytes=taken)
  pages.suit(types.SimpleNamespace(memory_analysis=lambda: sizes), ppo)
  assert asked == [huge]


def test_pages_go_by_the_room_that_a_compiled_update_says_it_takes(monkeypatch):
  asked = []
  monkeypatch.setattr(pages, 'use', asked.append)
  program = jax.jit(lambda x: (x[:, None] * x).sum(1)[0] + jnp.sort(jnp.outer(x, x), axis=0)[0, 0])
  update = program.lower(jax.ShapeDtypeStruct((1000,), 'float32')).compile()
  room = update.memory_analysis().temp_size_in_bytes
  for large in (room, room + 1):
    monkeypatch.setattr(pages, 'LARGE', large)
    pages.suit(update, True)
  assert room >= 4_000_000 and asked == [False, True]


@pytest.mark.parametrize('config, ppo', [(configs.Language, False), (configs.PPO, True)])
def test_the_loop_says_which_runs_are_ppo(faults, monkeypatch, tmp_path, config, ppo):
  make = sys.modules['regression_stage'].make  # of `faults`, and for PPO here too
  regression = configs.Language(steps=1, optimizer=configs.Optimizer(learning_rate=0.1))
  monkeypatch.setattr(sys.modules['regression_stage'], 'make',
                      lambda _, *rest: make(regression, *rest))
  monkeypatch.setitem(loop.STAGES, configs.PPO, 'regression_stage')
  asked = []
  monkeypatch.setattr(pages, 'suit', lambda update, ppo: asked.append((bool(update), ppo)))
  folder = tmp_path / 'a'
  folder.mkdir()
  loop.train('a', config(), {}, Place(tmp_path, None, False), workdir.Stopwatch(folder))
  assert asked == [(True, ppo)]
