"""The ranking loss against a loop, its derivative, and values worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.objectives import ranking

ranking_loss = jax.jit(ranking.ranking_loss)
gradient_of_loss = jax.jit(jax.grad(lambda *args: jnp.sum(ranking.ranking_loss(*args)[0])))


def one(scores, ranks):
  """The arguments for a single prompt whose completions are all there."""
  return (np.array([scores], np.float32), np.array([ranks], np.int32),
          np.ones((1, len(scores)), bool))


def loop(scores, ranks, present):
  """(loss, correct, pairs) of one prompt, pair by pair."""
  losses, correct = [], 0.0
  for w in range(len(scores)):
    for l in range(len(scores)):
      if present[w] and present[l] and ranks[w] < ranks[l]:
        losses.append(-math.log(1 / (1 + math.exp(-(scores[w] - scores[l])))))
        correct += 1.0 if scores[w] > scores[l] else 0.5 if scores[w] == scores[l] else 0.0
  return sum(losses) / max(len(losses), 1), correct, len(losses)


def random_prompts(prompts, k, seed):
  random = np.random.default_rng(seed)
  scores = random.normal(0, 2, (prompts, k)).astype(np.float32)
  ranks = random.integers(1, k + 1, (prompts, k)).astype(np.int32)
  present = np.arange(k) < random.integers(2, k + 1, (prompts, 1))
  return scores, ranks, present


def test_margin_of_the_paper():
  loss, correct, pairs = ranking_loss(*one([1.3, 0.5], [1, 2]))
  assert round(float(loss[0]), 3) == 0.371  # Δ = 0.8
  assert (float(correct[0]), float(pairs[0])) == (1.0, 1.0)


def test_all_pairs_mean_of_the_paper():
  """Scores (2, 1, 0) in this order: .251, where Plackett-Luce would give .721."""
  loss, _, pairs = ranking_loss(*one([2, 1, 0], [1, 2, 3]))
  assert round(float(loss[0]), 3) == 0.251
  assert float(pairs[0]) == 3


def test_a_wrong_order_costs_the_margins():
  """softplus(x) − softplus(−x) = x, for the margins 1, 1 and 2."""
  right = ranking_loss(*one([2, 1, 0], [1, 2, 3]))[0]
  wrong, correct, _ = ranking_loss(*one([2, 1, 0], [3, 2, 1]))
  np.testing.assert_allclose(wrong - right, 4 / 3, rtol=1e-6)
  assert float(correct[0]) == 0


@pytest.mark.parametrize('k', [2, 3, 4, 9])
def test_equals_the_loop_with_ties_and_masks(k):
  scores, ranks, present = random_prompts(11, k, seed=k)
  scores[0, :2] = 0.25  # equal scores count half
  ranks[0, :2] = (1, 2)
  found = ranking_loss(scores, ranks, present)
  wanted = np.array([loop(*row) for row in zip(scores, ranks, present, strict=True)]).T
  assert wanted[2].max() > 1 or k == 2
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_prompt_of_ties_has_no_pair_and_no_gradient():
  case = one([0.3, -2.0, 5.0], [2, 2, 2])
  loss, correct, pairs = ranking_loss(*case)
  assert (float(loss[0]), float(correct[0]), float(pairs[0])) == (0, 0, 0)
  np.testing.assert_array_equal(gradient_of_loss(*case), 0)


@pytest.mark.parametrize('margin', [-3.0, 0.0, 0.8, 4.0])
def test_gradient_is_one_minus_sigma(margin):
  """∂L/∂r_w = −(1 − σ(Δ)), ∂L/∂r_l = +(1 − σ(Δ))."""
  missing = 1 - 1 / (1 + math.exp(-margin))
  np.testing.assert_allclose(gradient_of_loss(*one([margin, 0], [1, 2])), [[-missing, missing]],
                             rtol=1e-5)


def test_absent_completions_may_hold_anything():
  scores, ranks, present = random_prompts(7, 5, seed=1)
  present[:, 3:] = False
  other = scores.copy()
  other[:, 3], other[:, 4] = 1e30, -np.inf
  for a, b in zip(ranking_loss(scores, ranks, present), ranking_loss(other, ranks, present),
                  strict=True):
    np.testing.assert_array_equal(a, b)
  gradient = np.asarray(gradient_of_loss(other, ranks, present))
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[:, 3:], 0)


def test_large_margins_do_not_overflow():
  np.testing.assert_allclose(ranking_loss(*one([-1e4, 1e4], [1, 2]))[0], [2e4])


def test_bfloat16_scores_are_compared_in_float32():
  scores, ranks, present = one([1.25, 0.5, -3.0], [2, 1, 3])
  loss = ranking_loss(scores.astype(jnp.bfloat16), ranks, present)[0]
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss[0], loop(scores[0], ranks[0], present[0])[0], rtol=1e-6)
