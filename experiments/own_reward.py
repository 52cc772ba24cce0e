"""PPO against a reward of one's own: any jittable function of (tokens, valid, mask) -> [B].

  python -m rlhf_jax run experiments/own_reward.py --workdir runs/own_reward

Here responses are to have eight tokens; the quickstart's models are the start, and most of the
time goes into pretraining. Watch `score` rise towards 0 and `response_length` go to 8.
"""

import dataclasses
import pathlib
import runpy

import jax.numpy as jnp

quickstart = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['runs']


def eight_tokens(tokens, valid, mask):
  """−|length − 8| / 8 of each response; tokens, valid [B, P+R], mask [B, R] -> float32 [B]."""
  return -jnp.abs(jnp.sum(mask, axis=1) - 8.0) / 8.0


runs = {
  'gpt': quickstart['gpt'],
  'sft': quickstart['sft'],
  'ppo': dataclasses.replace(
    quickstart['ppo_ptx'], reward=f'{__file__}:eight_tokens', ptx_ratio=0.0, pretraining=(),
    updates=30, judge=''),
}
