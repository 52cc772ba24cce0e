"""The KL coefficient from 1e-4 to 2, as far as the paper's figures go, and 0.

  python -m rlhf_jax sweep experiments/kl_sweep_full.py --workdir runs/kl_sweep_full

kl_sweep.py with a finer grid and five seeds, all of it with and without the pretraining gradient:
130 points, meant for many machines (launch/sweep.sh). The paper's own grid is read off Figures 34
and 36: log-linear between the same ends.
"""

from experiments import kl_sweep, quickstart
from rlhf_jax.configs import Sweep

BETAS = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

runs = quickstart.runs
sweep = Sweep(
  base=kl_sweep.sweep.base, text=kl_sweep.sweep.text,
  grid=({'kl_coef': BETAS, 'ptx_ratio': (0.0, 1.0), 'seed': (0, 1, 2, 3, 4)},))
