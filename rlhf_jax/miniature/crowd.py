"""The labelers: gold utility, a personal taste and noise, so that two of them agree as often as the
paper's did.

In: a `Prompt`, responses and a labeler's name. Out: `Judgement`: ranks as this person gives them,
flags as gold has them.
Left out: what is good (utility.py). Noise is a function of (labeler, prompt, response, seed): the
same question gets the same answer. `calibrate` solves for the noise on samples; without it a noise
that suits demonstrations is used.
"""

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import Judgement, Prompt
from rlhf_jax.miniature.utility import PRICES, appraise, ranks_of, task_of

# What each person weighs otherwise than gold: factors on PRICES, and a taste for words in the
# response.
TASTES: dict[str, dict[str, float]] = {
  'aino': {'constraint': 0.6, 'words': 0.01}, 'bruno': {'rude': 0.4, 'hedges': 1.3},
  'chen': {'false': 1.4, 'beside': 1.3}, 'dara': {'rich': 1.3, 'words': 0.015},
  'emil': {'hedges': 0.3, 'words': -0.01}, 'fatou': {'ungrammatical': 1.5, 'rude': 1.3},
  'goran': {'accepts': 0.5, 'false': 0.7}, 'hana': {'constraint': 1.4, 'rich': 0.8},
  'ines': {'rude': 1.5, 'words': 0.01}, 'jomo': {'beside': 0.6, 'hedges': 0.6},
  'kalle': {'constraint': 0.7, 'false': 1.3}, 'lupe': {'rich': 1.2, 'unfinished': 1.3},
}
TRAINING = tuple(TASTES)[:8]
HELDOUT = tuple(TASTES)[8:]
AGREEMENT = {'training': 0.726, 'heldout': 0.773}  # paper §3.4
NOISE = {'training': 1.15, 'heldout': 0.85}  # standard deviation before calibration
TIE = 0.12  # a labeler ranks alike what differs by less
DRAWS = 8  # of the noise, when agreement is computed


def group_of(labeler: str) -> str:
  """'training' or 'heldout'. Raises: BadInput for a stranger."""
  if labeler not in TASTES:
    near = difflib.get_close_matches(labeler, TASTES, 3) or list(TASTES)
    raise BadInput(f'the miniature has no labeler {labeler!r}; did you mean {", ".join(near)}?')
  return 'training' if labeler in TRAINING else 'heldout'


def normal(*key: object) -> float:
  """A standard normal number that depends on `key` alone (Box-Muller on a hash)."""
  digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
  first, second = (int.from_bytes(half, 'big') + 0.5 for half in (digest[:8], digest[8:]))
  return math.sqrt(-2 * math.log(first / 2**64)) * math.cos(2 * math.pi * second / 2**64)


def opinion(costs: Mapping[str, float], words: int, labeler: str) -> float:
  """Utility to a person, noise left out."""
  taste = TASTES[labeler]
  return (
    sum(PRICES[name] * amount * taste.get(name, 1.0) for name, amount in costs.items())
    + taste.get('words', 0.0) * words
  )


