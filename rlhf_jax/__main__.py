"""The command line: run, list, sample, report.

Enter: the words after `python -m rlhf_jax`. Leave: exit code 0 when all that was asked for is
finished; 2 for bad input or a full disk, told on the last line of stderr; 143 after SIGTERM, when
what was done is saved; 1 for all else. jax is imported by the commands that need it, so that
`list` and `--help` answer at once.
Left out: several processes (`--multihost`).
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.configs import BadInput, OutOfReach

DESCRIPTION = """\
InstructGPT in JAX: pretrain → SFT → rankings → reward model → PPO-ptx.

examples:
  python -m rlhf_jax list experiments/quickstart.py
  python -m rlhf_jax run experiments/quickstart.py --workdir runs/quickstart
  python -m rlhf_jax run experiments/quickstart.py sft --workdir runs/short --gpt.steps 200
  python -m rlhf_jax run experiments/quickstart.py --help      (every field of every run)
  python -m rlhf_jax sample --workdir runs/quickstart --run ppo_ptx --prompt 'tell me a story'
  python -m rlhf_jax report runs/quickstart
"""
RUN_DESCRIPTION = """\
Makes the named runs of an experiment file with what they need, all of them if none is named. The
same command again goes on where the last one stopped and skips what is finished. Ends by writing
DIR/results.json and DIR/report.html.
"""
SAMPLE_DESCRIPTION = """\
Responses of a finished Language or PPO run, with log-probability, reward and KL where those models
exist. In a pipe the plain text alone.
"""


def parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
  """All commands and their options; and those of `run`, whose help needs the experiment file."""
  top = argparse.ArgumentParser(
    'python -m rlhf_jax', description=DESCRIPTION, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')

  run = commands.add_parser('run', help='make the runs of an experiment file', add_help=False,
                            description=RUN_DESCRIPTION, allow_abbrev=False)
  add = run.add_argument
  add('file', type=Path, nargs='?', metavar='FILE', help='an experiment file')
  add('runs', nargs='*', metavar='RUN', help='runs to make; all if none is named')
  add('--workdir', type=Path, metavar='DIR', help='where everything is written')
  add('--data', type=Path, metavar='DIR', help='what relative paths of sources are below')
  add('--skip-bad-rows', action='store_true',
      help='count and leave out rows that cannot be read, instead of stopping')
  add('--seed', type=int, metavar='N', help='the seed of every run')
  add('--profile', type=int, default=0, metavar='N',
      help='trace N steps of every trained run for TensorBoard and Perfetto, in DIR/RUN/profile')
  add('--checkpoint-seconds', type=float, default=5.0, metavar='S',
      help='seconds between two checkpoints: the most work a kill costs')
  add('--RUN.field', dest='field', metavar='value',
      help='set a field of a run: --sft.optimizer.learning_rate 1e-3; `run FILE --help` lists them')
  add('-h', '--help', action='store_true',
      help='this page; with FILE also every field of every run')

  listing = commands.add_parser('list', help='name the runs of an experiment file, one a line')
  listing.add_argument('file', type=Path, metavar='FILE')

  sample = commands.add_parser(
    'sample', help='sample responses of a finished run', description=SAMPLE_DESCRIPTION,
    allow_abbrev=False)
  add = sample.add_argument
  add('--workdir', type=Path, required=True, metavar='DIR')
  add('--run', required=True, metavar='RUN')
  add('--prompt', metavar='TEXT',
      help="else the run's own prompts, and where it has none the lines of stdin")
  add('-n', type=int, default=0, metavar='N',
      help='responses to --prompt (1), or how many of the prompts (4)')
  add('--temperature', type=float, default=1.0, metavar='T', help='0: greedy')
  add('--max-tokens', type=int, default=0, metavar='M', help='longest response; 0: as trained')
  add('--seed', type=int, default=0, metavar='S')
  add('--data', type=Path, metavar='DIR', help='as in `run`')

  report = commands.add_parser('report', help='write DIR/report.html again')
  report.add_argument('workdir', type=Path, metavar='DIR')
  return top, run


def main(words: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit code."""
  words = list(sys.argv[1:] if words is None else words)
  options = argparse.Namespace(workdir=None)
  try:
    overridden: list[tuple[str, str]] = []
    top, run = parser()
    if words[:1] == ['run']:
      from rlhf_jax.runtime import overrides
      words, overridden = overrides.split(words[1:])
      options = run.parse_intermixed_args(words)  # names of runs may stand behind options
      return _run(options, overridden, run)
    options = top.parse_args(words)
    return {'list': _list, 'sample': _sample, 'report': _report}[options.command](options)
  except BadInput as error:
    return _told(str(error), 2)
  except OutOfReach as error:
    return _told(str(error), 1)
  except BrokenPipeError:
    # nobody reads: nothing to say at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except Exception as error:
    from rlhf_jax.runtime import workdir
    if not workdir.is_no_space(error):
      raise
    return _told(workdir.no_space(options.workdir or Path(), workdir.room(options.workdir)), 2)


