"""Over-optimisation as in Gao, Schulman and Hilton (2022): reward models of several sizes, trained
on several amounts of data, and nothing that keeps the policy near its start (β = 0).

  python -m rlhf_jax sweep experiments/overoptimization.py --workdir runs/overoptimization

The policy is the quickstart's in every point; so are the labelers. A reward model of another size
starts from an SFT model of its own, with the same tokenizer. A workdir that holds the quickstart's
models serves.
"""

import dataclasses

from experiments import kl_sweep, quickstart
from rlhf_jax import miniature as world
from rlhf_jax.configs import Sweep

SIZES = {'small': (2, 64), 'large': (6, 192)}  # layers, width; the quickstart's are 4, 128
PROMPTS = (100, 300, 900)  # ranked prompts; the quickstart ranks 1,800

runs = dict(quickstart.runs)
for size, (layers, width) in SIZES.items():
  runs[f'gpt_{size}'] = dataclasses.replace(runs['gpt'], model=dataclasses.replace(
    runs['gpt'].model, layers=layers, width=width))
  runs[f'sft_{size}'] = dataclasses.replace(runs['sft'], init_from=f'gpt_{size}')
  runs[f'reward_{size}'] = dataclasses.replace(
    runs['reward'], init_from=f'sft_{size}', demonstrations='sft')
for count in PROMPTS:
  runs[f'rankings_{count}'] = dataclasses.replace(
    runs['rankings'], prompts=(world.prompts_source('reward', count),), calibration='rankings')
  runs[f'reward_{count}'] = dataclasses.replace(runs['reward'], data=f'rankings_{count}')

sweep = Sweep(
  base=kl_sweep.sweep.base, text=kl_sweep.sweep.text,
  grid=({'kl_coef': (0.0,), 'ptx_ratio': (0.0,), 'seed': (0, 1, 2),
         'reward': ('reward', *(f'reward_{what}' for what in (*SIZES, *PROMPTS)))},))
