"""`data`: the card of files, without training and without writing anything but --out.

Enter: files, their kind, a tokenizer and limits as far as they are known. Leave: the card, printed
and, with --out, as JSON. Left out: sources that a function makes (`run` tells of them).
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from rlhf_jax.configs import BadInput, Source
from rlhf_jax.data import paths, store

_KINDS = ('text', 'demonstrations', 'rankings', 'prompts')
_LIMITS = ('prompt_length', 'response_length', 'length', 'k_max')
_NO_LIMIT = 2**31 - 1
DESCRIPTION = """\
What is in files, as every build accounts for it: rows read, refused and why, duplicates, lengths
against limits, labelers and how far they agree, use cases. Lengths are in tokens with --model or
--tokenizer, else in words and characters; then limits cannot be tried.
"""


def add_parser(commands: Any) -> None:
  """Adds the command to those of `argparse`'s subparsers."""
  parser = commands.add_parser('data', help='tell what is in data files', allow_abbrev=False,
                               description=DESCRIPTION)
  add = parser.add_argument
  add('files', nargs='+', metavar='FILE', help='.jsonl, .json, .parquet, .txt; .gz')
  add('--kind', required=True, choices=_KINDS)
  add('--reader', default='', metavar='NAME', help='as Source.reader; else by name and content: '
      'jsonl, json_list, parquet, plain, pairs, self_instruct, dolly, hh_rlhf, openai_summarize, '
      'mt_bench, nectar, ultrafeedback, shp, webgpt, pku_saferlhf, helpsteer3, alpaca, sharegpt, '
      'or file.py:function')
  add('--split', default='train', metavar='NAME', help='for a reader of your own')
  add('--model', type=paths.anywhere, metavar='FOLDER',
      help="whose tokenizer counts: a Hugging Face folder, or a finished run's DIR/RUN")
  add('--tokenizer', type=paths.anywhere, metavar='FILE', help='a tokenizer.json')
  for name in _LIMITS:
    add(f'--{name.replace("_", "-")}', type=int, default=0, metavar='N', help={
      'length': 'tokens a row of text', 'k_max': 'completions of a prompt'}.get(
        name, f'longest {name.split("_")[0]} in tokens'))
  add('--prompt-cut', default='refuse', choices=('refuse', 'head'),
      help='what becomes of prompts above --prompt-length')
  add('--heldout', type=float, default=0.0, metavar='S', help='share to hold out')
  add('--seed', type=int, default=0, metavar='N', help='which share')
  add('--data', type=paths.local_folder, metavar='DIR', help='what relative paths are below')
  add('--skip-bad-rows', action='store_true', help='count bad rows instead of stopping')
  add('--out', type=paths.local, metavar='FILE', help='write the card as JSON, too')


def run(options: argparse.Namespace) -> dict[str, Any]:
  """Prints the card that the options ask for, and returns it. Raises: BadInput."""
  from rlhf_jax.data import builders, cards, sources  # numpy: other commands answer without
  if options.out:
    store.check_file(options.out, '--out')
  place = sources.Place(pathlib.Path(), options.data, options.skip_bad_rows)
  source = Source(options.kind, tuple(options.files), options.reader, split=options.split)
  tokenizer = _tokenizer(options)
  limits = builders.Limits(**{name: getattr(options, name) for name in (*_LIMITS, 'prompt_cut')})
  if tokenizer is None and limits != builders.Limits():
    raise BadInput('limits are in tokens: expected --model FOLDER or --tokenizer FILE beside them, '
                   'found neither')
  if tokenizer is None:
    gathered = sources.gather((source,), place)
    card = cards.described(options.kind, gathered) | cards.lengths(gathered.records)
    train, held = sources.split_indices(gathered.records, options.heldout, options.seed)
    card |= cards.halves(gathered.records, {'train': train, 'heldout': held})
  else:
    asked = {name for name in _LIMITS if getattr(limits, name)}
    open_ended = dataclasses.replace(
      limits, **{name: _NO_LIMIT for name in _LIMITS if name not in asked})
    open_ended.of(options.kind)  # refuses what a build would
    _, _, card = builders.account((source,), tokenizer, place, open_ended, options.heldout,
                                  options.seed)
    card['limits'] = {name: value for name, value in card['limits'].items()
                      if value != _NO_LIMIT}
  print(f'{options.kind}: lengths in ' + (
    'words and characters: no tokenizer is named' if tokenizer is None else 'tokens'))
  print('\n'.join(f'  {line}' for line in cards.lines(card)))
  if options.out:
    store.write(options.out, json.dumps(card, indent=1, ensure_ascii=False) + '\n')
  return card


def _tokenizer(options: argparse.Namespace) -> Any:
  """The tokenizer that is named, or None."""
  from rlhf_jax.data.tokenizer import Tokenizer
  if options.model and options.tokenizer:
    raise BadInput('expected --model or --tokenizer, found both')
  for option, path in (('--model', options.model), ('--tokenizer', options.tokenizer)):
    if path:
      store.check(path, option)
  if options.tokenizer:
    return Tokenizer.from_file(options.tokenizer)
  if not options.model:
    return None
  for path in (options.model / 'model' / 'tokenizer.json', options.model / 'tokenizer.json'):
    if path.is_file():
      return Tokenizer.from_file(path)
  raise BadInput(f'--model {options.model}: expected a folder with tokenizer.json, or a finished '
                 'run DIR/RUN, found none')
