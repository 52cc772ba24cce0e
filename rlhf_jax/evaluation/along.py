"""One policy on fixed prompts: all that a sweep measures along its runs.

In: a policy's parameters; the prompts, references and judge that every policy of the sweep meets.
Out: (metrics, rows), rows as in evaluations/STEP.jsonl of any run. A metric NAME comes with
NAME_low and NAME_high, its 95 % interval by bootstrap over prompts (which a mean of one prompt has
not), and a rate with NAME_n, the responses to which it applies. What an update measures on its
rollouts too begins with `evaluation_` here. Left out: when to measure (runtime/sweep.py).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import configs
from rlhf_jax.data import agreement, functions, records
from rlhf_jax.evaluation import judged, reward_accuracy, text_loss, text_statistics, winrate
from rlhf_jax.model import responses
from rlhf_jax.objectives import policy as objective

FEW = 8  # responses a judge made of a reward model scores at a time

# (prompts, responses) -> float32 [n]
Score = Callable[[Sequence[str], Sequence[responses.Response]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Fixed:
  """What every policy that starts from one model meets."""
  config: configs.PPO  # lengths and temperature; its coefficients and seed do not count
  model: configs.Model
  tokenizer: Any
  start: Any  # the start's parameters: the KL reference
  prompts: Sequence[records.Prompt]
  judge: records.Judge | None
  text: Sequence[Mapping[str, np.ndarray]]  # held-out rows; empty: no pretraining loss
  samples: int  # responses a prompt
  batch: int  # responses at a time

  @property
  def texts(self) -> list[str]:
    """The prompts' texts."""
    return [prompt.prompt for prompt in self.prompts]

  @property
  def sizes(self) -> dict[str, int]:
    """The limits that every call of `responses` takes."""
    return {'prompt_length': self.config.prompt_length,
            'response_length': self.config.response_length, 'batch': self.batch}

  def respond(self, params: Any, asked: Sequence[str], key: jax.Array, first: int = 0
              ) -> list[responses.Response]:
    """A sample for each text asked, at the temperature of training."""
    return responses.respond(self.model, params, self.tokenizer, asked, key, first=first,
                             temperature=self.config.temperature, **self.sizes)


def scorer(config: configs.PPO, reward: Any, tokenizer: Any, sizes: Mapping[str, int]) -> Score:
  """The reward that a PPO run is trained on as a function of texts.

  Args:
    reward: the Parent of a reward-model run; None: config.reward names a function.
  """
  if reward is not None:
    return lambda asked, found: responses.score_responses(
      reward.model, reward.params, tokenizer, asked, found, **sizes)
  function = jax.jit(functions.load_reward(config.reward))
  lengths = sizes['prompt_length'], sizes['response_length']
  return lambda asked, found: np.asarray(
    function(*responses.rows(tokenizer, asked, found, *lengths)), np.float32)


def stand_in(reward: Any, sizes: Mapping[str, int]) -> records.Judge:
  """A judge made of a reward model that no policy was trained on; it knows no flags."""
  sizes = {**sizes, 'batch': FEW}

  def judge(prompt: records.Prompt, answers: Sequence[str], labeler: str = '') -> records.Judgement:
    scores = responses.score_responses(reward.model, reward.params, reward.tokenizer,
                                       [prompt.prompt] * len(answers), answers, **sizes)
    ranks = 1 + np.sum(scores[None, :] > scores[:, None], axis=1)
    return records.Judgement(tuple(scores.tolist()), tuple(ranks.tolist()))

  return judge


