"""Log-probabilities of tokens against a loop; chunks; padding rows of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.objectives import likelihood

BATCH, LENGTH, WIDTH, ROWS, VOCABULARY = 3, 7, 5, 16, 11
token_logprobs = jax.jit(likelihood.token_logprobs, static_argnums=(3, 5))
logits_of = jax.jit(likelihood.logits_of, static_argnums=2)
masked_mean = jax.jit(likelihood.masked_mean)


@pytest.fixture(scope='module')
def case():
  random = np.random.default_rng(0)
  hidden = random.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
  table = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
  targets = random.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
  return hidden, table, targets


def loop(hidden, table, targets, temperature):
  found = np.zeros(targets.shape)
  for b in range(targets.shape[0]):
    for t in range(targets.shape[1]):
      logits = [float(hidden[b, t] @ table[v]) / temperature for v in range(VOCABULARY)]
      found[b, t] = logits[targets[b, t]] - np.log(np.sum(np.exp(logits)))
  return found


@pytest.mark.parametrize('chunk', [0, 3])
@pytest.mark.parametrize('temperature', [1.0, 0.5, 2.0])
def test_equals_the_loop(case, temperature, chunk):
  found = token_logprobs(*case, VOCABULARY, temperature, chunk)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, loop(*case, temperature), rtol=1e-5, atol=1e-5)


def test_chunks_have_the_gradient_of_the_whole(case):
  hidden, table, targets = case
  weights = np.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) / 10

  def gradient(chunk):
    def loss(arrays):
      return jnp.sum(weights * token_logprobs(*arrays, targets, VOCABULARY, 1.3, chunk))

    return jax.jit(jax.grad(loss))((hidden, table))

  for a, b in zip(gradient(3), gradient(0), strict=True):
    assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)


def test_a_tables_gradient_in_bfloat16_does_not_depend_on_chunks():
  """It is added up over 64 pieces, in float32."""
  random = np.random.default_rng(1)
  hidden, table = random.normal(size=(2, 256, 32)), random.normal(size=(64, 32)) / 4
  targets, weights = random.integers(0, 64, (2, 256)), random.random((2, 256))

  def gradient(chunk, dtype):
    def loss(table):
      return jnp.sum(weights * token_logprobs(jnp.asarray(hidden, dtype), table.astype(dtype),
                                              targets, 64, 1.0, chunk))

    return jax.jit(jax.grad(loss))(jnp.float32(table))

  exact = gradient(0, jnp.float32)
  error = lambda chunk: np.linalg.norm(gradient(chunk, jnp.bfloat16) - exact)
  assert error(4) <= 1.5 * error(0)


def test_padding_rows_have_probability_zero(case):
  hidden, table, _ = case
  table = table.copy()
  table[VOCABULARY:] *= 100  # would win every softmax
  logits = logits_of(hidden, table, VOCABULARY)
  assert logits.shape == (BATCH, LENGTH, ROWS)
  probability = np.asarray(jax.nn.softmax(logits))
  np.testing.assert_array_equal(probability[..., VOCABULARY:], 0)
  np.testing.assert_allclose(probability.sum(-1), 1, rtol=1e-6)
  every = [token_logprobs(hidden, table, np.full((BATCH, LENGTH), v), VOCABULARY)
           for v in range(VOCABULARY)]
  np.testing.assert_allclose(np.sum(np.exp(every), 0), 1, rtol=1e-5)


def test_padding_rows_get_no_gradient(case):
  hidden, table, targets = case
  gradient = jax.jit(
    jax.grad(lambda t: jnp.sum(token_logprobs(hidden, t, targets, VOCABULARY))))(table)
  gradient = np.asarray(gradient)
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[VOCABULARY:], 0)
  assert (np.abs(gradient[:VOCABULARY]).max(axis=1) > 0).all()


def test_log_softmax_of_bfloat16_states_is_float32():
  """In bfloat16 the probabilities of 1,000 ids would not sum to 1 within 1e-2."""
  random = np.random.default_rng(1)
  hidden = random.normal(size=(1, 1, 64)).astype(jnp.bfloat16)
  # XLA may leave a rounding of the table out (on a GPU it does), so there is none here.
  table = (0.3 * random.normal(size=(1000, 64))).astype(jnp.bfloat16).astype(np.float32)
  logits = logits_of(hidden, table, 1000)
  exact = hidden.astype(np.float32) @ table.T
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, exact, rtol=1e-4, atol=1e-4)  # bfloat16 would round at 1e-2
  every = token_logprobs(np.repeat(hidden, 1000, axis=1), table, np.arange(1000)[None], 1000)
  assert every.dtype == jnp.float32
  np.testing.assert_allclose(np.sum(np.exp(every)), 1, rtol=1e-4)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 1e-2)])
def test_the_gradient_is_one_hot_minus_softmax(dtype, tolerance):
  """In the compute type where the states are, by hand in float64."""
  random = np.random.default_rng(2)
  hidden = random.normal(size=(2, 3, 16)).astype(dtype)
  table = random.normal(size=(64, 16)).astype(jnp.bfloat16).astype(np.float32)
  targets, weights = random.integers(0, 60, (2, 3)), random.normal(size=(2, 3))
  found = jax.grad(lambda h, t: jnp.sum(weights * token_logprobs(h, t, targets, 60, 1.3)),
                   (0, 1))(hidden, table)
  assert found[0].dtype == dtype and found[1].dtype == np.float32
  states, rows = np.float64(hidden).reshape(-1, 16), np.float64(table)[:60]
  odds = np.exp(states @ rows.T / 1.3)
  pull = np.eye(60)[targets.ravel()] - odds / odds.sum(axis=1, keepdims=True)
  pull *= weights.reshape(-1, 1) / 1.3
  for one, wanted in zip(found, (pull @ rows, pull.T @ states), strict=True):
    one = np.float64(one).reshape(-1, 16)
    assert not one[len(wanted):].any()  # rows of padding
    assert np.linalg.norm(one[:len(wanted)] - wanted) <= tolerance * np.linalg.norm(wanted)


def test_means_are_over_the_global_count():
  values = np.arange(12, dtype=np.float32).reshape(3, 4)
  mask = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], bool)
  wanted = (0 + 4 + 5 + 6 + 8 + 9 + 10 + 11) / 8
  np.testing.assert_allclose(masked_mean(values, mask), wanted)
  pieces = [likelihood.weighted_sum(values[i], mask[i], 8) for i in range(3)]
  np.testing.assert_allclose(sum(pieces), wanted, rtol=1e-6)
  assert float(masked_mean(np.full((3, 4), np.nan, np.float32), np.zeros((3, 4), bool))) == 0
  one = np.arange(12).reshape(3, 4) == 7
  assert float(masked_mean(values, one)) == values[one]
