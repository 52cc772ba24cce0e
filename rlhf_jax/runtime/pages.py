"""Memory in huge pages: a training step on a CPU spends up to a third of its time without them.

Enter: the environment of a process that has only begun. Leave: the same process begun again with
glibc told to ask for huge pages.
XLA takes all room for intermediate results anew for each call; past 32 MiB glibc maps such room
afresh each time, and the kernel hands it over page by page, 4 KiB each. glibc reads the setting
when a process starts, so nothing less than a second start does it.
Left out: what is not Linux with glibc 2.35 or later; kernels that give huge pages to all or nobody.
"""

import contextlib
import os
import pathlib
import re
import sys

KERNEL = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
SETTING = 'glibc.malloc.hugetlb'


def ask() -> None:
  """Starts this program again, in the same process, with huge pages for what malloc maps.

  Does nothing where that is decided: by GLIBC_TUNABLES (glibc.malloc.hugetlb=0 keeps small pages),
  a kernel that takes no requests, or another C library. The words, the working directory and the
  process id stay.
  """
  said = os.environ.get('GLIBC_TUNABLES', '')
  if SETTING in said or not _heard():
    return
  os.environ['GLIBC_TUNABLES'] = f'{said}:{SETTING}=1'.lstrip(':')
  sys.stdout.flush()
  sys.stderr.flush()
  with contextlib.suppress(OSError):  # then slower, and nothing else
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
