"""experiments/instructgpt.py: every run of the paper, traced by shape, against printed sizes."""

import functools
import pathlib

import jax
import pytest

from rlhf_jax import configs
from rlhf_jax.runtime import abstract, experiment, flops, layout

FILE = pathlib.Path(__file__).resolve().parent.parent / 'experiments' / 'instructgpt.py'
PAPER = experiment.load(FILE)
SIZES = {'1b3': 1.3e9, '6b': 6.7e9, '175b': 175e9}  # GPT-3, table 2.1
DAY = 8.64e19  # FLOPs of a petaflop/s-day


@functools.cache
def counted(name):
  """(the run by shapes, FLOPs of an update)."""
  made = abstract.make(PAPER, name)
  state, frozen = layout.shapes(made)
  key = jax.eval_shape(lambda: jax.random.key(0))
  update = jax.jit(made.stage.update).trace(state, frozen, made.stage.batch_shapes, key)
  length = getattr(made.config, 'response_length', None)
  return made, flops.count(update.jaxpr.jaxpr, length, 'scoring')


def test_the_runs_are_the_papers():
  kinds = ('sft', 'init', 'ppo', 'ppo_ptx')
  assert {f'{kind}_{size}' for kind in kinds for size in SIZES} | {'reward_6b'} <= set(PAPER.runs)
  for name, config in PAPER.runs.items():
    if isinstance(config, configs.PPO):
      assert (config.episodes, config.minibatch, config.kl_coef) == (512, 64, 0.02)
      assert config.prompt_length + config.response_length == config.text_length == 2048
      assert (config.ptx_coef, config.ptx_ratio) == ((27.8, 8) if 'ptx' in name else (0, 0))


@pytest.mark.parametrize('name', PAPER.runs)
def test_every_run_is_traced(name):
  made, counts = counted(name)
  assert counts.total > 0
  state, _ = layout.shapes(made)
  params = state.policy.params if isinstance(made.config, configs.PPO) else state.model.params
  size = sum(x.size for x in jax.tree.leaves(params))
  assert size == pytest.approx(SIZES[name.rsplit('_', 1)[1]], rel=0.02)


@pytest.mark.parametrize('name', ['ppo_175b', 'ppo_ptx_175b'])
def test_phases(name):
  _, counts = counted(name)
  assert (counts.phases['ptx'] > 0) == ('ptx' in name)
  assert all(counts.phases[phase] > 0 for phase in ('rollout', 'scoring', 'training'))


@pytest.mark.parametrize(('name', 'days'), [('gpt_175b', 3640), ('sft_175b', 4.9),
                                            ('ppo_ptx_175b', 60)])
def test_compute_is_near_the_papers(name, days):
  """Without recomputation; the paper's 4.9 are 16 epochs of 2048 tokens a demonstration."""
  made, counts = counted(name)
  found = (counts.total - counts.recomputed) * made.stage.steps / DAY
  assert found == pytest.approx(days, rel=0.1)
