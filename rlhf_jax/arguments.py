"""The options of all commands, and their help.

Enter: nothing; the words of the command line where an experiment file adds options of its own.
Leave: argparse parsers. Left out: what the commands do (__main__.py), `--RUN.field value`
(runtime/overrides.py).
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.configs import BadInput
from rlhf_jax.data import paths, show

DESCRIPTION = """\
InstructGPT in JAX: pretrain → SFT → rankings → reward model → PPO-ptx.

examples:
  python -m rlhf_jax list experiments/quickstart.py
  python -m rlhf_jax run experiments/quickstart.py --workdir runs/quickstart
  python -m rlhf_jax run experiments/quickstart.py sft --workdir runs/short --gpt.steps 200
  python -m rlhf_jax run experiments/quickstart.py --help      (every field of every run)
  python -m rlhf_jax sample --workdir runs/quickstart --run ppo_ptx --prompt 'tell me a story'
  python -m rlhf_jax sample --model FOLDER --prompt '' --temperature 0
  python -m rlhf_jax perplexity --model FOLDER --text FILE
  python -m rlhf_jax export --workdir runs/quickstart --run ppo_ptx --out FOLDER
  python -m rlhf_jax data FILE --kind rankings
  python -m rlhf_jax preflight experiments/instructgpt.py ppo_ptx_6b --topology v6e:4x8
  python -m rlhf_jax sweep experiments/kl_sweep.py --workdir runs/kl
  python -m rlhf_jax report runs/quickstart
