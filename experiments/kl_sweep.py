"""What the KL coefficient does: reward, true preference, drift and damage along β.

  python -m rlhf_jax sweep experiments/kl_sweep.py --workdir runs/kl_sweep

The quickstart's models, made first if they are not there; then PPO for five β and three seeds
without the pretraining gradient, and for one β with it. β = 0 is what the others are compared
with: nothing keeps it near the start.
"""

from experiments import quickstart
from rlhf_jax import miniature as world
from rlhf_jax.configs import Sweep

runs = quickstart.runs
sweep = Sweep(
  base='ppo_ptx', text=(world.text_source('heldout', 500),),
  grid=(
    {'kl_coef': (0.0, 0.005, 0.02, 0.1, 0.5), 'ptx_ratio': (0.0,), 'seed': (0, 1, 2)},
    {'kl_coef': (0.02,), 'ptx_ratio': (1.0,), 'seed': (0, 1, 2)}))
