"""Seconds per PPO update of the product itself, where they go, and how far that is from a matmul.

  python experiments/bench/ppo_update.py --size tiny|small [--updates N]

The work is that of the peers beside the project (README of its benchmarks): 64 episodes, prompts of
32 tokens, responses of exactly 48, temperature 1, one epoch of 4 minibatches, separate value,
reference and reward models of one size, float32, random weights, no pretraining gradient.
`update` is stages/ppo.py's, compiled as runtime/loop.py compiles it; the three phases are the same
functions jitted apart. Last line: RESULT {json}.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import work

if __name__ == '__main__':
  work.begin()
sys.path.insert(0, str(work.ROOT))

import jax
import jax.numpy as jnp
import measure
import numpy as np

from rlhf_jax import configs
from rlhf_jax.model import experience, transformer
from rlhf_jax.stages import ppo
from rlhf_jax.stages.stage import Parent

OPTIMIZER = configs.Optimizer(learning_rate=1e-5, schedule='constant')
CONFIG = configs.PPO(
  episodes=64, minibatch=16, epochs=1, updates=1000, kl_coef=0.05, ptx_coef=0.0, ptx_ratio=0.0,
  prompt_length=32, response_length=48, ema=0.0, policy_optimizer=OPTIMIZER,
  value_optimizer=OPTIMIZER)


def one_pass(model: configs.Model, asked: range, length: int) -> float:
  """FLOPs of a forward pass over one row of `length` tokens whose states at `asked` are wanted.

  Per token and layer 2 FLOPs a weight, and 4·D·(tokens looked at). The last layer makes keys and
  values of every token and all else where it is asked for, unless layers are scanned.
  """
  width, last = model.width, range(length) if model.scan else asked
  looks = lambda positions: 4 * width * sum(position + 1 for position in positions)
  layer = length * 24 * width**2 + looks(range(length))
  return ((model.layers - 1) * layer + length * 4 * width**2 + len(last) * 20 * width**2
          + looks(last))


def arithmetic(model: configs.Model, config: configs.PPO = CONFIG) -> float:
  """FLOPs of the matrix products of one update, recomputation and masked attention not counted;
  a backward pass is twice its forward pass.
  """
  prompt, total = config.prompt_length, config.prompt_length + config.response_length
  unembed = config.response_length * 2 * model.width * model.vocabulary
  decode = one_pass(model, range(total - 1), total - 1) - one_pass(model, range(prompt), prompt)
  rollout = one_pass(model, range(prompt - 1, prompt), prompt) + decode + unembed
  before = one_pass(model, range(prompt - 1, total - 1), total)
  # The reference with logits, the value model, and the reward model's last position.
  scoring = 2 * before + unembed + one_pass(model, range(total - 1, total), total)
  training = 3 * (2 * before + unembed)  # policy with logits, value model
  return config.episodes * (rollout + scoring + config.epochs * training)


def make(model: configs.Model, config: configs.PPO = CONFIG, tokenizer: Any = None,
         policy: Any = None) -> tuple[Any, Any, Any]:
  """(stage, state, frozen) of a PPO run on random weights.

  Args:
    tokenizer: what knows pad and the end tokens; None: no response ever ends.
    policy: parameters to start from; None: random ones.
  """
  tokenizer = tokenizer or measure.Endless(model.vocabulary)
  shapes = functools.partial(transformer.init, model)
  scalar = functools.partial(shapes, scalar=True)
  params = {'policy': jax.jit(shapes)(jax.random.key(1)) if policy is None else policy,
            'reward': jax.jit(scalar)(jax.random.key(2))}
  parents = {role: Parent(model, tokenizer, jax.eval_shape(lambda x: x, tree))  # as the loop does
             for role, tree in params.items()}
  stage = ppo.make(config, parents, None)
  state = jax.jit(stage.init)(jax.random.key(0), params)
  return stage, state, jax.jit(stage.freeze)(params)


def shaped(model: configs.Model, config: configs.PPO = CONFIG, tokenizer: Any = None
           ) -> tuple[Any, Any, Any]:
  """`make` by shapes: nothing is compiled, and no memory taken."""
  stages = []

  def build():
    stage, *rest = make(model, config, tokenizer)
    stages.append(stage)
    return rest

  state, frozen = jax.eval_shape(build)
  return stages[0], state, frozen


def batch_of(model: configs.Model, config: configs.PPO = CONFIG) -> dict[str, Any]:
  """Random prompts of full length, and rows of text where the config has any."""
  random = np.random.default_rng(0)

  def rows(count, length):
    tokens = random.integers(0, model.vocabulary, (count, length)).astype(np.int32)
    return {'tokens': tokens, 'valid': np.ones_like(tokens, bool)}

  batch = {'prompts': rows(config.episodes, config.prompt_length)}
  text = round(config.ptx_ratio * config.episodes)
  if text:
    batch['pretraining'] = rows(text, config.text_length)
    batch['pretraining'] |= {'mask': batch['pretraining']['valid']}
  return batch


def beginnings(config: configs.PPO, stage: Any) -> tuple[Any, Any]:
  """The first two phases, each jitted by itself: (policy parameters, prompts, key) -> Rollout, and
  (state, frozen, rollout) -> (Experience, metrics).
  """
  models = stage.update.args[1]
  return tuple(jax.jit(functools.partial(f, config, models)) for f in (ppo.roll_out, ppo.scored))


def begun(config: configs.PPO, stage: Any, state: Any, frozen: Any, batch: dict,
          repeats: int) -> tuple[experience.Experience, dict[str, float]]:
  """What an update learns from, and the seconds of rollout and scoring, each compiled by itself."""
  first, second = beginnings(config, stage)
  sample = lambda: first(state.policy.params, batch['prompts'], jax.random.key(5))
  rollout = sample()
  seen, _ = second(state, frozen, rollout)
  return seen, {'rollout': measure.timed(sample, repeats),
                'scoring': measure.timed(lambda: second(state, frozen, rollout), repeats)}


def phases(config: configs.PPO, stage: Any, state: Any, frozen: Any, batch: dict,
           repeats: int) -> tuple[Any, dict[str, float]]:
  """(the state after it, seconds of rollout, scoring and training), each compiled by itself.

  The state is donated, since there is no room for two of a large one.
  """
  seen, found = begun(config, stage, state, frozen, batch, repeats)
  step = jax.jit(functools.partial(ppo.epochs_of_minibatches, config, stage.update.args[1]),
                 donate_argnums=0)
  holder = [state]

  def trained():
    holder[0], metrics = step(holder[0], seen, batch.get('pretraining'), jax.random.key(5))
    return metrics

  found['training'] = measure.timed(trained, repeats)
  return holder[0], found


def rates(config: configs.PPO, done: measure.Steps, split: dict[str, float], flops: float,
          rate: float) -> dict[str, Any]:
  """Seconds and rates of measured updates, as all RESULT lines name them."""
  seconds = done.seconds
  whole = sum(value for name, value in split.items() if name != 'ptx')
  generated = config.episodes * config.response_length
  return {
    'updates_timed': len(done.walls), 'sec_per_update': round(seconds, 4),
    'sec_min': round(min(done.walls), 4), 'sec_max': round(max(done.walls), 4),
    'cpu_s_per_update': round(float(np.median(done.cpus)), 4),
    'episodes_per_s': round(config.episodes / seconds, 2),
    'gen_tokens_per_s': round(generated / seconds, 1),
    'rollout_tokens_per_s': round(generated / split['rollout'], 1),
    'phase_seconds': {name: round(value, 4) for name, value in split.items()},
    'phase_share': {name: round(value / whole, 3) for name, value in split.items()},
    'gflop_per_update': round(flops / 1e9, 4), 'gflop_per_s': round(flops / seconds / 1e9, 1),
    'matmul_gflop_per_s': round(rate / 1e9, 1), 'share_of_matmul': round(flops / seconds / rate, 3),
    'compile_seconds': round(done.compile_seconds, 2)}


def show(told: dict[str, Any], write: Callable[[str], None] = print) -> None:
  """The split as a small table."""
  for name, value in told['phase_seconds'].items():
    write(f'{name:9s} {value:7.4f} s  {told["phase_share"][name]:5.1%}')
  write(f'update    {told["sec_per_update"]:7.4f} s  {told["gflop_per_s"]} GFLOP/s, a matmul '
        f'{told["matmul_gflop_per_s"]}')


def main(words: Sequence[str] | None = None) -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', choices=work.SIZES, default='tiny')
  parser.add_argument('--updates', type=int, default=0, help='timed ones; 0: 8 of tiny, 5 of small')
  options = parser.parse_args(words)
  updates = options.updates or (8 if options.size == 'tiny' else 5)
  model = configs.Model(**work.SIZES[options.size])
  rate = measure.matmul_rate(256 if options.size == 'toy' else 2048)
  stage, state, frozen = make(model)
  batch = batch_of(model)
  # Of a copy: the phases train it.
  _, split = phases(CONFIG, stage, jax.tree.map(jnp.copy, state), frozen, batch,
                    max(1, updates // 2))
  done = measure.steps(stage, state, frozen, [batch], updates, ppo=True)
  assert done.metrics['response_length'] == CONFIG.response_length
  told = {'impl': 'rlhf_jax', 'size': options.size} | rates(
    CONFIG, done, split, arithmetic(model), rate) | measure.here()
  show(told)
  work.tell(told)


if __name__ == '__main__':
  main()
