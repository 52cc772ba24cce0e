"""Samples inside a run: on fixed prompts, so that a run shows when it goes wrong.

Enter: a policy's parameters, prompts, a reward model, a judge. Leave: metrics, and rows for
evaluations/STEP.jsonl.
Left out: the full evaluation on held-out prompts (rlhf_jax/evaluation).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rlhf_jax import configs
from rlhf_jax.data import builders, processes, records
from rlhf_jax.model import responses

SCORED_PROMPTS = 256  # validation prompts sampled to select an SFT checkpoint


def sample_score(config: configs.Language, parents: dict, place: Any, params: Any,
                 reward: Any) -> float:
  """Mean score of one sample each for validation prompts (paper C.1 picks SFT so)."""
  model, tokenizer = parents['init_from'].model, parents['init_from'].tokenizer
  records_, _ = builders.read_prompts(config.prompts, tokenizer, place,
                                      builders.Limits.like(config))
  prompts = [r.prompt for r in records_[:SCORED_PROMPTS]]
  options = {'prompt_length': config.prompt_length, 'response_length': config.response_length,
             'batch': len(prompts)}
  sampled = responses.respond(model, params, tokenizer, prompts, jax.random.key(config.seed),
                              temperature=1.0, **options)
  scores = responses.score_responses(parents['reward'].model, reward, tokenizer, prompts, sampled,
                                     **options)
  return float(np.mean(scores))


def describe(config: configs.PPO, tokenizer: Any, samples: dict) -> list[dict]:
  """Rows of samples.jsonl: an update's first rollouts, unselected."""
  length = config.prompt_length
  arrays = (np.asarray(samples[k]) for k in ('tokens', 'valid', 'score', 'kl'))
  return [{
    'prompt': tokenizer.decode_prompt(tokens[:length][valid[:length]]),
    'response': tokenizer.decode(tokens[length:][valid[length:]]), 'score': float(score),
    'kl': float(kl)
  } for tokens, valid, score, kl in zip(*arrays, strict=True)]


def evaluation(config: configs.PPO, models: Any, tokenizer: Any, place: Any,
               judge_rows: Callable | None) -> Callable[[Any, Any, int], tuple[dict, list] | None]:
  """The evaluation of a PPO run: (state, frozen, step) -> (metrics, rows), the same prompts and
  keys every time.

  Args:
    models: stages.ppo.Models.
    judge_rows: (judge, prompts, responses, references) -> (metrics, rows); references are samples
      of the KL reference.
  """
  if not config.evaluation_prompts or place is None or judge_rows is None:
    return lambda state, frozen, step: None
  prompts, _ = builders.read_prompts(config.evaluation_prompts, tokenizer, place,
                                     builders.Limits.like(config))
  prompts = prompts[:config.evaluation_size]
  texts = [p.prompt for p in prompts]
  judge = records.load_judge(config.judge) if config.judge else None
  options = {'prompt_length': config.prompt_length, 'response_length': config.response_length,
             'batch': len(texts)}
  references: list[responses.Response] = []
  run_score = jax.jit(models.score)

  def respond(params, number):
    return responses.respond(models.policy, params, tokenizer, texts,
                             jax.random.key(config.seed + number), temperature=config.temperature,
                             **options)

  def evaluate(state, frozen, step):
    if not references:
      references.extend(respond(frozen['reference'], 1))
    found = respond(state.policy.params, 2)
    reference, mask = responses.logprob_responses(models.policy, frozen['reference'], tokenizer,
                                                  texts, found, temperature=config.temperature,
                                                  **options)
    kl = np.array([r.logprob for r in found]) - np.sum(np.where(mask, reference, 0.0), axis=1)
    rows = responses.rows(tokenizer, texts, found, config.prompt_length, config.response_length)
    score, = responses.in_batches(lambda _, *batch: run_score(frozen['reward'], *batch), rows,
                                  len(texts))
    # One process asks the judge; the others have no file to write its word to.
    metrics, table = judge_rows(judge if processes.first() else None, prompts, found, references)
    table = [row | {'proxy': float(value), 'kl': float(drift)}
             for row, value, drift in zip(table, score, kl, strict=True)]
    return metrics | {'proxy': float(score.mean()), 'kl': float(kl.mean())}, table

  return evaluate
