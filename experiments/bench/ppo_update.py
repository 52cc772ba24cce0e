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
import json
import os
import pathlib
import resource
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import configs
from rlhf_jax.model import experience, generate, sharding, transformer
from rlhf_jax.objectives import policy as objective
from rlhf_jax.stages import ppo
from rlhf_jax.stages.stage import Parent

SIZES = {
  'tiny': {'layers': 4, 'width': 128, 'heads': 4, 'vocabulary': 512, 'context': 128},
  'small': {'layers': 6, 'width': 384, 'heads': 6, 'vocabulary': 8192, 'context': 256}}
EPISODES, PROMPT, RESPONSE = 64, 32, 48
CONFIG = configs.PPO(
  episodes=EPISODES, minibatch=16, epochs=1, updates=1000, kl_coef=0.05, ptx_coef=0.0,
  ptx_ratio=0.0, prompt_length=PROMPT, response_length=RESPONSE, ema=0.0,
  policy_optimizer=configs.Optimizer(learning_rate=1e-5, schedule='constant'),
  value_optimizer=configs.Optimizer(learning_rate=1e-5, schedule='constant'))


class Endless:
  """A tokenizer whose end token lies outside the vocabulary: every response has its full length."""
  identity, pad = '', 0

  def __init__(self, vocabulary: int):
    self.eos, self.ends = vocabulary + 1, (vocabulary + 1,)


def timed(function, repeats: int) -> float:
  """Median seconds of a call that returns arrays, after one call to warm up."""
  jax.block_until_ready(function())
  walls = []
  for _ in range(repeats):
    started = time.perf_counter()
    jax.block_until_ready(function())
    walls.append(time.perf_counter() - started)
  return float(np.median(walls))


def matmul_rate(size: int = 2048, repeats: int = 5) -> float:
  """FLOP/s of a large float32 matrix product on this machine, now."""
  a = jax.random.normal(jax.random.key(0), (size, size))
  product = jax.jit(jnp.matmul)
  return 2 * size**3 / timed(lambda: product(a, a), repeats)


def arithmetic(model: configs.Model) -> float:
  """FLOPs of the matrix products of one update, recomputation and masked attention not counted.

  Per token forward: 2 FLOPs a weight of the blocks, 2·D·V where logits are needed, and attention's
  4·D·(tokens looked at); a backward pass is twice its forward pass.
  """
  width, total = model.width, PROMPT + RESPONSE
  blocks = model.layers * 12 * width**2
  row = total * 2 * blocks + model.layers * 4 * width * total * (total + 1) / 2
  unembed = RESPONSE * 2 * width * model.vocabulary
  rollout = row + unembed
  scoring = 3 * row + unembed  # reference with logits, reward model, values
  training = 3 * (2 * row + unembed)  # policy with logits, value model
  return EPISODES * (rollout + scoring + training)


def make(model: configs.Model):
  """(stage, models, state, frozen) of the benchmark's PPO."""
  tokenizer = Endless(model.vocabulary)
  shapes = functools.partial(transformer.init, model)
  params = {'policy': jax.jit(shapes)(jax.random.key(1)),
            'reward': jax.jit(functools.partial(shapes, scalar=True))(jax.random.key(2))}
  parents = {role: Parent(model, tokenizer, tree) for role, tree in params.items()}
  stage = ppo.make(CONFIG, parents, None)
  state = jax.jit(stage.init)(jax.random.key(0), params)
  return stage, state, jax.jit(stage.freeze)(params)