"""
RUN_DESCRIPTION = """\
Makes the named runs of an experiment file with what they need, all of them if none is named. The
same command again goes on where the last one stopped and skips what is finished. Ends by writing
DIR/results.json and DIR/report.html.
"""
SAMPLE_DESCRIPTION = """\
Responses of a finished Language or PPO run, with log-probability, reward and KL where those models
exist; or of a model in Hugging Face's layout. In a pipe the plain text alone.
"""
PERPLEXITY_DESCRIPTION = """\
Mean negative log-probability of the tokens of texts, in nats: each text by itself, begun as the
tokenizer begins texts, cut at the model's context. The last line is `nats_per_token X tokens N`.
"""
EXPORT_DESCRIPTION = """\
Writes the policy or reward model of a finished run as a folder that transformers, vLLM and
evaluation harnesses load, with tokenizer, generation settings and a model card.
"""
PREFLIGHT_DESCRIPTION = """\
Compiles a run's update for a slice that is not here, with libtpu on a machine without a TPU: does
it fit, bytes a device, FLOPs, traffic, the floor in seconds. Exit 0: it fits; 3: it does not, with
the first thing to change; 2: an error. Fields are set as in `run`: --RUN.field value. The mesh is
derived from the topology where the run names none. A compilation takes minutes.
"""
SWEEP_DESCRIPTION = """\
Makes every point of a sweep file, after the runs that they rest on, and measures all of them alike:
DIR/sweep.parquet (a row a point and step), DIR/summary.json, DIR/report.html. The same command
again goes on where the last one stopped; a point that fails is named at the end.
"""


def parser() -> tuple[argparse.ArgumentParser, ...]:
  """All commands and their options; and those of `run`, `preflight` and `sweep`, each by itself,
  since they take the fields of an experiment file besides.
  """
  top = argparse.ArgumentParser(
    'python -m rlhf_jax', description=DESCRIPTION, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')

  run = _run_options(commands)
  listing = commands.add_parser(
    'list', help='name the runs of an experiment file, one a line', allow_abbrev=False,
    description='The names of the runs of an experiment file, one a line; nothing is made.')
  listing.add_argument('file', type=Path, metavar='FILE', help='an experiment file')

  sample = commands.add_parser(
    'sample', help='sample responses of a model', description=SAMPLE_DESCRIPTION,
    allow_abbrev=False)
  add = _model(sample)
  add('--prompt', metavar='TEXT',
      help="else the run's own prompts, and where it has none the lines of stdin")
  add('-n', type=int, default=0, metavar='N',
      help='responses to --prompt (1), or how many of the prompts (4)')
  add('--temperature', type=float, default=1.0, metavar='T', help='1; 0: greedy')
  add('--max-tokens', type=int, default=0, metavar='M',
      help="longest response; 0: as trained, or all that a folder's context leaves")
  add('--seed', type=int, default=0, metavar='S', help='0; the same seed, the same responses')
  add('--data', type=paths.local_folder, metavar='DIR', help='as in `run`')

  perplexity = commands.add_parser(
    'perplexity', help='how well a model predicts texts', description=PERPLEXITY_DESCRIPTION,
    allow_abbrev=False)
  add = _model(perplexity)
  add('--text', type=paths.anywhere, required=True, action='append', metavar='FILE',
      help='texts: JSON, JSONL (.gz), …; may be given several times')
  add('--limit', type=int, default=0, metavar='N', help='the first N texts; 0: all')
  add('--skip-bad-rows', action='store_true', help='leave out rows that cannot be read')

  export = commands.add_parser(
    'export', help="a finished run in Hugging Face's layout", description=EXPORT_DESCRIPTION,
    allow_abbrev=False)
  add = export.add_argument
  add('--workdir', type=paths.anywhere, required=True, metavar='DIR',
      help='a folder that `run` filled')
  add('--run', required=True, metavar='RUN', help='a finished Language, Reward or PPO run')
  add('--out', type=paths.local_folder, required=True, metavar='FOLDER',
      help='a new folder, or one with a model that is written over')
  add('--dtype', choices=('float32', 'float16', 'bfloat16'), default='float32',
      help='of the weights; float32 where nothing is said')
  add('--ema', action='store_true', help='the average of the weights instead of the raw ones')

  show.add_parser(commands)
  sweep = _sweep_options(commands)

  report = commands.add_parser(
    'report', help='write DIR/report.html again', allow_abbrev=False,
    description='Writes DIR/report.html from what `run` or `sweep` left in DIR, finished or not.')
  report.add_argument('workdir', type=paths.anywhere, metavar='DIR',
                      help='a folder that `run` or `sweep` filled')
  return top, run, _preflight_options(commands), sweep


def _run_options(commands: Any) -> argparse.ArgumentParser:
  run = commands.add_parser('run', help='make the runs of an experiment file', add_help=False,
                            description=RUN_DESCRIPTION, allow_abbrev=False)
  add = run.add_argument
  add('file', type=Path, nargs='?', metavar='FILE', help='an experiment file')
  add('runs', nargs='*', metavar='RUN', help='runs to make; all if none is named')
  add('--workdir', type=paths.anywhere, metavar='DIR',
      help='where everything is written: a folder, or gs://BUCKET/FOLDER')
  add('--data', type=paths.local_folder, metavar='DIR',
      help='what relative paths of sources are below')
  add('--skip-bad-rows', action='store_true',
      help='count and leave out rows that cannot be read, instead of stopping')
  add('--seed', type=int, metavar='N', help='the seed of every run')
  add('--mesh', metavar='D,F,T',
      help='the mesh of every run: data, fsdp, tensor; -1: all devices that are left')
  add('--multihost', action='store_true',
      help='this is one of several processes that do the same: on every host of a TPU pod, under '
           'srun, or as launch/local_processes.sh starts them')
  add('--profile', type=_count, default=0, metavar='N',
      help='trace N steps of every trained run for TensorBoard and Perfetto, in DIR/RUN/profile')
  add('--checkpoint-seconds', type=_amount, default=5.0, metavar='S',
      help='seconds between two checkpoints, 5 where nothing is said: the most work a kill costs')
  add('--RUN.field', dest='field', metavar='value',
      help='set a field of a run: --sft.optimizer.learning_rate 1e-3; `run FILE --help` lists them')
  add('-h', '--help', action='store_true',
      help='this page; with FILE also every field of every run')
  return run


def _preflight_options(commands: Any) -> argparse.ArgumentParser:
  preflight = commands.add_parser(
    'preflight', help='compile a run for a slice that is not here', allow_abbrev=False,
    description=PREFLIGHT_DESCRIPTION)
  add = preflight.add_argument
  add('file', type=Path, metavar='FILE', help='an experiment file')
  add('run', metavar='RUN', help='a run that trains')
  add('--topology', required=True, metavar='NAME',
      help='CHIP:SLICE with a chip of v4, v5e, v5p, v6e, tpu7x, such as v5p:4x4x8; or cpu:N')
  add('--json', type=paths.local, metavar='OUT', help='write all numbers to this file too')
  add('--search', action='store_true',
      help='of a small grid of mesh, rollout_chunks and microbatch (PPO) take the first that fits')
  add('--part', choices=('update', 'rollout', 'minibatch'), default='update',
      help='compile only a part of a PPO update')
  add('--data', type=paths.local_folder, metavar='DIR',
      help='what relative model folders are below')
  add('--hbm', type=_amount, default=0.0, metavar='GIB',
      help='memory a device, less than its own')
  return preflight


def _sweep_options(commands: Any) -> argparse.ArgumentParser:
  sweep = commands.add_parser(
    'sweep', help='make the points of a sweep file', add_help=False, description=SWEEP_DESCRIPTION,
    allow_abbrev=False)
  add = sweep.add_argument
  add('file', type=Path, nargs='?', metavar='FILE', help='an experiment file with a `sweep`')
  add('--workdir', type=paths.anywhere, metavar='DIR',
      help='where everything is written: a folder, or gs://BUCKET/FOLDER')
  add('--list', action='store_true', help='name the points (of --point that one), one a line')
  add('--point', default='', metavar='NAME', help='make this point alone, and what it rests on')
  add('--data', type=paths.local_folder, metavar='DIR', help='as in `run`')
  add('--skip-bad-rows', action='store_true', help='as in `run`')
  add('--checkpoint-seconds', type=_amount, default=5.0, metavar='S', help='as in `run`')
  add('--RUN.field', dest='field', metavar='value',
      help='as in `run`; --sweep.field sets one of the sweep itself')
  add('-h', '--help', action='store_true',
      help='this page; with FILE also every field of every run and of the sweep')
  return sweep


def _model(command: argparse.ArgumentParser) -> Any:
  """Adds the two ways to name a model; returns add_argument."""
  add = command.add_argument
  add('--model', metavar='FOLDER', help="a folder in Hugging Face's layout, or DIR/RUN")
  add('--workdir', type=paths.anywhere, metavar='DIR',
      help='with --run: a finished run of this folder')
  add('--run', metavar='RUN', help='with --workdir: its name')
  return add


def _amount(word: str) -> float:
  """A number that is at least 0 and finite, which nan is not."""
  try:
    number = float(word)
  except ValueError:
    number = math.nan
  if not 0 <= number < math.inf:
    raise argparse.ArgumentTypeError(f'{word!r} is not a number of at least 0')
  return number


def _count(word: str) -> int:
  """A whole number that is at least 0."""
  if not word.strip().isdecimal():
    raise argparse.ArgumentTypeError(f'{word!r} is not a whole number of at least 0')
  return int(word)


def joined(words: Sequence[str], option: str) -> list[str]:
  """The words with `option value` as `option=value`: argparse takes -1,1,1 for an option."""
  left = list(words)
  for i, word in enumerate(words[:-1]):
    if word == option and not words[i + 1].startswith('--'):
      left[i:i + 2] = [f'{option}={words[i + 1]}', None]
  return [word for word in left if word is not None]


def add_parameters(run: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, str]:
  """Adds the options that the experiment file itself takes.

  Returns:
    parameter -> where its value stands among the options, apart from those of the command: a
    parameter may be named `file`.
  """
  from rlhf_jax.runtime import experiment as experiments
  file = next((word for word in words if word.endswith('.py')), None)
  taken = experiments.parameters(Path(file)) if file else []
  group = run.add_argument_group(f'options of {file}') if taken else None
  for one in taken:
    if one.option in run._option_string_actions:
      raise BadInput(f'{file}: parameter {one.name} of runs() is an option of `run` already')
    group.add_argument(one.option, dest=one.option, type=one.kind, metavar=one.name.upper(),
                       help=one.doc.replace('%', '%%'))
  return {one.name: one.option for one in taken}
