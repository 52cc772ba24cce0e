"""PPO's arithmetic against numpy loops and values worked by hand: GAE, the controller, KL."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.objectives import policy

ROWS, LENGTH = 5, 9
reward_per_token = jax.jit(policy.reward_per_token)
gae = jax.jit(policy.gae)
whiten = jax.jit(policy.whiten, static_argnames='shift')
policy_loss = jax.jit(policy.policy_loss)
value_loss = jax.jit(policy.value_loss, static_argnums=3)
explained_variance = jax.jit(policy.explained_variance)
kl_estimates = jax.jit(policy.kl_estimates)


@jax.jit
def gradient_of_policy_loss(logprobs, old, advantages, mask):
  """Of the sum over the mask, at clip 0.2."""
  losses = lambda x: policy.policy_loss(x, old, advantages, mask, 0.2)[0]
  return jax.grad(lambda x: jnp.sum(jnp.where(mask, losses(x), 0.0)))(logprobs)



@pytest.fixture(scope='module')
def case():
  """Random arrays over right-padded responses of 1 … LENGTH tokens."""
  random = np.random.default_rng(0)
  lengths = np.array([1, 3, 9, 5, 2])
  names = ('kl', 'values', 'rewards', 'logprobs', 'old', 'advantages', 'returns')
  arrays = {n: random.normal(0, 0.5, (ROWS, LENGTH)).astype(np.float32) for n in names}
  return arrays | {
    'mask': np.arange(LENGTH) < lengths[:, None], 'lengths': lengths,
    'score': random.normal(size=ROWS).astype(np.float32)
  }


# -------------------------------------------------------------------------- rewards and advantages


def loop_gae(rewards, values, discount, lam):
  """One row without padding, from the last token back."""
  advantages, after, value_after = np.zeros(len(rewards)), 0.0, 0.0
  for t in reversed(range(len(rewards))):
    delta = rewards[t] + discount * value_after - values[t]
    advantages[t] = after = delta + discount * lam * after
    value_after = values[t]
  return advantages, advantages + values


def test_an_example_worked_by_hand():
  """β=.05, λ=.95, γ=1, k=(.4,−.2,.2), V=(.5,.6,.8), score 1."""
  mask = np.ones((1, 3), bool)
  rewards = reward_per_token(np.array([1.0]), np.array([[0.4, -0.2, 0.2]]), 0.05, mask)
  np.testing.assert_allclose(rewards, [[-0.02, 0.01, 0.99]], atol=1e-6)
  values = np.array([[0.5, 0.6, 0.8]])
  delta, _ = gae(rewards, values, mask, 1.0, 0.0)
  np.testing.assert_allclose(delta, [[0.08, 0.21, 0.19]], atol=1e-6)
  advantages, returns = gae(rewards, values, mask, 1.0, 0.95)
  np.testing.assert_allclose(advantages, [[0.4510, 0.3905, 0.19]], atol=5e-5)
  np.testing.assert_allclose(returns, advantages + values, atol=1e-6)


def test_last_token():
  mask = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
  wanted = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
  np.testing.assert_array_equal(policy.last_token(np.array(mask)), wanted)


@pytest.mark.parametrize('kl_coef', [0.0, 0.02, 3.0])
def test_rewards_equal_the_loop(case, kl_coef):
  found = reward_per_token(case['score'], case['kl'], kl_coef, case['mask'])
  wanted = np.zeros((ROWS, LENGTH))
  for b in range(ROWS):
    for t in range(case['lengths'][b]):
      wanted[b, t] = -kl_coef * case['kl'][b, t]
    wanted[b, case['lengths'][b] - 1] += case['score'][b]
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_kl_in_the_reward_keeps_its_sign():
  mask = np.ones((1, 2), bool)
  rewards = reward_per_token(np.zeros(1), np.array([[-0.3, 0.3]]), 1.0, mask)
  np.testing.assert_allclose(rewards, [[0.3, -0.3]])


def test_integer_tokens_do_not_truncate_the_score():
  """A reward buffer that took its type from tokens would make .7 a 0."""
  found = reward_per_token(np.array([0.7], jnp.bfloat16), np.zeros((1, 2), jnp.int32), 0.1,
                                  np.ones((1, 2), bool))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found[0, 1], 0.7, rtol=1e-2)


@pytest.mark.parametrize(('discount', 'lam'), [(1.0, 0.95), (1.0, 1.0), (0.9, 0.0), (0.97, 0.8)])
def test_gae_equals_the_loop(case, discount, lam):
  found = gae(case['rewards'], case['values'], case['mask'], discount, lam)
  for b, length in enumerate(case['lengths']):
    wanted = loop_gae(case['rewards'][b, :length], case['values'][b, :length], discount, lam)
    for a, w in zip(found, wanted, strict=True):
      np.testing.assert_allclose(a[b, :length], w, rtol=1e-5, atol=1e-6)
      np.testing.assert_array_equal(a[b, length:], 0)


def test_gae_with_lambda_one_is_the_return_to_go(case):
  _, returns = gae(case['rewards'], case['values'], case['mask'], 1.0, 1.0)
  for b, length in enumerate(case['lengths']):
    wanted = np.cumsum(case['rewards'][b, :length][::-1])[::-1]
    np.testing.assert_allclose(returns[b, :length], wanted, rtol=1e-5, atol=1e-5)


def test_gae_does_not_read_the_padding_and_has_no_gradient(case):
  dirty = np.where(case['mask'], case['values'], np.nan)
  clean = gae(case['rewards'], case['values'], case['mask'], 1.0, 0.95)
  for a, b in zip(gae(case['rewards'], dirty, case['mask'], 1.0, 0.95), clean, strict=True):
    np.testing.assert_array_equal(a, b)
  gradient = jax.jit(jax.grad(
    lambda v: sum(jnp.sum(x) for x in gae(case['rewards'], v, case['mask'], 1.0, 0.95))))(
      case['values'])
  np.testing.assert_array_equal(gradient, 0)


def test_whiten_uses_the_population_variance(case):
  values, mask = case['advantages'], case['mask']
  chosen = values[mask]
  wanted = (chosen - chosen.mean()) / chosen.std(ddof=0)
  found = np.asarray(whiten(values, mask))
  np.testing.assert_allclose(found[mask], wanted, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(found[~mask], 0)
  kept = np.asarray(whiten(values, mask, shift=False))
  np.testing.assert_allclose(kept[mask], wanted + chosen.mean(), rtol=1e-4, atol=1e-5)
  sample = (chosen - chosen.mean()) / chosen.std(ddof=1)
  assert np.abs(found[mask] - sample).max() > 0.02  # the difference this test would see


def test_whiten_of_a_constant_is_zero():
  np.testing.assert_allclose(whiten(np.full((2, 3), 4.0, np.float32), np.ones((2, 3), bool)), 0)
  one = np.array([[False, True]])  # its mean is itself
  np.testing.assert_array_equal(whiten(np.float32([[1, 4]]), one), 0)


# ------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize('clip', [0.2, 0.05])
def test_policy_loss_equals_the_loop(case, clip):
  losses, ratio, clipped = policy_loss(case['logprobs'], case['old'], case['advantages'],
                                              case['mask'], clip)
  seen = set()
  for b in range(ROWS):
    for t in range(case['lengths'][b]):
      r = math.exp(case['logprobs'][b, t] - case['old'][b, t])
      a = case['advantages'][b, t]
      plain, bounded = -a * r, -a * min(max(r, 1 - clip), 1 + clip)
      np.testing.assert_allclose(losses[b, t], max(plain, bounded), rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(ratio[b, t], r, rtol=1e-5)
      assert bool(clipped[b, t]) == (bounded > plain)
      seen.add(bool(clipped[b, t]))
  assert seen == {True, False}
  assert not np.asarray(clipped)[~case['mask']].any()
  np.testing.assert_array_equal(np.asarray(ratio)[~case['mask']], 1)


@pytest.mark.parametrize(('ratio', 'advantage', 'moves'), [
  (1.5, 1.0, False),  # already far enough up
  (1.5, -1.0, True),  # must come down
  (0.5, 1.0, True),  # must come up
  (0.5, -1.0, False),  # already far enough down
  (1.1, 1.0, True),
  (0.9, -1.0, True),
])
def test_where_the_clipped_policy_loss_has_a_gradient(ratio, advantage, moves):
  one = np.ones((1, 1), np.float32)
  gradient = gradient_of_policy_loss(math.log(ratio) * one, 0 * one, advantage * one, one > 0)
  np.testing.assert_allclose(gradient, [[-advantage * ratio if moves else 0.0]], rtol=1e-5)


def test_policy_gradient_at_ratio_one_is_minus_the_advantage(case):
  gradient = gradient_of_policy_loss(case['old'], case['old'], case['advantages'], case['mask'])
  np.testing.assert_allclose(gradient, np.where(case['mask'], -case['advantages'], 0), rtol=1e-5)


def test_padding_cannot_make_the_policy_loss_nan(case):
  logprobs = np.where(case['mask'], case['logprobs'], -np.inf)
  losses, _, _ = policy_loss(logprobs, case['old'], case['advantages'], case['mask'], 0.2)
  gradient = gradient_of_policy_loss(logprobs, case['old'], case['advantages'], case['mask'])
  assert np.isfinite(losses).all()
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('clip', [0.0, 0.2])
def test_value_loss_equals_the_loop(case, clip):
  found = value_loss(case['values'], case['old'], case['returns'], clip)
  differs = 0
  for b in range(ROWS):
    for t in range(LENGTH):
      v, old, g = (float(case[n][b, t]) for n in ('values', 'old', 'returns'))
      wanted = plain = (v - g)**2
      if clip:
        wanted = max(plain, (min(max(v, old - clip), old + clip) - g)**2)
      differs += wanted != plain
      np.testing.assert_allclose(found[b, t], 0.5 * wanted, rtol=1e-4, atol=1e-6)
  assert (differs > 0) == (clip > 0)


# -------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize(('mean', 'kl', 'spread', 'bias'), [
  (0.1, 0.005, (20, 1.42, 1.42), 0.002),
  (1.0, 0.5, (2, 1.73, 1.7), 0.25),
])
def test_kl_estimators_on_gaussians(mean, kl, spread, bias):
  """π = N(0, 1), π_ref = N(mean, 1); std/KL of k1, k2, k3, and the bias of k2."""
  n = 2_000_000
  x = np.random.default_rng(0).normal(size=n)
  estimates = kl_estimates((-x**2 / 2).astype(np.float32),
                                  (-(x - mean)**2 / 2).astype(np.float32))
  estimates = [np.asarray(e, np.float64) for e in estimates]
  for found, wanted in zip(estimates, spread, strict=True):
    np.testing.assert_allclose(found.std() / kl, wanted, rtol=0.02)
  k1, k2, k3 = estimates
  error = 5 / math.sqrt(n)  # five standard errors of the mean
  assert abs(k1.mean() / kl - 1) < error * spread[0]
  assert abs(k3.mean() / kl - 1) < error * spread[2]
  assert abs(k2.mean() / kl - 1 - bias) < error * spread[1] + 1e-3
  assert k1.min() < 0  # signed: never clamped, never absolute
  assert k2.min() >= 0
  assert k3.min() >= 0


def test_kl_estimates_know_their_direction():
  """From samples of π, k1 = log π − log π_ref."""
  k1, _, k3 = kl_estimates(np.log([0.8]), np.log([0.2]))
  np.testing.assert_allclose(k1, [math.log(4)], rtol=1e-6)
  np.testing.assert_allclose(k3, [0.25 - 1 + math.log(4)], rtol=1e-6)


@pytest.mark.parametrize(('kl', 'factor'), [
  (6.0, 1.0),
  (6.6, 1 + 0.1 * 512 / 10_000),
  (60.0, 1 + 0.2 * 512 / 10_000),  # at most +1.02 % an update
  (0.0, 1 - 0.2 * 512 / 10_000),
  (-3.0, 1 - 0.2 * 512 / 10_000),
])
def test_controller_is_the_code_form(kl, factor):
  """lm-human-preferences' code, not the paper's K_β = 0.1 (Ziegler et al., 2019)."""
  np.testing.assert_allclose(policy.adapt_kl_coef(0.15, kl, 6.0, 512, 10_000), 0.15 * factor,
                             rtol=1e-6)


def test_explained_variance(case):
  mask, returns = case['mask'], case['returns']
  assert float(explained_variance(returns, returns, mask)) == 1
  assert np.isnan(explained_variance(returns, np.ones_like(returns), mask))
  constant = np.full_like(returns, returns[mask].mean())
  np.testing.assert_allclose(explained_variance(constant, returns, mask), 0, atol=1e-5)
  wanted = 1 - np.mean((returns - case['values'])[mask]**2) / returns[mask].var()
  np.testing.assert_allclose(explained_variance(case['values'], returns, mask), wanted,
                             rtol=1e-4)
