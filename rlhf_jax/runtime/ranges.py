"""Which values of a field make sense, beside its type and by themselves.

Enter: a config. Leave: BadInput for a share above 1, a decay of 1, no epochs: some of them would
only stop a run in its first step, others would train nonsense. Plain Python, no jax.
Left out: values that do not go together (configs.check_run, and the stages for what takes a
parent), shapes of models (configs.check_model).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlhf_jax import configs
from rlhf_jax.configs import BadInput

Range = tuple[Callable[[Any], bool], str]
ONE: Range = (lambda x: x >= 1, 'at least 1')
NONE: Range = (lambda x: x >= 0, 'at least 0')
ABOVE: Range = (lambda x: x > 0, 'above 0')
SHARE: Range = (lambda x: 0 <= x <= 1, 'from 0 to 1')
BELOW: Range = (lambda x: 0 <= x < 1, 'from 0 to below 1')
# A key takes a seed's last 32 bits, so that a larger one would be another run's; half of them are
# room for what is added to it.
SEED: Range = (lambda x: 0 <= x < 2**31, f'from 0 to {2**31 - 1}')
# Counted in an int32 by the compiled update.
STEPS: Range = (lambda x: 0 <= x < 2**31, f'at least 0, at most {2**31 - 1}')
UPDATES: Range = (lambda x: 1 <= x < 2**31, f'at least 1, at most {2**31 - 1}')
DEVICES: Range = (lambda x: x == -1 or x >= 1, 'at least 1, or -1 for all that are left')


def one_of(*allowed: str) -> Range:
  """One of some words."""
  return lambda x: x in allowed, ' or '.join(map(repr, allowed))


ANY: Range = (lambda x: True, 'a number')
CUT = one_of('refuse', 'head')
CLIP: Range = (lambda x: x > 0, 'above 0 (1e9 does not clip)')

RANGES: Mapping[type, Mapping[str, Range]] = {
  configs.Model: {
    'layers': ONE, 'width': ONE, 'heads': ONE, 'kv_heads': NONE, 'head_size': NONE, 'mlp': NONE,
    'vocabulary': NONE, 'context': ONE, 'rotary': SHARE, 'dropout': BELOW, 'logits_chunk': NONE},
  configs.Optimizer: {
    'learning_rate': NONE, 'warmup': NONE, 'warmup_from': SHARE, 'final': SHARE, 'b1': BELOW,
    'b2': BELOW, 'epsilon': ABOVE, 'weight_decay': NONE, 'clip': NONE,
    'schedule': one_of('cosine', 'constant')},
  configs.Mesh: {'data': DEVICES, 'fsdp': ONE, 'tensor': ONE},
  configs.Source: {'size': NONE, 'seed': SEED},
  configs.Language: {
    'pretraining_share': BELOW, 'steps': STEPS, 'epochs': ABOVE, 'batch': ONE, 'microbatch': NONE,
    'ema': BELOW, 'heldout': BELOW, 'evaluate_every': NONE, 'seed': SEED, 'prompt_cut': CUT,
    'select': one_of('', 'validation_loss', 'reward')},
  configs.Collect: {'labels': ONE, 'others': NONE, 'temperature': NONE, 'prompt_length': ONE,
                    'response_length': ONE, 'batch': ONE, 'seed': SEED, 'prompt_cut': CUT},
  configs.Reward: {
    'k_max': NONE, 'batch': ONE, 'microbatch': NONE, 'epochs': ABOVE, 'heldout': BELOW,
    'evaluate_every': NONE, 'seed': SEED, 'prompt_cut': CUT},
  configs.PPO: {
    'response_length': ONE, 'episodes': ONE, 'minibatch': ONE, 'microbatch': NONE, 'epochs': ONE,
    'updates': UPDATES, 'kl_coef': NONE, 'kl_target': NONE, 'kl_horizon': ONE, 'ptx_coef': NONE,
    'ptx_ratio': NONE, 'clip': CLIP, 'value_clip': NONE, 'discount': SHARE, 'gae_lambda': SHARE,
    'no_eos_penalty': ANY,
    'temperature': ABOVE, 'ema': BELOW, 'rollout_chunks': ONE, 'evaluate_every': NONE,
    'evaluation_size': ONE, 'seed': SEED, 'prompt_cut': CUT},
  configs.Sampled: {'temperature': NONE, 'best_of': ONE},
  configs.Evaluate: {'prompt_length': ONE, 'response_length': ONE, 'batch': ONE, 'seed': SEED,
                     'prompt_cut': CUT},
  configs.Sweep: {'spacing': ABOVE, 'samples': ONE, 'best_of': NONE, 'batch': ONE, 'seed': SEED}}

# What the sources of a field may be. Prompts of 'prompts' sources come from files of any kind but
# text; who samples only takes them from demonstrations as well.
ASKED = ('prompts', 'demonstrations')
SOURCES: Mapping[type, Mapping[str, tuple[str, ...]]] = {
  configs.Language: {'data': ('text', 'demonstrations'), 'pretraining': ('text',),
                     'prompts': ASKED},
  configs.Collect: {'prompts': ASKED},
  configs.Reward: {'data': ('rankings',), 'heldout_data': ('rankings',)},
  configs.PPO: {'prompts': ('prompts',), 'pretraining': ('text',), 'evaluation_prompts': ASKED},
  configs.Evaluate: {'prompts': ASKED, 'text': ('text',), 'rankings': ('rankings',)},
  configs.Sweep: {'text': ('text',)}}


def check(where: Callable[[str], str], config: Any, path: str = '') -> None:
  """Every field of a config and of what it holds.

  Args:
    where: field -> the place in the file that the message names.

  Raises: BadInput for a value that makes no sense.
  """
  for name, (fits, words) in RANGES.get(type(config), {}).items():
    value = getattr(config, name)
    finite = not isinstance(value, float) or math.isfinite(value)
    if not finite or not fits(value):
      finitely = '' if finite else ' and finite'
      raise BadInput(f'{where(f"{path}{name}")} is {value!r}; expected {words}{finitely}')
  for name, kinds in SOURCES.get(type(config), {}).items():
    value = getattr(config, name)
    for number, source in enumerate(value if isinstance(value, tuple) else ()):
      if source.kind not in kinds:
        raise BadInput(f'{where(f"{path}{name}.{number}.kind")} is {source.kind!r}; expected '
                       f'{" or ".join(map(repr, kinds))}')
  for name, inside in _parts(config):
    check(where, inside, f'{path}{name}.')


def _parts(config: Any) -> Iterator[tuple[str, Any]]:
  """(name, config) of the configs that a config holds, in its tuples and dicts too."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield field.name, value
    items = value.items() if isinstance(value, dict) else (
      enumerate(value) if isinstance(value, tuple) else ())
    yield from ((f'{field.name}.{key}', item) for key, item in items
                if dataclasses.is_dataclass(item))
