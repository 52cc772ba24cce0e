"""Thirty tiny updates with a reward of one's own: it is learnt, and β holds the policy back."""

import dataclasses
import functools

import numpy as np
import pytest

SEVEN = 7


def share_of_seven(tokens, valid, mask):
  """The reward: the share of a response's tokens that are id 7, times 5."""
  hits = (tokens[:, -mask.shape[1]:] == SEVEN) & mask
  return 5.0 * hits.sum(axis=1) / mask.sum(axis=1)


@pytest.fixture(scope='module')
def own(bench, tiny):
  """PPO with that reward: the value model is the policy's trunk with a zero head."""
  optimizer = dataclasses.replace(tiny.ADAM, warmup=0, learning_rate=0.002)
  config = dataclasses.replace(
    tiny.PPO, reward=f'{__file__}:share_of_seven', ptx_ratio=0.0, episodes=64, minibatch=32,
    rollout_chunks=2, temperature=1.0, no_eos_penalty=0.0, value_clip=0.0, kl_coef=0.0,
    policy_optimizer=optimizer, value_optimizer=optimizer)
  return bench(config)


@pytest.fixture(scope='module')
def runs(own):
  """β -> the metrics of its updates, each run once."""
  return functools.cache(lambda kl_coef: own.run(20 if kl_coef == 1000 else 30, kl_coef=kl_coef)[1])


def late(told, name):
  return np.mean([row[name] for row in told[-5:]])


def test_the_score_is_the_own_reward(own):
  _, metrics = own.step()
  samples = {k: np.asarray(v) for k, v in metrics['samples'].items()}
  mask = samples['valid'][:, -5:]
  hits = (samples['tokens'][:, -5:] == SEVEN) & mask
  np.testing.assert_allclose(samples['score'], 5 * hits.sum(axis=1) / mask.sum(axis=1), rtol=1e-5)
  np.testing.assert_array_equal(samples['tokens'][:, :6], own.batch['prompts']['tokens'])


def test_the_value_model_starts_as_the_policys_trunk_with_a_zero_head(own, tiny):
  value, policy = own.state.value.params, own.params['policy']
  np.testing.assert_array_equal(value['head']['kernel'], 0)
  for name in ('embed', 'blocks', 'norm'):
    assert tiny.far(value[name], policy[name]) == 0
  assert own.frozen['reward'] is None


def test_rollouts_in_chunks_keep_the_ratio_at_one(own):
  _, metrics = own.step()
  assert abs(float(metrics['ratio_first']) - 1) <= 1e-5
  assert float(metrics['logprob_gap']) <= 1e-5


def test_a_known_reward_is_learnt(runs):
  """From a share of about 3 % to more than three quarters."""
  told = runs(0.0)
  assert told[0]['score'] < 0.5
  assert late(told, 'score') > 0.75 * 5


def test_a_larger_beta_ends_at_a_smaller_kl(runs):
  free, held, tied = (late(runs(kl_coef), 'kl') for kl_coef in (0.0, 0.3, 3.0))
  assert free > 5 * held > 25 * tied > 0
  assert late(runs(0.3), 'score') > 2 * runs(0.3)[0]['score']  # held, and still learning


def test_an_enormous_beta_keeps_the_policy_at_home(runs):
  """β = 1000: in none of 20 updates more than half a nat a sequence, where β = 0 goes beyond 20."""
  assert max(row['kl'] for row in runs(1000)) < 0.5
  assert max(row['kl'] for row in runs(0.0)) > 20
