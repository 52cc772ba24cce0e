"""The host's way to ask a model: texts in, responses, scores, log-probabilities or losses out.

Enter: a model, its tokenizer (anything with encode_prompt, encode_response, decode, eos, pad),
prompts. Leave: plain Python and numpy; all that collecting, evaluating and `sample` use of it.
Left out: streaming; batches larger than memory (the caller names the batch).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import configs
from rlhf_jax.model import experience, generate, sharding, transformer

# Ends the text of a response that was cut, so that judges see it (records.UNFINISHED).
UNFINISHED = ' …'


@dataclasses.dataclass(frozen=True)
class Response:
  """One sampled response."""

  text: str
  tokens: tuple[int, ...]  # eos included
  logprob: float  # sum over tokens at the sampling temperature, nats
  ended: bool  # eos was reached

  @property
  def length(self) -> int:
    """Tokens, eos included."""
    return len(self.tokens)

  @property
  def marked(self) -> str:
    """The text as a judge gets it: a cut response says so at its end."""
    return self.text if self.ended else self.text + UNFINISHED


@functools.lru_cache(maxsize=64)
def _sampler(model, length, temperature, eos, pad):
  names = transformer.axes(model)

  def run(params, prompts, valid, key):
    return generate.generate(model, sharding.for_decoding(params, names, model.compute), prompts,
                             valid, key, length=length, temperature=temperature, eos=eos, pad=pad)

  return jax.jit(run)


@functools.lru_cache(maxsize=64)
def _scorer(model):
  return jax.jit(functools.partial(experience.scores, model))


@functools.lru_cache(maxsize=64)
def _logprobs(model, length, temperature):
  return jax.jit(lambda params, tokens, valid: experience.response_logprobs(
    model, params, tokens, valid, length, temperature))


def prompt_rows(tokenizer: Any, prompts: Sequence[str],
                length: int) -> tuple[np.ndarray, np.ndarray]:
  """(tokens int32, valid bool) [n, length], left-padded.

  Raises:
    BadInput: a prompt has more than `length` tokens.
  """
  tokens = np.full((len(prompts), length), tokenizer.pad, np.int32)
  valid = np.zeros((len(prompts), length), bool)
  for i, prompt in enumerate(prompts):
    ids = tokenizer.encode_prompt(prompt)
    if len(ids) > length:
      raise configs.BadInput(
        f'prompt of {len(ids)} tokens, the limit is {length}: {prompt[:60]!r}; '
        'shorten it or raise prompt_length')
    tokens[i, length - len(ids):] = ids
    valid[i, length - len(ids):] = True
  return tokens, valid


def in_batches(call: Callable, arrays: Sequence[np.ndarray], batch: int) -> list:
  """call(index, *rows) for each batch, on the host; what is too few rows, for the last batch or for
  the mesh, is filled up with the last row and cut again.
  """
  count, full = len(arrays[0]), sharding.divided(batch)
  outputs = []
  for number, start in enumerate(range(0, count, batch)):
    rows = [a[start:start + batch] for a in arrays]
    real = len(rows[0])
    rows = [np.concatenate([r, np.repeat(r[-1:], full - real, axis=0)]) if real < full else r
            for r in rows]
    outputs.append(jax.tree.map(lambda x, real=real: x[:real],
                                sharding.to_host(call(number, *rows))))
  return outputs


def respond(model: configs.Model, params: Any, tokenizer: Any, prompts: Sequence[str],
            key: jax.Array, *, temperature: float, prompt_length: int, response_length: int,
            batch: int, first: int = 0) -> list[Response]:
  """One sampled response a prompt; repeat a prompt for several. A pure function of its arguments.

  Args:
    temperature: 0 is greedy.
    prompt_length, response_length: limits in tokens (P, R).
    batch: rows sampled at a time; batch number i uses fold_in(key, first + i).
    first: batches that came before, where a caller asks batch by batch.
  """
  if not prompts:
    return []
  run = _sampler(model, response_length, temperature, tokenizer.ends, tokenizer.pad)
  arrays = prompt_rows(tokenizer, prompts, prompt_length)
  rollouts = in_batches(
    lambda i, tokens, valid: run(params, tokens, valid, jax.random.fold_in(key, first + i)),
    arrays, batch)
  found = []
  for rollout in rollouts:
    for row, mask, logprobs in zip(rollout.tokens[:, prompt_length:], rollout.mask,
                                   rollout.logprobs, strict=True):
      ids = tuple(int(t) for t in row[mask])
      found.append(
        Response(tokenizer.decode(ids), ids, float(logprobs[mask].sum()),
                 bool(ids) and ids[-1] in tokenizer.ends))
  return found


def rows(tokenizer: Any, prompts: Sequence[str], responses: Sequence[Response | str],
         prompt_length: int, response_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(tokens [n, P+R], valid [n, P+R], mask [n, R]); a text gets eos unless it ends in UNFINISHED,
  and is cut at R.
  """
  tokens, valid = prompt_rows(tokenizer, prompts, prompt_length)
  right = np.full((len(prompts), response_length), tokenizer.pad, np.int32)
  mask = np.zeros((len(prompts), response_length), bool)
  for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
    if isinstance(response, str):
      cut = response.endswith(UNFINISHED)
      ids = tokenizer.encode_response(
        prompt, response.removesuffix(UNFINISHED)) + ([] if cut else [tokenizer.eos])
    else:
      ids = list(response.tokens)
    ids = ids[:response_length]
    right[i, :len(ids)] = ids
    mask[i, :len(ids)] = True
  return np.concatenate([tokens, right], axis=1), np.concatenate([valid, mask], axis=1), mask


