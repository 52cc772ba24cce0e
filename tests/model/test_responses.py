"""Texts in, responses, scores and log-probabilities out; the tokenizer's words are numbers."""

import jax
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.model import experience, responses

PROMPTS = ['1 2 3', '30', '7 7 7 7 7', '9 8', '5 4 3 2']
SIZES = {'prompt_length': 6, 'response_length': 5}


@pytest.fixture(scope='module')
def sampled(cases, tokenizer):
  case = cases['llama']
  return responses.respond(case.config, case.params, tokenizer, PROMPTS, jax.random.key(0),
                           temperature=0.9, batch=5, **SIZES)


def test_responses_say_what_was_sampled(sampled, tokenizer):
  assert len(sampled) == len(PROMPTS)
  for response in sampled:
    assert response.length == len(response.tokens) <= 5
    assert response.ended == (response.tokens[-1] == tokenizer.eos)
    assert response.text == tokenizer.decode(response.tokens)
    assert response.ended or response.length == 5
    assert response.marked == response.text + ('' if response.ended else ' …')


def test_responses_are_a_function_of_the_key(sampled, cases, tokenizer):
  case = cases['llama']
  again, other = (responses.respond(case.config, case.params, tokenizer, PROMPTS, jax.random.key(i),
                                    temperature=0.9, batch=5, **SIZES) for i in (0, 1))
  assert again == sampled
  assert other != sampled


def test_logprobs_of_responses_are_the_samplers(sampled, cases, tokenizer):
  case = cases['llama']
  found, mask = responses.logprob_responses(case.config, case.params, tokenizer, PROMPTS, sampled,
                                            temperature=0.9, batch=5, **SIZES)
  np.testing.assert_array_equal(mask.sum(axis=1), [r.length for r in sampled])
  np.testing.assert_allclose(np.sum(found, axis=1, where=mask), [r.logprob for r in sampled],
                             atol=1e-4)


def test_a_last_batch_that_is_not_full_changes_nothing(sampled, cases, tokenizer):
  case = cases['llama']
  whole, pieces = (responses.score_responses(case.config, case.scalar, tokenizer, PROMPTS, sampled,
                                             batch=batch, **SIZES) for batch in (5, 2))
  assert whole.shape == (5,)
  np.testing.assert_allclose(pieces, whole, atol=1e-5)
  plain, mask = responses.logprob_responses(case.config, case.params, tokenizer, PROMPTS, sampled,
                                            batch=3, **SIZES)
  assert plain.shape == mask.shape == (5, 5)


def test_score_reads_eos_of_a_finished_text_and_the_cut_of_another(cases, tokenizer):
  case = cases['gpt']
  finished, cut, too_long = responses.score_responses(
    case.config, case.scalar, tokenizer, ['4 5'] * 3, ['11 12', '11 12 …', '1 2 3 4 5 6 7'],
    batch=3, **SIZES)
  run = jax.jit(experience.scores, static_argnums=0)

  def score(*ids):
    tokens = np.array([[1, 7, 8, *ids, *[0] * (5 - len(ids))]], np.int32)
    return float(run(case.config, case.scalar, tokens, np.arange(8)[None] < 3 + len(ids))[0])

  np.testing.assert_allclose(finished, score(14, 15, 2), atol=1e-4)
  np.testing.assert_allclose(cut, score(14, 15), atol=1e-4)
  np.testing.assert_allclose(too_long, score(4, 5, 6, 7, 8), atol=1e-4)
  assert abs(finished - cut) > 1e-2


def test_prompts_are_left_padded(tokenizer):
  tokens, valid = responses.prompt_rows(tokenizer, ['1 2', ''], 4)
  np.testing.assert_array_equal(tokens, [[0, 1, 4, 5], [0, 0, 0, 1]])
  np.testing.assert_array_equal(valid, [[0, 1, 1, 1], [0, 0, 0, 1]])


def test_a_prompt_beyond_the_limit_is_refused(tokenizer):
  with pytest.raises(configs.BadInput, match='7 tokens, the limit is 6'):
    responses.prompt_rows(tokenizer, ['1', '1 2 3 4 5 6'], 6)


def test_no_prompts_no_responses(cases, tokenizer):
  case = cases['gpt']
  assert responses.respond(case.config, case.params, tokenizer, [], jax.random.key(0),
                           temperature=1.0, batch=2, **SIZES) == []
  assert responses.score_responses(case.config, case.scalar, tokenizer, [], [], batch=2,
                                   **SIZES).shape == (0,)


def test_mean_loss_is_over_all_targets(rows):
  """Rows with different numbers of targets, in batches that are not full: one mean over tokens."""
  tokens, valid = rows
  data = [{'tokens': t, 'valid': v, 'mask': v} for t, v in zip(tokens, valid, strict=True)]
  losses = lambda params, rows: (params * rows['tokens'][:, 1:].astype(np.float32),
                                 rows['mask'][:, 1:])
  mean, count = responses.mean_loss(losses, 2.0, data, 3)
  chosen = tokens[:, 1:][valid[:, 1:]]
  assert count == len(chosen)
  np.testing.assert_allclose(mean, 2 * chosen.mean(), rtol=1e-6)
  assert np.isnan(responses.mean_loss(losses, 2.0, [], 3)[0])
