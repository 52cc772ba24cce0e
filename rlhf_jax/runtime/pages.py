"""Memory in huge pages: without them a small training step on a CPU takes a third longer.

Enter: the environment of a process that has only begun. Leave: the same process begun again with
glibc told to ask for huge pages.
XLA takes all room for intermediate results anew for each call; past 32 MiB glibc maps such room
afresh each time, and the kernel hands it over page by page, 4 KiB each. glibc reads the setting
when a process starts, so nothing less than a second start does it.
Left out: what is not Linux with glibc 2.35 or later; kernels that give huge pages to all or nobody.
"""

import ctypes
import os
import pathlib
import re
import sys
from typing import Any

KERNEL = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
SETTING = 'glibc.malloc.hugetlb'
THP_DISABLE = 41  # PR_SET_THP_DISABLE of linux/prctl.h
LARGE = 512 << 20  # bytes of temporary memory
STARTED = 'RLHF_JAX_STARTED'  # holds the id of a process that has started again


def ask() -> None:
  """Starts this program again, in the same process, with huge pages for what malloc maps.

  The words, the working directory and the process id stay. Does nothing where that is decided, by
  GLIBC_TUNABLES (glibc.malloc.hugetlb=0 keeps small pages), a kernel that takes no requests or
  another C library; nor where more than this program would start again: in a shell of Python, a
  notebook, a debugger, or below another program that runs this one.
  """
  again = os.environ.pop(STARTED, '') == str(os.getpid())  # GLIBC_TUNABLES may have been taken away
  before = os.environ.get('GLIBC_TUNABLES', '')
  if again or SETTING in before or not _heard() or not _alone():
    return
  changed = {'GLIBC_TUNABLES': f'{before}:{SETTING}=1'.lstrip(':'), STARTED: str(os.getpid())}
  try:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | changed)
  except (OSError, ValueError):
    return  # slower, and nothing else


def suit(update: Any, ppo: bool) -> None:
  """From here on huge pages for what is mapped, but for a PPO update that takes LARGE bytes.

  A small PPO update takes 2 to 7 % less time in huge pages, a large one 3 to 5 % more or 2 to 5 %
  less, by the CPU (experiments/bench/RESULTS.md).

  Args:
    update: compiled.
  """
  sizes = update.memory_analysis()
  use(not (ppo and sizes is not None and sizes.temp_size_in_bytes >= LARGE))


def use(wanted: bool) -> None:
  """From here on huge pages for what is mapped, or small ones; where `ask` asked for them."""
  if f'{SETTING}=1' in os.environ.get('GLIBC_TUNABLES', '') and sys.platform == 'linux':
    ctypes.CDLL(None).prctl(THP_DISABLE, int(not wanted), 0, 0, 0)


def _heard() -> bool:
  """Whether the kernel gives huge pages to who asks for them, and malloc knows how to ask."""
  try:
    kernel = KERNEL.read_text()
    library = os.confstr('CS_GNU_LIBC_VERSION') or ''
  except (OSError, ValueError, AttributeError):
    return False
  version = re.fullmatch(r'glibc (\d+)\.(\d+).*', library)
  return ('[madvise]' in kernel and version is not None
          and tuple(map(int, version.groups())) >= (2, 35))


def _alone() -> bool:
  """Whether the words of this process are those of this program, with nobody looking on."""
  words = sys.argv[1:]
  watched = sys.flags.interactive or hasattr(sys, 'ps1') or sys.gettrace() is not None
  return bool(sys.executable) and not watched and (
    sys.orig_argv[len(sys.orig_argv) - len(words):] == words)
