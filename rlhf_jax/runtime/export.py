"""`export`: a finished run as a folder that transformers, vLLM and evaluation harnesses load.

Enter: a workdir, a run, a folder to write. Leave: config.json, model.safetensors, the tokenizer,
generation_config.json and README.md, a model card.
Left out: uploading; quantising; value models (a PPO run exports its policy).
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.data import store
from rlhf_jax.model import huggingface
from rlhf_jax.runtime import checkpoint, workdir
from rlhf_jax.runtime.experiment import near, references
from rlhf_jax.stages.stage import Parent

_CARD = """\
---
library_name: transformers
tags: [rlhf, rlhf_jax]
pipeline_tag: {pipeline}
---
# {name}

{what} It was trained with rlhf_jax, which follows InstructGPT (Ouyang et al. 2022).

{use}

## Recipe
{recipe}

## Data
{data}

## Metrics
Measured by the program itself on the data above; they say nothing about other data.

{metrics}

## Limits
- {parameters:,} parameters, a context of {context} tokens, {dtype} weights{averaged}.
- It was aligned, if at all, to the preferences of the labelers or the judge named under Data, in
  the languages and for the kinds of request found there, and to nobody else's.
- A reward model rates what resembles its training data; scores elsewhere are not to be trusted,
  and a policy trained against it may have learnt to please it where that is not what people want.
- It makes things up, and repeats what its pretraining text holds, prejudice included.

## What it must not be used for
Decisions about people (credit, work, housing, law, health), advice where a mistake does harm,
making people believe they talk to a person, or anything in public without an evaluation of its own
for that use.

## Versions
{versions}
"""
# What a model folder holds of its tokenizer and of sampling, and transformers reads if it is there.
_BESIDE = ('tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja', 'added_tokens.json',
           'special_tokens_map.json', 'generation_config.json', 'tokenizer.model', 'vocab.json',
           'merges.txt')
_USE = {
  'policy': """```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
```""",
  'reward': """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER)
