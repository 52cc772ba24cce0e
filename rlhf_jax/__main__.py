"""The command line: run, list, sample, perplexity, export, data, preflight, sweep, report.

Enter: the words after `python -m rlhf_jax`. Leave: exit code 0 when all that was asked for is
finished; 2 for bad input, a full disk or no access, told on the last line of stderr; 3 from
preflight for a run that does not fit; 143 after SIGTERM, when what was done is saved; 1 for all
else. jax is imported by the commands that need it, so that `list` and `--help` answer at once. The
options stand in arguments.py.
Left out: starting several processes; each is this command with `--multihost` (launch/).
"""

import argparse
import errno
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import arguments
from rlhf_jax.configs import BadInput, OutOfReach
from rlhf_jax.data import processes, show, store

NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes


def main(words: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit code."""
  try:
    code, error = _command(words), None
  except Exception as raised:
    if processes.count() == 1:
      raise
    code, error = 1, raised
  if code and processes.count() > 1:
    from rlhf_jax.runtime import processes as together
    together.fail(code, error)
  return code


def _command(words: Sequence[str] | None) -> int:
  words = list(sys.argv[1:] if words is None else words)
  options = argparse.Namespace(workdir=None)
  try:
    overridden: list[tuple[str, str]] = []
    top, run, preflight, sweep = arguments.parser()
    if words[:1] == ['preflight']:
      from rlhf_jax.runtime import overrides
      words, overridden = overrides.split(words[1:])
      taken = arguments.add_parameters(preflight, words)
      options = preflight.parse_args(words)
      return _preflight(options, overridden, taken)
    if words[:1] == ['run']:
      from rlhf_jax.runtime import overrides
      words, overridden = overrides.split(words[1:])
      taken = arguments.add_parameters(run, words)
      # Names of runs may stand behind options.
      options = run.parse_intermixed_args(arguments.joined(words, '--mesh'))
      return _run(options, overridden, run, taken)
    if words[:1] == ['sweep']:
      from rlhf_jax.runtime import overrides
      words, overridden = overrides.split(words[1:])
      options = sweep.parse_args(words)
      return _sweep(options, overridden, sweep)
    options = top.parse_args(words)
    return {'list': _list, 'sample': _sample, 'perplexity': _perplexity, 'export': _export,
            'data': _data, 'report': _report}[options.command](options)
  except BadInput as error:
    return _told(str(error), 2)
  except OutOfReach as error:
    return _told(str(error), 1)
  except BrokenPipeError:
    # nobody reads: nothing to say at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except Exception as error:
    if isinstance(error, OSError) and error.errno in NO_ACCESS and error.filename:
      return _told(f'{error.filename}: {error.strerror}; give access to it, or name another place',
                   2)
    from rlhf_jax.runtime import workdir
    if not workdir.is_no_space(error):
      raise
    # What a command writes besides a workdir is what did not fit.
    for name in ('out', 'json'):
      if getattr(options, name, None) is not None:
        return _told(workdir.no_space(getattr(options, name), option=f'--{name}'), 2)
    folder = getattr(options, 'workdir', None)
    return _told(workdir.no_space(folder or Path(), workdir.room(folder)), 2)


def _told(message: str, code: int) -> int:
  sys.stdout.flush()
  print(' '.join(message.split('\n')), file=sys.stderr, flush=True)
  return code


def _run(options: argparse.Namespace, overridden: list[tuple[str, str]],
         run: argparse.ArgumentParser, taken: Mapping[str, str]) -> int:
  from rlhf_jax.runtime import experiment as experiments
  from rlhf_jax.runtime import overrides
  if options.file is None:
    if options.help:
      run.print_help()
      return 0
    run.error('the following arguments are required: FILE')
  if not options.help:  # a file may tell what it does without
    from rlhf_jax.runtime import metrics
    _log(metrics.console)
  given = {name: getattr(options, option) for name, option in taken.items()}
  experiment = overrides.apply(experiments.load(options.file, given, placeholders=options.help),
                               overridden, options.seed, options.mesh)
  if options.help:
    run.print_help()
    print(overrides.explain(experiment))
    return 0
  experiments.order(experiment, options.runs)  # an unknown run is told before anything is made
  if options.workdir is None:
    run.error('the following arguments are required: --workdir')
  if options.multihost:
    from rlhf_jax.runtime import processes as together
    together.start()
  from rlhf_jax.runtime import loop, results
  place = _begun(options)
  told = loop.run_file(experiment, options.runs, place,
                       loop.Options(options.checkpoint_seconds, options.profile))
  if processes.first():
    metrics.console.print(results.table(told))
    _report(options)
  processes.barrier()
  return 0


def _begun(options: argparse.Namespace) -> Any:
  """The Place of a command that trains, its folders checked and made; from here on a signal
  saves.
  """
  if options.data is not None and not options.data.is_dir():
    raise BadInput(f'--data {options.data}: no such folder')
  store.check(options.workdir, '--workdir')
  if options.workdir.exists() and not options.workdir.is_dir():
    raise BadInput(f'--workdir {options.workdir}: is a file, expected a folder')
  if '[' in str(store.absolute(options.workdir)):
    # The parts of a checkpoint are looked for by a pattern that begins with its folder.
    raise BadInput(f'--workdir {options.workdir}: orbax cannot read again what it writes below a '
                   'path with [ in it; name another folder')
  from rlhf_jax.data.builders import Place
  from rlhf_jax.runtime import loop
  loop.stopping.install()
  store.make(options.workdir)
  return Place(options.workdir, options.data, options.skip_bad_rows)


def _sweep(options: argparse.Namespace, overridden: list[tuple[str, str]],
           sweeping: argparse.ArgumentParser) -> int:
  from rlhf_jax.runtime import experiment as experiments
  from rlhf_jax.runtime import grid, overrides
  if options.file is None:
    if options.help:
      sweeping.print_help()
      return 0
    sweeping.error('the following arguments are required: FILE')
  experiment = overrides.apply(experiments.load(options.file), overridden)
  if options.help:
    sweeping.print_help()
    print(overrides.explain(experiment))
    return 0
  points = grid.points(experiment)
  grid.check_overrides(experiment, [path for path, _ in overridden])
  if options.list:
    print('\n'.join(grid.wanted(experiment, points, options.point)))
    return 0
  if options.workdir is None:
    raise BadInput('sweep: the following arguments are required: --workdir')
  from rlhf_jax.runtime import loop, metrics, sweep
  _log(metrics.console)
  failed = sweep.run(experiment, _begun(options), loop.Options(options.checkpoint_seconds),
                     options.point)
  if (options.workdir / 'summary.json').exists():
    _report(options)
  if failed:
    raise OutOfReach(f'{len(failed)} of {1 if options.point else len(points)} points failed: '
                     + '; '.join(f'{name} ({reason})' for name, reason in failed.items()))
  return 0


def _list(options: argparse.Namespace) -> int:
  from rlhf_jax.runtime import experiment as experiments
  print('\n'.join(experiments.load(options.file, placeholders=True).runs))
  return 0


def _named(options: argparse.Namespace) -> tuple[Any, str]:
  """(Place, name) of the model that --model, or --workdir and --run, name."""
  from rlhf_jax.data.builders import Place
  given = bool(options.workdir) + bool(options.run)
  if given not in (0, 2) or bool(options.model) == bool(given):
    raise BadInput('name a model: either --model FOLDER, or --workdir DIR and --run RUN')
  model = store.absolute(store.path(options.model or '').expanduser())
  store.check(options.workdir or model, '--workdir' if given else '--model')
  if options.workdir is not None and not options.workdir.is_dir():
    raise BadInput(f'--workdir {options.workdir}: no such folder')
  folder = options.workdir or model.parent
  data = getattr(options, 'data', None)
  # A slash tells a folder from a run.
  name = options.run or str(model)
  return Place(folder, data, getattr(options, 'skip_bad_rows', False)), name


def _sample(options: argparse.Namespace) -> int:
  from rlhf_jax.runtime import sample
  place, name = _named(options)
  sample.show(sample.sample(place, name, options.prompt, options.n, options.temperature,
                            options.max_tokens, options.seed))
  return 0


def _perplexity(options: argparse.Namespace) -> int:
  from rlhf_jax.runtime import perplexity, sample
  if options.limit < 0:
    raise BadInput(f'--limit {options.limit}: expected a number of texts, or 0 for all')
  place, name = _named(options)
  parent = sample.load(place.workdir, name)
  texts, refused = perplexity.texts_of(options.text, place)
  if refused:
    print(f'{refused} rows that could not be read are left out')
  perplexity.show(perplexity.perplexity(parent, texts[:options.limit or None]))
  return 0


def _export(options: argparse.Namespace) -> int:
  from rlhf_jax.runtime import export
  store.check(options.workdir, '--workdir')
  if not options.workdir.is_dir():
    raise BadInput(f'--workdir {options.workdir}: no such folder')
  architecture = export.export(options.workdir, options.run, options.out, options.dtype,
                               options.ema)
  print(f'{options.out}: {architecture}, tokenizer and model card')
  return 0


def _data(options: argparse.Namespace) -> int:
  show.run(options)
  return 0


def _preflight(options: argparse.Namespace, overridden: list[tuple[str, str]],
               taken: Mapping[str, str]) -> int:
  if options.json is not None:
    store.check_file(options.json, '--json')
  os.environ['JAX_PLATFORMS'] = 'cpu'  # whatever is here, it is not what is compiled for
  from rlhf_jax.runtime import chips, preflight, search
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the compilation too
  given = {name: getattr(options, option) for name, option in taken.items()}
  hbm = options.hbm * chips.GIB
  wish = preflight.Wish(options.file, options.run, tuple(overridden),
                        chips.topology(options.topology, hbm), given, options.part, hbm,
                        options.data)
  told = preflight.preflight(search.search(wish) if options.search else wish)
  print(preflight.text(told))
  if options.json is not None:
    store.write(options.json, json.dumps(told, indent=1) + '\n')
  return 0 if told['fits'] else 3


def _report(options: argparse.Namespace) -> int:
  from rlhf_jax import report
  store.check(options.workdir, 'report')
  if not options.workdir.is_dir():
    raise BadInput(f'{options.workdir}: no such folder')
  print(report.write(options.workdir))
  return 0


def _log(console: Any) -> None:
  """What the program tells goes to stdout, warnings to stderr."""
  class Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
      if not processes.first():
        return
      if record.levelno >= logging.WARNING:
        print(record.getMessage(), file=sys.stderr, flush=True)
      else:
        console.print(record.getMessage(), markup=False)

  logger = logging.getLogger('rlhf_jax')
  logger.addHandler(Told())
  logger.setLevel(logging.INFO)
  logger.propagate = False
  # What fails in orbax's threads is raised here too; told there, it is a traceback beside a signal.
  logging.getLogger('absl').setLevel(logging.CRITICAL)


if __name__ == '__main__':
  for stream in (sys.stdout, sys.stderr):
    if stream and stream.errors == 'strict':  # a ? where there is no →
      stream.reconfigure(errors='replace')
  if sys.argv[1:2] in (['run'], ['sweep']):
    from rlhf_jax.runtime import pages
    pages.ask()
    gc.set_threshold(20_000)  # tracing makes much that stays; 700 costs a start half a second
  try:
    code = main()
  except SystemExit as stopped:
    if stopped.code not in STOPPED or processes.count() > 1:
      raise
    # A signal during a compilation: XLA's threads crash an ordinary exit, which would tell 139.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(stopped.code)
  if code:  # what was told stays the last line: threads that fail of the same cause are not asked
    logging.disable(logging.CRITICAL)
    threading.excepthook = sys.unraisablehook = lambda told: None
  sys.exit(code)
