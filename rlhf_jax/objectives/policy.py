"""PPO for sequences: rewards with the KL penalty, GAE, clipped losses, KL estimates, KL control.

Enter: arrays over response tokens [B, R], right-padded, a mask. Leave: float32 [B, R] or scalars.
Left out: entropy bonus (none in the paper), dual clip, reward whitening. All is done in float32.
"""

import chex
import jax
import jax.numpy as jnp


def last_token(mask: chex.Array) -> chex.Array:
  """bool [B, R], true at the last true position of each row (eos, or where it was cut)."""
  after = jnp.concatenate([mask[:, 1:], jnp.zeros_like(mask[:, :1])], axis=1)
  return mask & ~after


def reward_per_token(score: chex.Array, kl: chex.Array, kl_coef: chex.Array | float,
                     mask: chex.Array) -> chex.Array:
  """R_t = −β·k_t + 1[t = last]·score, 0 outside the mask. float32 [B, R].

  k_t = log π(y_t|s_t) − log π_ref(y_t|s_t) is the signed k1 estimate: never clamped, never absolute
  (Ziegler et al. 2019; Ouyang et al. 2022, Eq. 2).

  Args:
    score: [B] reward-model score of the whole response.
    kl: [B, R] k1 a token.
    kl_coef: β, per token.
    mask: bool [B, R] of response tokens, eos included.
  """
  chex.assert_rank([score, kl, mask], [1, 2, 2])
  score, kl = score.astype(jnp.float32), kl.astype(jnp.float32)
  rewards = -kl_coef * kl + last_token(mask) * score[:, None]
  return jnp.where(mask, rewards, 0.0)


def gae(rewards: chex.Array, values: chex.Array, mask: chex.Array, discount: float,
        lam: float) -> tuple[chex.Array, chex.Array]:
  """Generalised advantage estimation over the response; the value after the last token is 0.

  δ_t = R_t + γ·V_{t+1} − V_t,  A_t = δ_t + γλ·A_{t+1},  G_t = A_t + V_t      (Schulman et al. 2016)

  Returns:
    advantages, returns: float32 [B, R], 0 outside the mask, without gradient.
  """
  chex.assert_equal_shape([rewards, values, mask])
  values = jnp.where(mask, values.astype(jnp.float32), 0.0)
  following = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
  delta = jnp.where(mask, rewards.astype(jnp.float32) + discount * following - values, 0.0)

  def back(advantage, step):
    advantage = step + discount * lam * advantage
    return advantage, advantage

  _, advantages = jax.lax.scan(back, jnp.zeros_like(delta[:, 0]), delta.T, reverse=True)
  advantages = jnp.where(mask, advantages.T, 0.0)
  return jax.lax.stop_gradient(advantages), jax.lax.stop_gradient(advantages + values)


def whiten(values: chex.Array, mask: chex.Array, shift: bool = True) -> chex.Array:
  """Mean 0 (unless `shift=False`) and population variance 1 at masked positions, 0 elsewhere."""
  count = jnp.maximum(jnp.sum(mask), 1)
  mean = jnp.sum(jnp.where(mask, values, 0.0)) / count
  variance = jnp.sum(jnp.where(mask, (values - mean)**2, 0.0)) / count
  white = (values - mean) * jax.lax.rsqrt(variance + 1e-8)
  return jnp.where(mask, white if shift else white + mean, 0.0)


def policy_loss(logprobs: chex.Array, old_logprobs: chex.Array, advantages: chex.Array,
                mask: chex.Array, clip: float) -> tuple[chex.Array, chex.Array, chex.Array]:
  """The clipped surrogate (Schulman et al. 2017), a token.

  ρ_t = exp(log π(y_t) − log π_old(y_t));  L_t = max(−A_t·ρ_t, −A_t·clip(ρ_t, 1−ε, 1+ε))

  Returns:
    losses [B, R], ratio [B, R] (1 outside the mask), bool [B, R] where clipping decides.
  """
  chex.assert_equal_shape([logprobs, old_logprobs, advantages, mask])
  # Outside the mask log-probs mean nothing and may be -inf: 0 there keeps NaN out of the gradient.
  ratio = jnp.exp(jnp.where(mask, logprobs - old_logprobs, 0.0))
  plain = -advantages * ratio
  bounded = -advantages * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
  return jnp.maximum(plain, bounded), ratio, mask & (bounded > plain)


def value_loss(values: chex.Array, old_values: chex.Array, returns: chex.Array,
               clip: float) -> chex.Array:
  """½·max((V−G)², (V_old + clip(V−V_old, ±c) − G)²) a token [B, R]; without clipping where c = 0.

  (lm-human-preferences; the paper does not say whether values are clipped.)
  """
  chex.assert_equal_shape([values, old_values, returns])
  error = (values - returns)**2
  if clip:
    bounded = old_values + jnp.clip(values - old_values, -clip, clip)
    error = jnp.maximum(error, (bounded - returns)**2)
  return 0.5 * error


def kl_estimates(logprobs: chex.Array,
                 reference_logprobs: chex.Array) -> tuple[chex.Array, chex.Array, chex.Array]:
  """k1, k2, k3 of KL(π‖π_ref) from samples of π (Schulman, Approximating KL divergence).

  With r = π_ref/π: k1 = −ln r (unbiased, signed), k2 = ½(ln r)² (biased), k3 = (r − 1) − ln r
  (unbiased, ≥ 0).
  """
  log_ratio = reference_logprobs - logprobs
  return -log_ratio, 0.5 * log_ratio**2, jnp.expm1(log_ratio) - log_ratio


def adapt_kl_coef(kl_coef: chex.Array, kl: chex.Array, target: float, episodes: int,
                  horizon: float) -> chex.Array:
  """β ← β·(1 + clip(KL/target − 1, ±0.2)·n/horizon), as in lm-human-preferences' code.

  Args:
    kl: mean over sequences of the *sum* over tokens, in nats.
    target: nats a sequence, > 0.
    episodes: n, sequences in this update.
    horizon: episodes over which the controller acts, > 0.
  """
  error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
  return kl_coef * (1.0 + error * episodes / horizon)


def explained_variance(values: chex.Array, returns: chex.Array, mask: chex.Array) -> chex.Array:
  """1 − E[(G−V)²] / Var[G] over the masked positions; NaN of returns that are all alike."""
  count = jnp.maximum(jnp.sum(mask), 1)
  mean = jnp.sum(jnp.where(mask, returns, 0.0)) / count
  variance = jnp.sum(jnp.where(mask, (returns - mean)**2, 0.0)) / count
  error = jnp.sum(jnp.where(mask, (returns - values)**2, 0.0)) / count
  return jnp.where(variance > 1e-8, 1.0 - error / (variance + 1e-8), jnp.nan)
