"""Functions of a user's own, named in a config: judges, rewards, readers, makers of sources.

In: 'package.module:name' or 'path/file.py:name'. Out: the function, whose mistakes are a BadInput
that names file and line. Left out: what each is given and gives (records.py, readers.py).
"""

import difflib
import functools
import importlib
import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rlhf_jax.configs import BadInput


def load(name: str, what: str) -> Callable[..., Any]:
  """Resolves 'package.module:name' or 'path/file.py:name' to a callable.

  `what` it should be ('judge', 'reward') starts the message of the BadInput that is raised.
  """
  where, colon, attribute = name.rpartition(':')
  if not (colon and where and attribute):
    raise BadInput(f'{what} {name!r}: expected module:function or file.py:function')
  if where.endswith('.py'):
    path = pathlib.Path(where).expanduser()
    if not path.is_file():
      raise BadInput(f'{what} {name!r}: no file {where}; relative paths start at {os.getcwd()}')
    module = _module_of_file(path.resolve())
  else:
    try:
      module = importlib.import_module(where)
    except ModuleNotFoundError as error:
      # A module that is there but misses an import of its own has a bug; its name is right.
      if error.name and (where == error.name or where.startswith(error.name + '.')):
        raise BadInput(f'{what} {name!r}: no module {error.name!r}; a file is named by its path, '
                       'with .py at the end') from error
      raise
    except SystemExit as error:
      raise BadInput(f'{what} {name!r}: {failed(error)}') from error
  if not callable(getattr(module, attribute, None)):
    names = [name for name in vars(module)
             if callable(vars(module)[name]) and not name.startswith('_')]
    near = difflib.get_close_matches(attribute, names, n=3, cutoff=0.5)
    raise BadInput(f'{what} {name!r}: {where} has no function {attribute!r}'
                   + (f'; did you mean {", ".join(near)}?' if near else ''))
  return getattr(module, attribute)


def load_reward(name: str) -> Callable[..., Any]:
  """A reward function as `load` finds it, whose mistakes are a BadInput as it is traced."""
  function, what = load(name, 'reward function'), f'reward function {name!r}'

  def checked(tokens: Any, valid: Any, mask: Any) -> Any:
    try:
      told = function(tokens, valid, mask)
    except Exception as error:
      raise BadInput(f'{what}: {failed(error)}') from error
    if getattr(told, 'shape', None) != tokens.shape[:1]:
      found = f'one of shape {told.shape}' if hasattr(told, 'shape') else repr(told)[:60]
      raise BadInput(f'{what}: expected an array of shape {tokens.shape[:1]}, a number for each '
                     f'response, found {found}')
    return told

  return checked


def yielded(what: str, function: Callable[..., Iterable[Any]], *given: Any) -> Iterator[Any]:
  """What a user's function yields; its mistakes are a BadInput that starts with `what`."""
  try:
    yield from function(*given)
  except BadInput:
    raise
  except Exception as error:
    raise BadInput(f'{what}: {failed(error)}') from error


def failed(error: BaseException) -> str:
  """FILE:LINE of a user where an exception came from, its kind, the first line of what it says."""
  places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename != __file__ and 'site-packages' not in frame.filename
            and not frame.filename.startswith('<')]
  if isinstance(error, SyntaxError):
    places.append((error.filename, error.lineno))
  at = '{}:{}: '.format(*places[-1]) if places else ''
  return f'{at}{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}'


@functools.cache
def _module_of_file(path: pathlib.Path) -> Any:
  """A .py file as a module, executed once: a function loaded twice is the same object."""
  spec = importlib.util.spec_from_file_location(f'_file_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
  try:
    spec.loader.exec_module(module)
  except BadInput:
    raise
  except (Exception, SystemExit) as error:  # exit code 0 would say that all is made
    raise BadInput(failed(error)) from error
  return module