def _told(message: str, code: int) -> int:
  sys.stdout.flush()
  print(' '.join(message.split('\n')), file=sys.stderr, flush=True)
  return code


def _run(options: argparse.Namespace, overridden: list[tuple[str, str]],
         run: argparse.ArgumentParser) -> int:
  from rlhf_jax.runtime import experiment as experiments
  from rlhf_jax.runtime import overrides
  if options.file is None:
    if options.help:
      run.print_help()
      return 0
    run.error('the following arguments are required: FILE')
  experiment = overrides.apply(experiments.load(options.file), overridden, options.seed)
  if options.help:
    run.print_help()
    print(overrides.explain(experiment))
    return 0
  experiments.order(experiment, options.runs)  # an unknown run is told before anything is made
  if options.workdir is None:
    run.error('the following arguments are required: --workdir')
  if options.data is not None and not options.data.is_dir():
    raise BadInput(f'--data {options.data}: no such folder')
  if options.workdir.exists() and not options.workdir.is_dir():
    raise BadInput(f'--workdir {options.workdir}: is a file, expected a folder')

  from rlhf_jax.data.builders import Place
  from rlhf_jax.runtime import loop, metrics, results
  _log(metrics.console)
  loop.stopping.install()
  options.workdir.mkdir(parents=True, exist_ok=True)
  place = Place(options.workdir, options.data, options.skip_bad_rows)
  told = loop.run_file(experiment, options.runs, place,
                       loop.Options(options.checkpoint_seconds, options.profile))
  metrics.console.print(results.table(told))
  return _report(options)


def _list(options: argparse.Namespace) -> int:
  from rlhf_jax.runtime import experiment as experiments
  print('\n'.join(experiments.load(options.file).runs))
  return 0


def _sample(options: argparse.Namespace) -> int:
  from rlhf_jax.data.builders import Place
  from rlhf_jax.runtime import sample
  sample.show(sample.sample(
    Place(options.workdir, options.data, False), options.run, options.prompt, options.n,
    options.temperature, options.max_tokens, options.seed))
  return 0


def _report(options: argparse.Namespace) -> int:
  from rlhf_jax import report
  if not options.workdir.is_dir():
    raise BadInput(f'{options.workdir}: no such folder')
  print(report.write(options.workdir))
  return 0


def _log(console: Any) -> None:
  """What the program tells goes to stdout, warnings to stderr."""
  class Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
      if record.levelno >= logging.WARNING:
        print(record.getMessage(), file=sys.stderr, flush=True)
      else:
        console.print(record.getMessage(), markup=False)

  logger = logging.getLogger('rlhf_jax')
  logger.addHandler(Told())
  logger.setLevel(logging.INFO)
  logger.propagate = False
  logging.getLogger('absl').setLevel(logging.ERROR)


if __name__ == '__main__':
  sys.exit(main())
