"""`sample`: responses of a finished run, with what its reward model and its reference say of them.

Enter: a run of a workdir or a model folder, a prompt or the run's own prompts. Leave: texts; in a
terminal also log-probability, reward and KL where those models exist.
Left out: a dialogue (each response stands alone); top-k and top-p (no run is trained with them).
"""

import dataclasses
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.data import builders, store
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model import responses
from rlhf_jax.runtime import checkpoint, models, ranges, workdir
from rlhf_jax.runtime.experiment import near
from rlhf_jax.runtime.metrics import console
from rlhf_jax.stages.stage import Parent


@dataclasses.dataclass(frozen=True)
class Sample:
  """One response; `reward` and `kl` are None where there is no such model."""
  prompt: str
  response: responses.Response
  reward: float | None
  # log p of the policy − log p of its reference, summed over the response: one sample of the KL at
  # the temperature it was drawn with (1 where that is 0)
  kl: float | None


def sample(place: builders.Place, model: str, prompt: str | None = None, count: int = 0,
           temperature: float = 1.0, max_tokens: int = 0, seed: int = 0) -> list[Sample]:
  """`count` responses to `prompt`, or one to each of `count` of the run's own prompts.

  Args:
    model: a run of the workdir, or the folder of a model (a name with a slash in it).
    max_tokens: of a response; 0: as the run was trained, or all that a folder's context leaves.

  Raises:
    BadInput: no such run or folder, no policy, no prompts, a prompt beyond the model's context, a
      number that makes no sense.
  """
  if min(count, max_tokens) < 0:
    raise BadInput('-n and --max-tokens must not be negative')
  if not 0 <= temperature < math.inf:
    raise BadInput(f'--temperature is {temperature}; expected a number that is at least 0')
  fits, words = ranges.SEED
  if not fits(seed):
    raise BadInput(f'--seed is {seed}; expected {words}')
  parent = load(place.workdir, model)
  config, context = parent.config, parent.model.context
  prompts = [prompt] * (count or 1) if prompt is not None else _prompts(
    config, parent.tokenizer, place, count)
  for text in prompts:
    _check_text(text, 'stdin' if prompt is None else '--prompt')
  tokens = max(len(parent.tokenizer.encode_prompt(p)) for p in prompts)
  if not tokens:
    raise BadInput(f'{model} has no token that starts a text: give a --prompt that is not empty')
  length = max_tokens or (config.response_length if config else context - tokens)
  if length < 1 or tokens + length > context:
    raise BadInput(
      f'a prompt of {tokens} tokens and a response of {length} do not fit {model}\'s context of '
      f'{context}: shorten the prompt or lower --max-tokens')
  usual = min(config.prompt_length, context - length) if config else 0
  sizes = {'prompt_length': max(tokens, usual), 'response_length': length, 'batch': len(prompts)}
  found = responses.respond(parent.model, parent.params, parent.tokenizer, prompts,
                            jax.random.key(seed), temperature=temperature, **sizes)

  rewards = kl = [None] * len(found)
  reward = _reward(parent.folder.parent, parent.folder.name, config) if config else None
  if reward is not None:
    rewards = responses.score_responses(reward.model, reward.params, reward.tokenizer, prompts,
                                        found, **sizes)
  if isinstance(config, configs.PPO):
    reference = _reference(place, parent)
    if reference is not None:
      ours, theirs = (_logprob(one, prompts, found, temperature or 1.0, sizes)
                      for one in (parent, reference))
      kl = ours - theirs
  return [Sample(p, r, None if s is None else float(s), None if k is None else float(k))
          for p, r, s, k in zip(prompts, found, rewards, kl, strict=True)]


def show(samples: Iterable[Sample]) -> None:
  """Prints the samples: all that is known in a terminal, the plain responses in a pipe."""
  for one in samples:
    if not console.is_terminal:
      print(one.response.text, flush=True)
      continue
    told = [f'log-prob {one.response.logprob:.2f}', f'{one.response.length} tokens']
    told += [f'reward {one.reward:.3f}'] if one.reward is not None else []
    told += [f'KL {one.kl:.2f} nats'] if one.kl is not None else []
    console.print(one.prompt, style='bold', markup=False)
    console.print(one.response.text + ('' if one.response.ended else ' …'), markup=False)
    console.print(' · '.join(told), style='dim', markup=False, end='\n\n')


