"""Which position is read: log-probabilities, values, scores and losses, against plain indexing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.model import attention, experience, transformer
from rlhf_jax.objectives import likelihood
from rlhf_jax.runtime import flops

LENGTH = 5
hidden = jax.jit(transformer.hidden, static_argnums=0)
scores = jax.jit(experience.scores, static_argnums=0)
of_completions = jax.jit(experience.scores_of_completions, static_argnums=(0, 4))
values = jax.jit(experience.response_values, static_argnums=(0, 4))
logprobs = jax.jit(experience.response_logprobs, static_argnums=(0, 4, 5))
losses = jax.jit(experience.next_token_losses, static_argnums=(0, 4))


@pytest.fixture
def states(case, rows):
  """Final states of the trunk with the scalar head, and of the language model, float64."""
  return [np.asarray(hidden(case.config, p, *rows), np.float64) for p in (case.scalar, case.params)]


def head(params, state):
  return state @ np.asarray(params['head']['kernel'], np.float64) + float(params['head']['bias'])


def test_score_is_read_at_the_last_real_token(case, rows, states):
  tokens, valid = rows
  found = scores(case.config, case.scalar, tokens, valid)
  for b in range(len(tokens)):
    last = np.flatnonzero(valid[b])[-1]
    wanted = head(case.scalar, states[0][b, last])
    np.testing.assert_allclose(found[b], wanted, rtol=1e-4, atol=1e-5)


def test_score_depends_on_no_padding(case, rows):
  """More of it, other ids in it, on either side: RM(padded) = RM(plain)."""
  tokens, valid = rows
  plain = np.asarray(scores(case.config, case.scalar, tokens, valid))
  wide = lambda x, fill: np.pad(x, ((0, 0), (3, 2)), constant_values=fill)
  padded = scores(case.config, case.scalar, np.where(wide(valid, False), wide(tokens, 0), 33),
                  wide(valid, False))
  np.testing.assert_allclose(padded, plain, rtol=1e-4, atol=1e-5)
  alone = scores(case.config, case.scalar, tokens[3:4, valid[3]], valid[3:4, valid[3]])
  np.testing.assert_allclose(alone[0], plain[3], rtol=1e-4, atol=1e-5)


@pytest.fixture
def rankings(rows):
  """tokens, valid [3, 2, P+R]: a prompt, padded on the left, before two completions each."""
  tokens, valid = (x[:6].reshape(3, 2, -1).copy() for x in rows)
  for x in (tokens, valid):
    x[:, 1, :-LENGTH] = x[:, 0, :-LENGTH]
  return tokens, valid


@pytest.mark.parametrize('options', [{}, {'scan': True, 'remat': True}], ids=['plain', 'scanned'])
def test_a_prompt_read_once_scores_as_one_read_for_every_completion(case, rankings, options):
  config = dataclasses.replace(case.config, **options)
  tokens, valid = rankings
  wanted = scores(case.config, case.scalar, *(x.reshape(6, -1) for x in rankings))
  found = of_completions(config, case.scalar, tokens, valid, LENGTH)
  assert np.ptp(wanted) > 0.1
  np.testing.assert_allclose(found.reshape(6), wanted, rtol=1e-4, atol=1e-5)
  text = of_completions.lower(config, case.scalar, tokens, valid, LENGTH).as_text()
  total = tokens.shape[2]
  assert f'tensor<6x{LENGTH}x{config.width}xf32>' in text
  assert f'tensor<6x{total}x{config.width}xf32>' not in text  # no layer's input is a whole row


def test_completions_in_pieces_score_as_whole_ones(case, rankings, monkeypatch):
  """Value and gradient; a piece ends at its slot behind the prompt."""
  def total(params):
    found = experience.scores_of_completions(case.config, params, *rankings, LENGTH)
    return jnp.sum(found * jnp.arange(6.0).reshape(3, 2)), found

  run = lambda: jax.jit(jax.grad(lambda params: total(params), has_aux=True))(case.scalar)
  whole, wanted = run()
  monkeypatch.setattr(attention, 'LONG', LENGTH)
  pieces, found = run()
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  norm = lambda tree: float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))))
  assert norm(jax.tree.map(jnp.subtract, pieces, whole)) <= 1e-5 * norm(whole)


def test_pieces_of_completions_see_no_slot_after_their_end(cases):
  """What a layer more costs: of R × (P+R) scores 3/8 of R × R are not made."""
  case, length, prompt = cases['gpt'], 2 * attention.LONG, 8
  config = dataclasses.replace(case.config, positions='rope')
  tokens = jnp.zeros((1, 2, prompt + length), jnp.int32)

  def products(layers):
    params = case.scalar | {'blocks': jax.tree.map(lambda x: x[:layers], case.scalar['blocks'])}
    run = functools.partial(experience.scores_of_completions,
                            dataclasses.replace(config, layers=layers), length=length)
    return flops.count(jax.jit(run).trace(params, tokens, tokens == 0).jaxpr.jaxpr).total

  inner = config.heads * config.head_size
  pair = 4 * inner  # FLOPs of a query and a key
  layer = 2 * config.width * (4 * inner + 2 * config.mlp)  # and of a token's weights
  wanted = (prompt + 2 * length) * layer + pair * (prompt**2 + 2 * length * (
    prompt + 5 / 8 * length))
  assert products(2) - products(1) == pytest.approx(wanted, rel=1e-6)


def test_values_stand_before_the_token(case, rows, states):
  found = values(case.config, case.scalar, *rows, LENGTH)
  wanted = head(case.scalar, states[0])[:, -LENGTH - 1:-1]
  mask = rows[1][:, -LENGTH:]
  np.testing.assert_allclose(found[mask], wanted[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_response_logprobs(case, rows, states, temperature):
  tokens, valid = rows
  table = np.asarray(transformer.unembedding(case.params), np.float64)[:case.config.vocabulary]
  found = logprobs(case.config, case.params, tokens, valid, LENGTH, temperature)
  for b in range(len(tokens)):
    for t in np.flatnonzero(valid[b, -LENGTH:]):
      place = tokens.shape[1] - LENGTH + t
      logits = table @ states[1][b, place - 1] / temperature
      wanted = logits[tokens[b, place]] - np.log(np.exp(logits).sum())
      np.testing.assert_allclose(found[b, t], wanted, rtol=1e-4, atol=1e-4)


def test_next_token_losses(case, rows, states):
  tokens, valid = rows
  mask = valid & (np.arange(tokens.shape[1]) > 6)
  rows = {'tokens': tokens, 'valid': valid, 'mask': mask}
  found, targets = losses(case.config, case.params, rows)
  np.testing.assert_array_equal(targets, mask[:, 1:])
  table = np.asarray(transformer.unembedding(case.params), np.float64)[:case.config.vocabulary]
  for b, t in zip(*np.nonzero(mask), strict=True):
    logits = table @ states[1][b, t - 1]
    wanted = np.log(np.exp(logits).sum()) - logits[tokens[b, t]]
    np.testing.assert_allclose(found[b, t - 1], wanted, rtol=1e-4, atol=1e-4)


def test_losses_of_the_last_tokens_are_the_last_losses(case, rows):
  rows = {'tokens': rows[0], 'valid': rows[1], 'mask': rows[1]}
  every, targets = losses(case.config, case.params, rows)
  found, mask = losses(case.config, case.params, rows, None, LENGTH)
  np.testing.assert_array_equal(mask, targets[:, -LENGTH:])
  np.testing.assert_allclose(found[mask], every[:, -LENGTH:][mask], rtol=1e-4, atol=1e-4)


def test_chunks_of_logits_change_nothing(cases, rows):
  case = cases['llama']
  chunked = dataclasses.replace(case.config, logits_chunk=3)
  np.testing.assert_allclose(logprobs(chunked, case.params, *rows, LENGTH, 0.7),
                             logprobs(case.config, case.params, *rows, LENGTH, 0.7), atol=1e-5)


def test_the_whole_logits_never_stand_in_memory_when_chunked(cases, rows):
  """No float32 array of [B, T, V] or more in the compiled program."""
  config = dataclasses.replace(cases['gpt'].config, logits_chunk=2)
  rows = {'tokens': rows[0], 'valid': rows[1], 'mask': rows[1]}
  text = losses.lower(config, cases['gpt'].params, rows).as_text()
  batch, length = rows['tokens'].shape
  assert f'{batch}x2x64xf32' in text
  assert f'{batch}x{length - 1}x64xf32' not in text
  whole = losses.lower(cases['gpt'].config, cases['gpt'].params, rows).as_text()
  assert f'{batch}x{length - 1}x64xf32' in whole


def test_log_probabilities_of_a_bfloat16_model_are_float32(cases, rows):
  """They sum to one: the softmax was not taken in bfloat16."""
  case = cases['gpt']
  config = dataclasses.replace(case.config, compute='bfloat16')
  tokens, valid = rows
  state = hidden(config, case.params, tokens, valid)[:1, -1:]
  every = jax.jit(likelihood.token_logprobs, static_argnums=3)(
    np.repeat(state, config.vocabulary, axis=1), transformer.unembedding(case.params),
    np.arange(config.vocabulary)[None], config.vocabulary)
  np.testing.assert_allclose(np.exp(every).sum(), 1, rtol=1e-5)
  for run, args in ((logprobs, (case.params, tokens, valid, LENGTH, 1.0)),
                    (values, (case.scalar, tokens, valid, LENGTH)),
                    (scores, (case.scalar, tokens, valid))):
    assert run.eval_shape(config, *args).dtype == np.float32
