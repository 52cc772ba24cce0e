"""The reward model's loss on K-way rankings (InstructGPT Eq. 1).

Enter: scores and ranks of K completions a prompt. Leave: one loss a prompt, and the count of pairs
ordered rightly.
Left out: Plackett-Luce and best-of-K softmax (other objectives, not the paper's).
"""

import chex
import jax
import jax.numpy as jnp


def pair_mask(ranks: chex.Array, present: chex.Array) -> chex.Array:
  """[B, K, K] true at (i, j) where completion i is ranked strictly better (smaller rank) than j."""
  chex.assert_rank([ranks, present], 2)
  better = ranks[:, :, None] < ranks[:, None, :]
  return better & present[:, :, None] & present[:, None, :]


def ranking_loss(scores: chex.Array, ranks: chex.Array,
                 present: chex.Array) -> tuple[chex.Array, chex.Array, chex.Array]:
  """Mean of −log σ(r_w − r_l) over the non-tied pairs of each prompt.

  loss_b = (1/|pairs_b|) Σ_{(w,l) ∈ pairs_b} softplus(−(r_w − r_l))      (Ouyang et al. 2022, Eq. 1)

  Args:
    scores: float [B, K].
    ranks: int [B, K], 1 is best, equal ranks are ties and give no pair.
    present: bool [B, K], false where a prompt has fewer than K completions.

  Returns:
    loss: float32 [B], 0 for a prompt without pairs.
    correct: float32 [B], pairs with r_w > r_l (½ for equal scores).
    pairs: float32 [B], number of pairs. A mean over prompts divides by count(pairs > 0).
  """
  chex.assert_equal_shape([scores, ranks, present])
  mask = pair_mask(ranks, present)
  scores = scores.astype(jnp.float32)
  margin = scores[:, :, None] - scores[:, None, :]
  pairs = jnp.sum(mask, axis=(1, 2)).astype(jnp.float32)
  # where() before softplus as well: scores of absent completions may be anything.
  losses = jnp.where(mask, jax.nn.softplus(-jnp.where(mask, margin, 0.0)), 0.0)
  right = jnp.where(mask, (margin > 0) + 0.5 * (margin == 0), 0.0)
  return (jnp.sum(losses, axis=(1, 2)) / jnp.maximum(pairs, 1.0), jnp.sum(right,
                                                                          axis=(1, 2)), pairs)