def measure(fixed: Fixed, params: Any, score: Score, references: Sequence[responses.Response],
            key: jax.Array) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """Everything of one policy; the first sample of each prompt is judged against its reference.

  Args:
    references: one sample of the start for each prompt, the same for every policy.
    key: the same at all steps of a run, so that its curve moves by what it learnt.
  """
  each = fixed.samples
  asked = [text for text in fixed.texts for _ in range(each)]
  found = fixed.respond(params, asked, key)
  proxies = score(asked, found).astype(np.float64)
  first = found[::each]
  k1, k3 = _divergence(fixed, params, first)
  _, rows = judged.judge_rows(fixed.judge, fixed.prompts, first, references)
  for index, row in enumerate(rows):
    row |= {'proxy': float(proxies[index * each]), 'kl': float(k1[index]),
            'kl_k3': float(k3[index])}
  metrics = _means(rows) | _rates(rows) | _texts(rows)
  if fixed.judge is not None and each > 1:
    metrics |= _reward_model(fixed, found, proxies)
  if fixed.text:
    loss, interval = text_loss.pretraining_loss(fixed.model, params, fixed.text, fixed.batch)
    metrics |= _told('pretraining_loss', loss, interval)
  return metrics, rows


def _divergence(fixed: Fixed, params: Any, found: Sequence[responses.Response]
                ) -> tuple[np.ndarray, np.ndarray]:
  """k1 and k3 of KL(policy ‖ start), summed over each response's tokens, in nats: float64 [n]."""
  logprobs = [responses.logprob_responses(
    fixed.model, weights, fixed.tokenizer, fixed.texts, found,
    temperature=fixed.config.temperature, **fixed.sizes) for weights in (params, fixed.start)]
  (policy, mask), (start, _) = logprobs
  k1, _, k3 = objective.kl_estimates(policy, start)
  return tuple(np.sum(np.where(mask, k, 0), axis=1, dtype=np.float64) for k in (k1, k3))


def _told(name: str, value: float | None, interval: Sequence[float] | None) -> dict[str, float]:
  """{NAME, NAME_low, NAME_high}, what there is of them."""
  ends = zip((f'{name}_low', f'{name}_high'), interval or (), strict=False)
  told = {name: value, **dict(ends)}
  return {key: float(one) for key, one in told.items() if one is not None}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  told: dict[str, float] = {}
  for name, values in (
      ('proxy', [row['proxy'] for row in rows]),
      ('gold', [row['judgement']['score'] for row in rows if row['judgement']]),
      ('evaluation_kl', [row['kl'] for row in rows]),
      ('evaluation_kl_k3', [row['kl_k3'] for row in rows]),
      ('evaluation_response_length', [row['length'] for row in rows])):
    told |= _told(name, *agreement.ratio_interval(values))
  return told


def _rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  told = _told('evaluation_eos_rate', *winrate.rate([float(row['ended']) for row in rows]))
  wins = [row['judgement']['win'] for row in rows if row['judgement']]
  if wins:
    told |= _told('win_rate', *winrate.rate(wins)) | {'win_rate_n': len(wins)}
  for name, (rate, interval, count) in judged.rates(rows).items():
    told |= _told(name, rate, interval) | {f'{name}_n': count}
  return told


def _texts(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  texts = [row['response'].removesuffix(records.UNFINISHED) for row in rows]
  said = text_statistics.statistics(texts)
  shares = [text_statistics.repetition([text]) for text in texts]
  repetition = agreement.ratio_interval([share for share in shares if share is not None])
  return {name: value for name, value in said.items() if value is not None} | _told(
    'repetition', *repetition)


def _reward_model(fixed: Fixed, found: Sequence[responses.Response], proxies: np.ndarray
                  ) -> dict[str, float]:
  """Whether the reward model still orders what this policy says as the judge does, on the pairs of
  samples of one prompt that the judge does not tie.
  """
  each, differences = fixed.samples, []
  for index, prompt in enumerate(fixed.prompts):
    here = slice(index * each, (index + 1) * each)
    ranks = records.asked(
      fixed.judge, prompt, [answer.marked for answer in found[here]], '').ranks
    differences.append(reward_accuracy.pair_differences(proxies[here], ranks))
  right = reward_accuracy.accuracy(differences)
  told = _told('reward_accuracy', right['accuracy'], right['accuracy_ci'])
  error = reward_accuracy.calibration(differences)['ece']
  return told | {'reward_pairs': right['pairs']} | ({} if error is None else {'reward_ece': error})
