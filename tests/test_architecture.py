"""The house stays as it was drawn: who imports whom, how large things are, that all is documented.

The arrows are read from the syntax tree, so an import inside a function counts too.
"""

import ast
import dataclasses
import pathlib
import subprocess
import sys
import typing

import pytest

from rlhf_jax import configs
from rlhf_jax.runtime import experiment, overrides

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'rlhf_jax').rglob('*.py'))
EXPERIMENTS = sorted((ROOT / 'experiments').glob('*.py'))

# Left may import right, and itself; everything may import configs.
ARROWS = {
  'objectives': set(),
  'model': {'objectives'},
  'data': set(),
  'miniature': {'data.records'},
  'stages': {'model', 'objectives', 'data'},
  'feedback': {'model', 'objectives', 'data'},
  'evaluation': {'model', 'objectives', 'data', 'feedback'},
  'runtime': {'stages', 'feedback', 'evaluation', 'model', 'data'},
  'report': {'data.store', 'data.agreement'},  # intervals of differences that no file has
}
CORE = ('objectives', 'model', 'stages')
FORMATS = ('huggingface.py', 'families.py')  # of model/: files of others, not the core


def room_of(file: pathlib.Path) -> str:
  parts = file.relative_to(ROOT / 'rlhf_jax').parts
  return parts[0] if len(parts) > 1 else parts[0].removesuffix('.py')


def imported(file: pathlib.Path) -> set[str]:
  """Dotted names below rlhf_jax that a file imports: 'data.records', 'configs'."""
  found = set()
  for node in ast.walk(ast.parse(file.read_text('utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file}: a relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return {name.removeprefix('rlhf_jax.') for name in found if name.startswith('rlhf_jax.')}


def named(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize('file', FILES, ids=named)
def test_arrows(file):
  room = room_of(file)
  if room in ('__main__', '__init__', 'arguments'):  # the command line knows everybody
    return
  for name in imported(file):
    if room == 'configs':
      pytest.fail(f'configs imports {name}')
    allowed = {'configs', room} | ARROWS[room]
    assert any(name == a or name.startswith(f'{a}.') for a in allowed), f'{named(file)} → {name}'


@pytest.mark.parametrize('file', EXPERIMENTS, ids=named)
def test_experiments_are_data(file):
  """Beside configs and the miniature only the records, which a judge of one's own speaks of."""
  for name in imported(file):
    allowed = name.split('.')[0] in ('configs', 'miniature') or name.startswith('data.records')
    assert allowed, f'{named(file)} → {name}'


def test_stages_do_not_import_each_other():
  """What two of them need is in stage.py, or in a room to the left."""
  shared = {'stages.stage', 'stages.validation'}
  for file in (ROOT / 'rlhf_jax' / 'stages').glob('*.py'):
    others = {
      '.'.join(name.split('.')[:2])
      for name in imported(file) if name.startswith('stages.')
    }
    assert others <= shared, f'{named(file)} → {others - shared}'


def test_objectives_import_jax_and_chex_only():
  for file in (ROOT / 'rlhf_jax' / 'objectives').glob('*.py'):
    for node in ast.walk(ast.parse(file.read_text('utf-8'))):
      names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
        [node.module] if isinstance(node, ast.ImportFrom) else [])
      for name in names:
        top = name.split('.')[0]
        assert top in ('jax', 'chex', 'math') or name.startswith('rlhf_jax.objectives'), (
          f'{named(file)} → {name}')


def test_linen_lives_in_two_files():
  for file in FILES:
    if 'flax.linen' in file.read_text('utf-8') or 'import linen' in file.read_text('utf-8'):
      assert file.name in ('transformer.py', 'sharding.py'), named(file)


@pytest.mark.parametrize('file', [*FILES, *EXPERIMENTS], ids=named)
def test_sizes(file):
  text = file.read_text('utf-8')
  assert text.count('\n') <= 400, f'{named(file)} has {text.count(chr(10))} lines'
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      length = node.end_lineno - node.lineno + 1
      assert length <= 70, f'{named(file)}: {node.name} has {length} lines'


def test_the_core_is_read_in_an_afternoon():
  files = [f for f in FILES if room_of(f) in CORE and f.name not in FORMATS]
  # Blank lines are not read.
  lines = sum(bool(line.strip()) for f in files for line in f.read_text('utf-8').splitlines())
  assert lines <= 2000, f'the core has {lines} lines'


@pytest.mark.parametrize('file', [*FILES, *EXPERIMENTS, *sorted((ROOT / 'tests').rglob('*.py'))],
                         ids=named)
def test_every_module_says_what_it_is(file):
  assert file.name not in ('utils.py', 'helpers.py', 'common.py', 'misc.py')
  tree = ast.parse(file.read_text('utf-8'))
  assert ast.get_docstring(tree) or not tree.body, f'{named(file)} has no docstring'


@pytest.mark.parametrize('file', FILES, ids=named)
def test_public_functions_are_typed_and_documented(file):
  for node in ast.parse(file.read_text('utf-8')).body:
    small = node.end_lineno - node.lineno < 4  # the name says it
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_') | small:
      assert ast.get_docstring(node), f'{named(file)}: {node.name} has no docstring'
    if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
      arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
      bare = [a.arg for a in arguments if a.annotation is None]
      assert not bare and node.returns is not None, f'{named(file)}: {node.name} lacks types {bare}'


def test_every_field_has_a_doc():
  for kind in vars(configs).values():
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
      continue
    assert kind.__doc__ and not kind.__doc__.startswith(f'{kind.__name__}('), kind
    for name, annotation in typing.get_type_hints(kind).items():
      if not dataclasses.is_dataclass(annotation):  # those are explained by their own fields
        assert name in overrides.docs(kind), f'{kind.__name__}.{name} has no comment'


def test_every_field_that_names_a_run_is_known_to_the_runtime():
  """A field whose doc says that it names a run must be a role, or its run would not be made
  first.
  """
  for kind in experiment.KINDS:
    roles = experiment.ROLES[kind]
    for name, doc in overrides.docs(kind).items():
      says = any(
        word in doc for word in (' run ', 'run whose', 'run;', '-model run', 'run on', 'run,'))
      text = typing.get_type_hints(kind)[name]
      if says and (text is str or experiment.is_union(text)):
        assert name in roles, f'{kind.__name__}.{name}: {doc}'
    assert roles.keys() <= typing.get_type_hints(kind).keys()


def test_listing_needs_no_jax():
  """`list` answers at once: neither what reads experiment files nor the miniature imports jax."""
  for file in EXPERIMENTS:
    if 'import jax' in file.read_text('utf-8'):
      continue  # a reward of its own
    code = ('import sys; from rlhf_jax.__main__ import main; '
            f'assert main(["list", {str(file)!r}]) == 0; '
            'heavy = {"jax", "numpy", "flax", "tensorflow_datasets"} & set(sys.modules); '
            'assert not heavy, heavy')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