```
One number a text: the score of prompt, response and end token together, right- or left-padded.
Scores here are rlhf_jax's minus `score_bias` of config.json: the architecture has no bias, and
a constant changes no comparison."""}


def export(folder: Path, run: str, out: Path, dtype: str = 'float32', ema: bool = False) -> str:
  """Writes the policy or reward model of a finished run to the folder `out`, in the place of a
  model that is there.

  Args:
    dtype: 'float32', 'float16' or 'bfloat16'.
    ema: the average of the weights instead of the raw ones.

  Returns:
    the name of the architecture in transformers.

  Raises:
    BadInput: no such run, not finished, no model; `out` holds something else; no architecture has
      this shape.
  """
  if not (folder / run / 'config.json').exists():
    runs = sorted(p.parent.name for p in folder.glob('*/config.json'))
    raise BadInput(f'{folder} has no run {run!r}{near(run, runs)}')
  store.check(out, '--out')
  if out.exists() and not out.is_dir():
    raise BadInput(f'--out {out}: is a file, expected a folder')
  if out.is_dir() and (workdir.read_json(out / 'config.json') or {}).get('kind') in workdir.KINDS:
    raise BadInput(f'--out {out}: is the folder of a run; name one of its own')
  if out.is_dir() and any(out.iterdir()) and not huggingface.is_model(out):
    raise BadInput(f'--out {out}: holds files that are no model; name an empty folder')
  parent = checkpoint.load_parent(folder / run, 'ema' if ema else 'params')
  if parent.model is None:
    raise BadInput(f'{run} is of the kind {type(parent.config).__name__} and has no model')
  kind = 'reward' if 'head' in parent.params else 'policy'
  tokenizer, out = parent.tokenizer, out.resolve()
  ids = tokenizer.generation()
  settings = {'bos_token_id': tokenizer.bos, 'eos_token_id': ids['eos_token_id'],
              'pad_token_id': tokenizer.pad}
  for name in _BESIDE if huggingface.is_model(out) else ():
    (out / name).unlink(missing_ok=True)
  architecture = huggingface.save(out, parent.model, parent.params, kind, dtype=dtype,
                                  settings=settings)
  store.write(out / 'tokenizer.json', tokenizer.published())
  workdir.write_json(out / 'tokenizer_config.json',
                     tokenizer.config() | {'model_max_length': parent.model.context})
  if kind == 'policy':
    temperature = getattr(parent.config, 'temperature', 1.0)
    workdir.write_json(out / 'generation_config.json', ids | {
      'do_sample': True, 'temperature': temperature, 'top_k': 0, 'top_p': 1.0,
      'max_new_tokens': parent.config.response_length})
  store.write(out / 'README.md', card(folder, run, parent, kind, dtype, ema))
  return architecture


def card(folder: Path, run: str, parent: Parent, kind: str, dtype: str, ema: bool) -> str:
  """The model card: data, recipe, metrics, versions, limits."""
  config, there = parent.config, workdir.read_json(folder / run / 'config.json') or {}
  what = ('A reward model: it rates a response to a prompt with one number.' if kind == 'reward'
          else 'A language model that answers prompts.' if _tuned(config)
          else 'A pretrained language model.')
  versions = there.get('versions', {}) | {'commit': there.get('commit')}
  return _CARD.format(
    name=f'{run} ({type(config).__name__})', what=what, use=_USE[kind], dtype=dtype,
    pipeline='text-classification' if kind == 'reward' else 'text-generation',
    recipe='\n'.join(_recipe(folder, run)), data='\n'.join(_data(folder, run)) or 'None recorded.',
    metrics='\n'.join(_metrics(folder, run)) or 'None recorded.',
    parameters=checkpoint.size(parent.params) // 4, context=parent.model.context,
    averaged=', the average over training' if ema else '',
    versions='\n'.join(f'- {name}: {value}' for name, value in versions.items() if value))


def _tuned(config: configs.Run) -> bool:
  return isinstance(config, configs.PPO) or any(s.kind == 'demonstrations' for s in config.data)


def _ancestors(folder: Path, run: str) -> list[str]:
  """The run and all it rests on, the first one first."""
  order: list[str] = []

  def visit(name: str) -> None:
    if name in order or not (folder / name / 'config.json').exists():
      return
    for needed in references(workdir.config_of(folder / name)).values():
      visit(needed)
    order.append(name)

  visit(run)
  return order


def _recipe(folder: Path, run: str) -> Iterator[str]:
  for name in _ancestors(folder, run):
    config = workdir.config_of(folder / name)
    default = type(config)()
    changed = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)
               if getattr(config, field.name) != getattr(default, field.name)}
    told = {key: value for key, value in changed.items() if not _is_sources(value)}
    yield f'- **{name}** ({type(config).__name__}): ' + '; '.join(
      f'{key} {_told(value)}' for key, value in told.items())


def _is_sources(value: Any) -> bool:
  return isinstance(value, tuple) and any(isinstance(one, configs.Source) for one in value)


def _told(value: Any) -> str:
  if dataclasses.is_dataclass(value):
    return '(' + ', '.join(f'{field.name} {getattr(value, field.name)}'
                           for field in dataclasses.fields(value)) + ')'
  return str(value)


def _data(folder: Path, run: str) -> Iterator[str]:
  for name in _ancestors(folder, run):
    config = workdir.config_of(folder / name)
    for field in dataclasses.fields(config):
      value = getattr(config, field.name)
      for source in value if _is_sources(value) else ():
        where = ', '.join(source.files) or f'{source.make}, split {source.split}'
        size = f', {source.size} records' if source.size else ''
        yield f'- {name}.{field.name}: {source.kind} from {where}{size}'
    if isinstance(config, configs.Collect):
      yield f'- {name}: samples of {config.policy} ranked by {config.judge}'


def _metrics(folder: Path, run: str) -> Iterator[str]:
  found = workdir.read_json(folder / run / 'finished.json') or {}
  evaluated: dict[str, Any] = {}
  for path in sorted(folder.glob('*/finished.json')):  # results.json may be of runs that are gone
    summary = (workdir.read_json(path) or {}).get('summary', {})
    evaluated |= {name: entry for name, entry in summary.get('models', {}).items()
                  if entry.get('sampled', {}).get('run') == run}
  for title, numbers in [('end of training', found.get('summary', {})), *(
      (f'evaluation of {name}', entry) for name, entry in evaluated.items())]:
    yield from (f'- {title}: {key} {_number(value)}' for key, value in numbers.items()
                if isinstance(value, int | float | Mapping) and key != 'sampled')


def _number(value: Any) -> str:
  if isinstance(value, Mapping):
    return json.dumps(value)
  return f'{value:.4g}' if isinstance(value, float) else str(value)