@dataclasses.dataclass(frozen=True)
class Labelers:
  """The judge `labelers`."""

  training: float = NOISE['training']  # standard deviation of the noise
  heldout: float = NOISE['heldout']
  seed: int = 0

  def __call__(
    self, prompt: Prompt, responses: Sequence[str], labeler: str = TRAINING[0]
  ) -> Judgement:
    scale = getattr(self, group_of(labeler))
    task = task_of(prompt)
    scores, flags = [], []
    for response in responses:
      _, noted, costs = appraise(task, response)
      noise = normal(self.seed, labeler, prompt.prompt, response)
      scores.append(round(opinion(costs, len(response.split()), labeler) + scale * noise, 6))
      flags.append(noted)
    return Judgement(tuple(scores), ranks_of(scores, TIE), tuple(flags))

  def calibrate(
    self,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    labelers: Sequence[str] = TRAINING + HELDOUT,
  ) -> dict[str, Any]:
    """Noise at which two labelers of a group agree as often as the paper's, on these samples.

    Agreement: the share of pairs of responses of one prompt that both order alike, pairs tied by
      either left out, over
    all pairs of labelers of the group. Solved by bisection with common random numbers.
    Returns: {'training': {'noise', 'agreement', 'pairs'}, 'heldout': …} for the groups that
      `labelers` names.
    """
    solved = {}
    for group in sorted({group_of(labeler) for labeler in labelers}):
      people = TRAINING if group == 'training' else HELDOUT
      opinions, noises = _tables(prompts, responses, people)
      low, high = 0.0, 8.0
      for _ in range(18):
        middle = (low + high) / 2
        if _agreement(opinions, noises, middle)[0] > AGREEMENT[group]:
          low = middle
        else:
          high = middle
      share, pairs = _agreement(opinions, noises, high)
      solved[group] = {'noise': round(high, 4), 'agreement': round(share, 4), 'pairs': pairs}
    return solved

  def calibrated(self, solved: Mapping[str, Any]) -> 'Labelers':
    """The same labelers with the noise that `calibrate` found."""
    return dataclasses.replace(
      self, **{group: float(entry['noise']) for group, entry in solved.items()}
    )


def _tables(prompts: Sequence[Prompt], responses: Sequence[Sequence[str]], people: Sequence[str]):
  """Opinions [people, N, K] and standard normal noise [DRAWS, people, N, K]; NaN where a prompt has
  fewer than K.
  """
  import numpy as np  # here, so that importing the world stays fast

  width = max(len(texts) for texts in responses)
  opinions = np.full((len(people), len(prompts), width), np.nan)
  noises = np.zeros((DRAWS, *opinions.shape))
  for n, (prompt, texts) in enumerate(zip(prompts, responses, strict=True)):
    task = task_of(prompt)
    for k, text in enumerate(texts):
      costs = appraise(task, text)[2]
      for i, person in enumerate(people):
        opinions[i, n, k] = opinion(costs, len(text.split()), person)
        for draw in range(DRAWS):
          noises[draw, i, n, k] = normal('calibration', draw, person, prompt.prompt, text)
  return opinions, noises


def _agreement(opinions, noises, scale: float) -> tuple[float, int]:
  """(share of untied pairs ordered alike, pairs counted) over all pairs of people and all draws."""
  import numpy as np

  alike = counted = 0
  for noise in noises:
    ranks = _ranks(opinions + scale * noise)
    first, second = np.triu_indices(ranks.shape[-1], 1)
    # [people, N, pairs]; 0: tied or absent
    signs = np.nan_to_num(np.sign(ranks[..., first] - ranks[..., second]))
    for i in range(len(signs)):
      for j in range(i):
        both = signs[i] * signs[j]
        alike, counted = alike + int((both > 0).sum()), counted + int((both != 0).sum())
  return alike / max(1, counted), counted


def _ranks(scores):
  """`ranks_of` with ties below TIE, along the last axis; NaN stays NaN."""
  import numpy as np

  order = np.argsort(-scores, axis=-1, kind='stable')  # NaN last
  ordered = np.take_along_axis(scores, order, -1)
  ranks, top, rank = (
    np.empty_like(scores), np.full(scores.shape[:-1], np.inf), np.zeros(scores.shape[:-1]),
  )
  for k in range(scores.shape[-1]):
    fresh = ~(top - ordered[..., k] < TIE)
    rank, top = np.where(fresh, rank + 1, rank), np.where(fresh, ordered[..., k], top)
    ranks[..., k] = np.where(np.isnan(ordered[..., k]), np.nan, rank)
  unsorted = np.empty_like(ranks)
  np.put_along_axis(unsorted, order, ranks, -1)
  return unsorted


labelers = Labelers()
