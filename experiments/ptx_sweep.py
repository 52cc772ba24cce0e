"""The pretraining gradient's coefficient γ: what it gives back and what it costs.

  python -m rlhf_jax sweep experiments/ptx_sweep.py --workdir runs/ptx_sweep

γ multiplies the mean loss a token here, so the paper's 27.8 is another number unless its loss was a
mean too. All points run the pass over text, so all of them are one program; at γ = 0 it is skipped.
The workdir of kl_sweep.py may be given: its models serve.
"""

from experiments import kl_sweep, quickstart
from rlhf_jax.configs import Sweep

runs = quickstart.runs
sweep = Sweep(
  base=kl_sweep.sweep.base, text=kl_sweep.sweep.text,
  grid=({'ptx_coef': (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), 'kl_coef': (0.02,),
         'seed': (0, 1, 2)},))