def load(folder: Path | None, name: str) -> Parent:
  """A policy: a finished Language or PPO run of a workdir, or the model folder `name` where that
  has a slash in it. Raises BadInput.
  """
  if '/' in name or folder is None:
    parent = models.load(store.path(name).expanduser())
    if parent.config is None and 'head' in parent.params:
      raise BadInput(f'{name}: is a reward model; only policies give responses')
  else:
    if not (folder / name / 'config.json').exists():
      runs = sorted(p.parent.name for p in folder.glob('*/config.json'))
      raise BadInput(f'{folder} has no run {name!r}{near(name, runs)}')
    parent = checkpoint.load_parent(folder / name)
  if not isinstance(parent.config, configs.Language | configs.PPO | None):
    raise BadInput(f'{name} is of the kind {type(parent.config).__name__}; only Language and PPO '
                   'runs give responses')
  return parent


def _reference(place: builders.Place, parent: Parent) -> Parent | None:
  """What the KL of a PPO run is against, if it is there."""
  name = parent.config.policy
  path = builders.locate(name, place) if '/' in name else parent.folder.parent / name
  return models.load(path) if '/' in name or _finished(path) else None


def _prompts(config: configs.Language | configs.PPO | None, tokenizer: Tokenizer,
             place: builders.Place, count: int) -> list[str]:
  """The first of the run's own prompts, of its demonstrations, or the lines of stdin.

  The run's own are as it saw them: cut where it cuts, without those it could not read.
  """
  sources = () if config is None else (
    config.prompts or tuple(s for s in getattr(config, 'data', ()) if s.kind != 'text'))
  if sources:
    found, _ = builders.read_prompts(sources, tokenizer, dataclasses.replace(
      place, skip_bad_rows=True), builders.Limits.like(config))
    return [record.prompt for record in found[:count or 4]]
  try:
    lines = [] if sys.stdin.isatty() else [line.rstrip('\n') for line in sys.stdin]
  except UnicodeDecodeError as error:
    raise BadInput(f'stdin: is not UTF-8 text ({error.reason} at byte {error.start})') from error
  if not lines:
    raise BadInput(
      'this run has no prompts of its own: give --prompt TEXT, or prompts on stdin, one a line')
  return lines[:count or None]


def _check_text(text: str, where: str) -> None:
  """BadInput for what came as bytes that are no text: Python keeps them as lone surrogates."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise BadInput(f'{where}: is not UTF-8 text (character {error.start + 1} of {text!r:.80})'
                   ) from error


def _reward(folder: Path, run: str, config: configs.Language | configs.PPO) -> Parent | None:
  """The reward model a PPO run was trained against, or that was made from a Language run."""
  if isinstance(config, configs.PPO):
    found = [config.reward] if not set(':/') & set(config.reward) else []
  else:
    found = [
      p.parent.name for p in folder.glob('*/config.json')
      if (workdir.read_json(p) or {}).get('kind') == 'Reward'  # not a model's own config.json
      and workdir.config_of(p.parent).init_from == run
    ]
  found = [name for name in found if _finished(folder / name)]
  return checkpoint.load_parent(folder / found[0]) if len(found) == 1 else None


def _finished(folder: Path) -> bool:
  return (folder / 'finished.json').exists()


def _logprob(parent: Parent, prompts: list[str], found: list[responses.Response],
             temperature: float, sizes: dict) -> np.ndarray:
  """log p of each response, nats [n]."""
  logprobs, mask = responses.logprob_responses(
    parent.model, parent.params, parent.tokenizer, prompts, found, temperature=temperature, **sizes)
  return np.where(mask, logprobs, 0.0).sum(axis=1)
