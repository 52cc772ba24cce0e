"""Over-optimisation as in Gao, Schulman and Hilton (2022): reward models of several sizes, trained
on several amounts of data, and nothing that keeps the policy near its start (β = 0).

  python -m rlhf_jax sweep experiments/overoptimization.py --workdir runs/overoptimization

The policy is the quickstart's in every point; so are the labelers. A reward model of another size
starts from an SFT model of its own, with the same tokenizer. Every seed of PPO has a reward model
of its own, so an interval over seeds holds for more than one. With less data that is another draw
of prompts, completions and rankings (of one seed the smaller sets are parts of the larger); sizes
share one SFT model and the quickstart's rankings each, and differ by seed in their training alone:
head, order, what is held out. A workdir that holds the quickstart's models serves.
"""

import dataclasses

from experiments import kl_sweep, quickstart
from rlhf_jax import miniature as world
from rlhf_jax.configs import Sweep

SIZES = {'small': (2, 64), 'large': (6, 192)}  # layers, width; the quickstart's are 4, 128
PROMPTS = (100, 300, 900)  # ranked prompts; the quickstart ranks 1,800
SEEDS = (0, 1, 2)

runs = dict(quickstart.runs)
draws = {}  # reward model -> what it is a draw of
grid = []


def draw(name: str, seed: int) -> str:
  """The name of a reward model for a seed: the first has the plain one."""
  drawn = f'{name}_{seed}' if seed else name
  draws[drawn] = name
  return drawn


for size, (layers, width) in SIZES.items():
  runs[f'gpt_{size}'] = dataclasses.replace(runs['gpt'], model=dataclasses.replace(
    runs['gpt'].model, layers=layers, width=width))
  runs[f'sft_{size}'] = dataclasses.replace(runs['sft'], init_from=f'gpt_{size}')
for seed in SEEDS:
  rewards = [draw('reward', seed)]
  runs[rewards[0]] = dataclasses.replace(runs['reward'], seed=seed)
  for size in SIZES:
    rewards.append(draw(f'reward_{size}', seed))
    runs[rewards[-1]] = dataclasses.replace(
      runs['reward'], init_from=f'sft_{size}', demonstrations='sft', seed=seed)
  for count in PROMPTS:
    rankings = f'rankings_{count}_{seed}' if seed else f'rankings_{count}'
    runs[rankings] = dataclasses.replace(
      runs['rankings'], prompts=(world.prompts_source('reward', count, seed),),
      calibration='rankings', seed=seed)
    rewards.append(draw(f'reward_{count}', seed))
    runs[rewards[-1]] = dataclasses.replace(runs['reward'], data=rankings, seed=seed)
  grid.append({'kl_coef': (0.0,), 'ptx_ratio': (0.0,), 'reward': tuple(rewards), 'seed': (seed,)})

sweep = Sweep(base=kl_sweep.sweep.base, text=kl_sweep.sweep.text, grid=tuple(grid), draw_of=draws)
