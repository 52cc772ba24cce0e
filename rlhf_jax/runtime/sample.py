"""`sample`: responses of a finished run, with what its reward model and its reference say of them.

Enter: a workdir, a run, a prompt or the run's own prompts. Leave: texts; in a terminal also log-
probability, reward and KL where those models exist.
Left out: a dialogue (each response stands alone); top-k and top-p (no run is trained with them).
"""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.data import builders
from rlhf_jax.model import responses
from rlhf_jax.runtime import checkpoint, workdir
from rlhf_jax.runtime.experiment import near
from rlhf_jax.runtime.metrics import console
from rlhf_jax.stages.stage import Parent


@dataclasses.dataclass(frozen=True)
class Sample:
  """One response; `reward` and `kl` are None where there is no such model."""
  prompt: str
  response: responses.Response
  reward: float | None
  # log p of the policy − log p of its reference, summed over the response: one sample of the KL
  kl: float | None


def sample(place: builders.Place, run: str, prompt: str | None = None, count: int = 0,
           temperature: float = 1.0, max_tokens: int = 0, seed: int = 0) -> list[Sample]:
  """`count` responses to `prompt`, or one to each of `count` of the run's own prompts.

  Raises:
    BadInput: no such run, not a finished Language or PPO run, no prompts, a prompt beyond the
      model's context.
  """
  parent = load(place.workdir, run)
  if min(count, max_tokens) < 0 or temperature < 0:
    raise BadInput('-n, --max-tokens and --temperature must not be negative')
  prompts = [prompt] * (count or 1) if prompt is not None else _prompts(
    parent.config, place, count or 4)
  tokens = max(len(parent.tokenizer.encode_prompt(p)) for p in prompts)
  length = max_tokens or parent.config.response_length
  if tokens + length > parent.model.context:
    raise BadInput(
      f"a prompt of {tokens} tokens and a response of {length} do not fit {run}'s context "
      f'of {parent.model.context}: shorten the prompt or lower --max-tokens')
  sizes = {
    'prompt_length': max(tokens, min(parent.config.prompt_length, parent.model.context - length)),
    'response_length': length,
    'batch': len(prompts)
  }
  found = responses.respond(parent.model,
                            parent.params,
                            parent.tokenizer,
                            prompts,
                            jax.random.key(seed),
                            temperature=temperature,
                            **sizes)

  rewards = kl = [None] * len(found)
  reward = _reward(place.workdir, run, parent.config)
  if reward is not None:
    rewards = responses.score_responses(reward.model, reward.params, reward.tokenizer, prompts,
                                        found, **sizes)
  if isinstance(parent.config, configs.PPO) and _finished(place.workdir / parent.config.policy):
    reference = load(place.workdir, parent.config.policy)
    ours, theirs = (_logprob(model, prompts, found, sizes) for model in (parent, reference))
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


def load(folder: Path, run: str) -> Parent:
  """The finished Language or PPO run of a workdir. Raises BadInput."""
  if not (folder / run / 'config.json').exists():
    runs = sorted(p.parent.name for p in folder.glob('*/config.json'))
    raise BadInput(f'{folder} has no run {run!r}{near(run, runs)}')
  parent = checkpoint.load_parent(folder / run)
  if not isinstance(parent.config, configs.Language | configs.PPO):
    raise BadInput(
      f'{run} is a {type(parent.config).__name__}; only Language and PPO runs give responses')
  return parent


def _prompts(config: configs.Language | configs.PPO, place: builders.Place,
             count: int) -> list[str]:
  """The first of the run's own prompts, of its demonstrations, or the lines of stdin."""
  sources = config.prompts or tuple(s for s in config.data if s.kind != 'text')
  if sources:
    found, _ = builders.read(sources, place)
    return [record.prompt for record in found[:count]]
  lines = [] if sys.stdin.isatty() else [line.rstrip('\n') for line in sys.stdin]
  if not lines:
    raise BadInput(
      'this run has no prompts of its own: give --prompt TEXT, or prompts on stdin, one a line')
  return lines


def _reward(folder: Path, run: str, config: configs.Language | configs.PPO) -> Parent | None:
  """The reward model a PPO run was trained against, or that was made from a Language run."""
  if isinstance(config, configs.PPO):
    found = [config.reward] if ':' not in config.reward else []
  else:
    found = [
      p.parent.name for p in folder.glob('*/config.json')
      if isinstance(made := workdir.config_of(p.parent), configs.Reward) and made.init_from == run
    ]
  found = [name for name in found if _finished(folder / name)]
  return checkpoint.load_parent(folder / found[0]) if len(found) == 1 else None


def _finished(folder: Path) -> bool:
  return (folder / 'finished.json').exists()


def _logprob(parent: Parent, prompts: list[str], found: list[responses.Response],
             sizes: dict) -> np.ndarray:
  """log p of each response at temperature 1, nats [n]."""
  logprobs, mask = responses.logprob_responses(
    parent.model, parent.params, parent.tokenizer, prompts, found, temperature=1.0, **sizes)
  return np.where(mask, logprobs, 0.0).sum(axis=1)
