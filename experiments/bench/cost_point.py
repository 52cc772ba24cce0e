"""One point of cost_curves.py, in a process of its own: seconds and memory of a PPO update.

  python experiments/bench/cost_point.py JSON     last line: RESULT {json}

The JSON is {} (an idle process), or a size, episodes, response length and how many updates are
timed; with `lengths` it is those distributions of response lengths that are compared.
Lengths are exact: the policy counts down. Its blocks add nothing to the embedding, and after token
n the next is n − 1 for certain, so a row whose prompt ends in n answers n tokens, the last of them
the end token 0. The work is that of any policy of this shape with tables of its own.
Left out: pretraining text, several devices.
"""

import dataclasses
import functools
import resource
import sys
import time
from typing import Any

import work

if __name__ == '__main__':
  work.begin()
sys.path.insert(0, str(work.ROOT))

import jax
import jax.numpy as jnp
import measure
import numpy as np
import ppo_update

from rlhf_jax import configs
from rlhf_jax.model import transformer
from rlhf_jax.stages import ppo

PROMPT = 32
CERTAIN = 60.0  # logit of the next number; the others' are below two thirds of it


@dataclasses.dataclass(frozen=True)
class Zero:
  """A tokenizer whose token 0 ends a response."""
  identity: str = ''
  pad: int = 1
  eos: int = 0
  ends: tuple[int, ...] = (0,)


def counting(model: configs.Model, key: jax.Array) -> Any:
  """Parameters of a policy that says n − 1 after n."""
  params = transformer.init(model, key)
  signs = jnp.sign(jax.random.normal(key, params['embed']['tokens'].shape))
  blocks = dict(params['blocks'])
  for part, last in (('attention', 'out'), ('mlp', 'down')):
    blocks[part] = blocks[part] | {last: jax.tree.map(jnp.zeros_like, blocks[part][last])}
  table = jnp.roll(signs, -1, axis=0) * CERTAIN / model.width
  return params | {'blocks': blocks, 'embed': {'tokens': signs}, 'unembed': {'tokens': table}}


def drawn(name: str, rows: int, response: int) -> np.ndarray:
  """Response lengths, int [rows] in 1 … response: 'full', 'uniform', 'geometric/N' (mean R/N, cut
  at R).
  """
  random = np.random.default_rng(0)
  if name == 'full':
    return np.full(rows, response)
  if name == 'uniform':
    return random.integers(1, response + 1, rows)
  kind, _, part = name.partition('/')
  if kind != 'geometric' or not part.isdigit():
    raise ValueError(f'{name}: expected full, uniform or geometric/N')
  return np.minimum(random.geometric(int(part) / response, rows), response)


def settings(wish: dict[str, Any], **model: Any) -> tuple[configs.Model, configs.PPO]:
  """The model and the run of a point; rows always fit the context."""
  shape = work.SIZES[wish['size']] | {'context': PROMPT + wish['response']} | model
  config = dataclasses.replace(ppo_update.CONFIG, episodes=wish['episodes'], prompt_length=PROMPT,
                               response_length=wish['response'])
  return configs.Model(**shape), config


def curve(wish: dict[str, Any]) -> dict[str, Any]:
  """Seconds an update where every response has its full length."""
  model, config = settings(wish)
  stage, state, frozen = ppo_update.make(model, config)
  weights = measure.parameters(state.policy.params)
  done = measure.steps(stage, state, frozen, [ppo_update.batch_of(model, config)],
                       wish['updates'], warm=1, ppo=True)
  return {'parameters': weights, 'sec_per_update': round(done.seconds, 5),
          'sec_min': round(min(done.walls), 5), 'compile_seconds': round(done.compile_seconds, 2),
          'gflop_per_update': round(ppo_update.arithmetic(model, config) / 1e9, 4),
          'program_mb': round(done.program_bytes / 2**20, 1)}


def early_exit(wish: dict[str, Any]) -> dict[str, Any]:
  """Seconds of the rollout and of the whole update under each distribution, in turns."""
  model, config = settings(wish, tied=False)
  still = dataclasses.replace(ppo_update.OPTIMIZER, learning_rate=0.0)  # it goes on counting
  config = dataclasses.replace(config, policy_optimizer=still, value_optimizer=still)
  policy = jax.jit(functools.partial(counting, model))(jax.random.key(1))
  stage, state, frozen = ppo_update.make(model, config, Zero(), policy)
  update = measure.executables.update(stage, None)
  roll_out = jax.jit(functools.partial(ppo.roll_out, config, stage.update.args[1]))
  key, batches, seconds = jax.random.key(3), {}, {name: ([], []) for name in wish['lengths']}
  for name in wish['lengths']:
    batch = ppo_update.batch_of(model, config)
    wanted = drawn(name, config.episodes, config.response_length)
    batch['prompts']['tokens'][:, -1] = wanted
    batches[name] = (batch, wanted)
    found = roll_out(policy, batch['prompts'], key).mask.sum(axis=1)
    if not np.array_equal(found, wanted):
      raise work.Failed(f'{name}: the policy did not count: {found} instead of {wanted}')
  for number in range(1 + wish['updates']):  # one to warm up
    for name, (batch, _) in batches.items():
      started = time.perf_counter()
      jax.block_until_ready(roll_out(policy, batch['prompts'], key))
      rolled = time.perf_counter()
      state, metrics = update(state, frozen, batch, key, np.int32(0))
      jax.block_until_ready(metrics)
      if number:
        seconds[name][0].append(rolled - started)
        seconds[name][1].append(time.perf_counter() - rolled)
  return {'lengths': [
    {'name': name, 'mean': round(float(wanted.mean()), 2), 'longest': int(wanted.max()),
     'rollout_seconds': round(float(np.median(seconds[name][0])), 5),
     'sec_per_update': round(float(np.median(seconds[name][1])), 5)}
    for name, (_, wanted) in batches.items()]}


def main() -> None:
  """Measures and prints."""
  wish = work.wish(__doc__)
  if not wish:
    jax.block_until_ready(jax.jit(jnp.negative)(jnp.ones(8)))
    told = {}
  else:
    told = wish | (early_exit if 'lengths' in wish else curve)(wish)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  work.tell(told | {'peak_rss_mb': round(peak, 1)})


if __name__ == '__main__':
  main()
