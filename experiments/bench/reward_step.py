"""Tokens a second of a reward-model step of the product itself, and of transformers on the same
rows.

  python experiments/bench/reward_step.py --size tiny|small [--steps N]
  python experiments/bench/reward_step.py --size tiny --interleave 3 --peer-python PATH

The work is told in training_step.py. Last line: RESULT {json}.
"""

import work

if __name__ == '__main__':
  work.begin()
  import training_step  # and jax
  training_step.main('reward')