def phases(model, stage, state, frozen, batch, repeats: int) -> dict[str, float]:
  """Seconds of rollout, scoring and training, each compiled by itself."""
  models = stage.update.args[1]
  options = {'length': RESPONSE, 'temperature': CONFIG.temperature, 'eos': models.eos,
             'pad': models.pad}

  @jax.jit
  def roll_out(params, prompts, key):
    decoding = sharding.for_decoding(params, models.policy_axes, model.compute)
    return generate.generate_in_chunks(model, decoding, prompts['tokens'], prompts['valid'], key,
                                       CONFIG.rollout_chunks, **options)

  @jax.jit
  def score(state, frozen, rollout):
    rows = (rollout.tokens, rollout.valid)
    reference = experience.response_logprobs(model, frozen['reference'], *rows, RESPONSE)
    kl = objective.kl_estimates(rollout.logprobs, reference)[0]
    scores = models.score(frozen['reward'], *rows, rollout.mask)
    values = experience.response_values(models.value, state.value.params, *rows, RESPONSE)
    rewards = objective.reward_per_token(scores, kl, state.kl_coef, rollout.mask)
    advantages, returns = objective.gae(rewards, values, rollout.mask, CONFIG.discount,
                                        CONFIG.gae_lambda)
    return experience.Experience(rollout=rollout, score=scores, kl=kl, values=values,
                                 advantages=objective.whiten(advantages, rollout.mask),
                                 returns=returns)

  train = jax.jit(lambda state, seen, key: ppo.epochs_of_minibatches(
    CONFIG, models, state, seen, None, key))
  key = jax.random.key(5)
  rollout = roll_out(state.policy.params, batch['prompts'], key)
  seen = score(state, frozen, rollout)
  assert bool(rollout.mask.all())
  return {'rollout': timed(lambda: roll_out(state.policy.params, batch['prompts'], key), repeats),
          'scoring': timed(lambda: score(state, frozen, rollout), repeats),
          'training': timed(lambda: train(state, seen, key), repeats)}


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', choices=SIZES, default='tiny')
  parser.add_argument('--updates', type=int, default=0, help='timed ones; 0: 8 of tiny, 5 of small')
  options = parser.parse_args()
  updates = options.updates or (8 if options.size == 'tiny' else 5)
  model = configs.Model(**SIZES[options.size])
  rate = matmul_rate()
  stage, state, frozen = make(model)
  key = jax.random.key(3)
  tokens = np.random.default_rng(0).integers(0, model.vocabulary, (EPISODES, PROMPT))
  batch = {'prompts': {'tokens': tokens.astype(np.int32), 'valid': np.ones_like(tokens, bool)}}
  split = phases(model, stage, state, frozen, batch, max(3, updates // 2))

  started = time.perf_counter()
  update = jax.jit(lambda state, frozen, batch, key, step: stage.update(
    state, frozen, batch, jax.random.fold_in(key, step)), donate_argnums=0)
  compiled = update.lower(state, frozen, batch, key, np.int32(0)).compile()
  compile_seconds, walls, cpus = time.perf_counter() - started, [], []
  for step in range(updates + 2):  # two to warm up
    wall, cpu = time.perf_counter(), time.process_time()
    state, metrics = compiled(state, frozen, batch, key, np.int32(step))
    jax.block_until_ready(metrics)
    walls.append(time.perf_counter() - wall)
    cpus.append(time.process_time() - cpu)
  walls, cpus = walls[2:], cpus[2:]
  seconds, whole = float(np.median(walls)), sum(split.values())
  flops = arithmetic(model)
  told = {
    'impl': 'rlhf_jax', 'size': options.size, 'updates_timed': updates,
    'sec_per_update': round(seconds, 4), 'sec_min': round(min(walls), 4),
    'sec_max': round(max(walls), 4), 'cpu_s_per_update': round(float(np.median(cpus)), 4),
    'episodes_per_s': round(EPISODES / seconds, 2),
    'gen_tokens_per_s': round(EPISODES * RESPONSE / seconds, 1),
    'rollout_tokens_per_s': round(EPISODES * RESPONSE / split['rollout'], 1),
    'phase_seconds': {name: round(value, 4) for name, value in split.items()},
    'phase_share': {name: round(value / whole, 3) for name, value in split.items()},
    'gflop_per_update': round(flops / 1e9, 2), 'gflop_per_s': round(flops / seconds / 1e9, 1),
    'matmul_gflop_per_s': round(rate / 1e9, 1),
    'share_of_matmul': round(flops / seconds / rate, 3),
    'compile_seconds': round(compile_seconds, 2),
    'peak_rss_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    'jax': jax.__version__, 'device': jax.devices()[0].device_kind,
    'loadavg': [round(x, 2) for x in os.getloadavg()]}
  for name, value in split.items():
    print(f'{name:9s} {value:7.4f} s  {value / whole:5.1%}')
  print(f'update    {seconds:7.4f} s  {told["gflop_per_s"]} GFLOP/s, a matmul '
        f'{told["matmul_gflop_per_s"]}')
  print('RESULT ' + json.dumps(told))


if __name__ == '__main__':
  main()
