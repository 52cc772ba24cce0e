"""The product's packages for a machine without network that has jax, numpy and pytest already.

  python experiments/bench/wheels.py make DIR          with a network: Python 3.12, x86-64 Linux
  python experiments/bench/wheels.py install DIR SITE  there: what is absent or too old, into SITE

`make` takes what requirements.txt names and what that needs in turn, as far as it is no part of an
image with jax: scipy, pyarrow and matplotlib are large and usually there. `install` leaves alone
what the machine has in a version that requirements.txt allows; put SITE on PYTHONPATH.
Left out: other Pythons and processors.
"""

import importlib.metadata
import pathlib
import re
import subprocess
import sys

import work

PYTHON, INTERPRETER = '3.12', 'cp'
PLATFORMS = ('manylinux_2_28_x86_64', 'manylinux_2_27_x86_64', 'manylinux_2_17_x86_64',
             'manylinux2014_x86_64', 'manylinux1_x86_64')
# Of requirements.txt; jax itself, numpy, scipy, pyarrow and matplotlib come with the machine.
WANTED = ('flax', 'optax', 'chex', 'orbax-checkpoint', 'grain', 'array_record',
          'tensorflow-datasets', 'tokenizers', 'safetensors', 'jinja2', 'rich', 'tensorboardX')
# What those need in turn and an image with jax need not have.
NEEDED = ('dm-tree', 'immutabledict', 'simple-parsing', 'docstring-parser', 'tensorflow-metadata',
          'googleapis-common-protos', 'termcolor', 'toml', 'portpicker', 'cloudpickle', 'etils',
          'treescope', 'humanize', 'toolz', 'wrapt', 'absl-py', 'aiofiles', 'simplejson')
BUILT = ('promise',)  # published as source only; plain Python


def allowed() -> dict[str, str]:
  """Package -> its line of requirements.txt."""
  lines = (work.ROOT / 'requirements.txt').read_text('utf-8').splitlines()
  lines = [line.split('#')[0].strip() for line in lines]
  return {plain(re.split(r'[<>=!~ ]', line)[0]): line for line in lines if line}


def plain(name: str) -> str:
  """A package's name in the one form in which names compare."""
  return re.sub(r'[-_.]+', '-', name).lower()


def make(folder: pathlib.Path) -> int:
  """Fills a folder; returns pip's exit code."""
  lines = allowed()
  wanted = [lines.get(plain(name), name) for name in (*WANTED, *NEEDED)]
  pip = [sys.executable, '-m', 'pip']
  platforms = [word for name in PLATFORMS for word in ('--platform', name)]
  code = subprocess.run([*pip, 'download', '--no-deps', '--only-binary=:all:', '--python-version',
                         PYTHON, '--implementation', INTERPRETER, *platforms, '-d', str(folder),
                         *wanted]).returncode
  return code or subprocess.run([*pip, 'wheel', '--no-deps', '-w', str(folder),
                                 *BUILT]).returncode


def missing(folder: pathlib.Path) -> list[pathlib.Path]:
  """Wheels of packages that are not installed, or in a version that requirements.txt refuses."""
  from packaging.requirements import Requirement
  lines, found = allowed(), []
  for wheel in sorted(folder.glob('*.whl')):
    name = plain(wheel.name.split('-')[0])
    try:
      version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found.append(wheel)
      continue
    if name in lines and not Requirement(lines[name]).specifier.contains(version):
      found.append(wheel)
  return found


def install(folder: pathlib.Path, site: pathlib.Path) -> int:
  """Unpacks what is missing; returns pip's exit code."""
  wheels = missing(folder)
  print('installing', ', '.join(wheel.name for wheel in wheels) or 'nothing: all is there')
  if not wheels:
    return 0
  return subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index',
                         '--no-deps', '--no-compile', '--no-cache-dir', '--upgrade', '--target',
                         str(site), *map(str, wheels)]).returncode


def main() -> None:
  """Makes or installs."""
  match sys.argv[1:]:
    case ['make', folder]:
      pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
      code = make(pathlib.Path(folder))
    case ['install', folder, site]:
      if not list(pathlib.Path(folder).glob('*.whl')):
        work.refuse(f'{folder}: no wheels there; make them with `python {sys.argv[0]} make DIR`')
      code = install(pathlib.Path(folder), pathlib.Path(site))
    case _:
      work.refuse('usage: wheels.py make DIR | wheels.py install DIR SITE')
  raise SystemExit(code)


if __name__ == '__main__':
  main()