def score_responses(model: configs.Model, params: Any, tokenizer: Any, prompts: Sequence[str],
                    responses: Sequence[Response | str], *, prompt_length: int,
                    response_length: int, batch: int) -> np.ndarray:
  """Reward-model scores, float32 [n]."""
  if not prompts:
    return np.zeros((0,), np.float32)
  tokens, valid, _ = rows(tokenizer, prompts, responses, prompt_length, response_length)
  return score_rows(model, params, tokens, valid, batch)


def score_rows(model: configs.Model, params: Any, tokens: np.ndarray, valid: np.ndarray,
               batch: int) -> np.ndarray:
  """Reward-model scores of rows [n, T] in the one layout, float32 [n]."""
  run = _scorer(model)
  return np.concatenate(in_batches(lambda i, t, v: run(params, t, v), (tokens, valid), batch))


def logprob_responses(model: configs.Model, params: Any, tokenizer: Any, prompts: Sequence[str],
                      responses: Sequence[Response | str], *, prompt_length: int,
                      response_length: int, batch: int,
                      temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
  """Log-probabilities of given responses: (float32 [n, R], bool [n, R] which are real)."""
  if not prompts:
    return np.zeros((0, response_length), np.float32), np.zeros((0, response_length), bool)
  tokens, valid, mask = rows(tokenizer, prompts, responses, prompt_length, response_length)
  run = _logprobs(model, response_length, temperature)
  return np.concatenate(in_batches(lambda i, t, v: run(params, t, v), (tokens, valid),
                                    batch)), mask


def mean_loss(losses: Callable, params: Any, data: Any, batch: int) -> tuple[float, int]:
  """Mean nats a target token over all rows of `data`, and how many targets there were.

  Args:
    losses: jitted (params, rows) -> (losses, mask), both [B, T-1] or shorter.
    data: random access to rows (dicts of numpy arrays).
  """
  if not len(data):
    return float('nan'), 0
  names = 'tokens', 'valid', 'mask'
  arrays = [np.stack([data[i][name] for i in range(len(data))]) for name in names]
  total = count = 0.0
  for values, mask in in_batches(
      lambda i, *rows: losses(params, dict(zip(names, rows, strict=True))), arrays, batch):
    total += float(np.sum(values, where=mask, dtype=np.float64))
    count += int(mask.sum())
  return total / max(count, 1), int(count)
