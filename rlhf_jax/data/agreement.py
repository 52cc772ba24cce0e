"""How often two labelers order the same pair of completions alike.

In: rankings, several of the same completions. Out: shares with intervals by bootstrap over prompts.
Left out: chance-corrected coefficients (the paper reports the plain share, §3.4: 72.6
± 1.5 and 77.3 ± 1.3 %).
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.records import Ranking

# Of the bootstrap: the ends of a 95 % interval then move by less than a tenth of its width.
RESAMPLES = 2000
# How often prompts are drawn: so many numbers are made at a time (8 bytes each) and kept (1 byte).
_BLOCK, _KEPT = 2**23, 2**27


def _drawn(size: int) -> Iterator[np.ndarray]:
  """How often each of `size` prompts is drawn in each resample: uint8[some, size], RESAMPLES in
  all, the same in every process.
  """
  generator = np.random.Generator(np.random.PCG64(0))
  rows = max(1, _BLOCK // size)
  for start in range(0, RESAMPLES, rows):
    counts = generator.multinomial(size, np.full(size, 1 / size), min(rows, RESAMPLES - start))
    yield counts.astype(np.uint8)  # that one of n equally likely is drawn 256 times never happens


# Many numbers are over the same prompts.
_few = functools.lru_cache(maxsize=16)(lambda size: tuple(_drawn(size)))
_many = functools.lru_cache(maxsize=1)(lambda size: tuple(_drawn(size)))


def _resamples(size: int) -> Iterable[np.ndarray]:
  counts = RESAMPLES * size
  return (_few if counts <= _BLOCK else _many if counts <= _KEPT else _drawn)(size)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float] | None = None,
) -> tuple[float | None, list[float] | None]:
  """Σ numerators / Σ denominators and its 95 % interval by percentile bootstrap over prompts.

  Pairs of one prompt share completions and are not independent, so whole prompts are redrawn, never
  pairs.

  Args:
    numerators: one number a prompt, say the pairs ordered alike.
    denominators: one number a prompt, say the pairs; None: 1 each, and the ratio is a mean.
  Returns: (ratio, [low, high]); no interval where a single prompt counts: redrawn, it would always
    be the same; (None, None) where the denominators sum to 0.
  """
  above = np.asarray(numerators, np.float64)
  below = np.ones_like(above) if denominators is None else np.asarray(denominators, np.float64)
  if above.shape != below.shape or above.ndim != 1:
    raise ValueError(
      f'one numerator and one denominator a prompt, not {above.shape} and {below.shape}'
    )
  above, below = above[below > 0], below[below > 0]
  if above.size < 2:
    return (float(above[0] / below[0]) if above.size else None), None
  ratios = np.concatenate([(counts @ above) / (counts @ below)
                           for counts in _resamples(above.size)])
  low, high = np.quantile(ratios, [0.025, 0.975])
  return float(above.sum() / below.sum()), [float(low), float(high)]


def by_prompt(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
  """Rankings of the same prompt together, in the order in which they first come."""
  groups: dict[str, list[Ranking]] = {}
  for ranking in rankings:
    groups.setdefault(ranking.prompt, []).append(ranking)
  return list(groups.values())


def signs(rankings: Sequence[Ranking]) -> tuple[list[str], np.ndarray]:
  """The labelers of one prompt, and how each orders every two of all its completions:
  int64[L, pairs], 1 or −1; 0 where the labeler ties them, contradicts himself or did not see both.

  Completions are the same where their texts are, whatever order a file lists them in.
  """
  texts = {text: index for index, text in enumerate(dict.fromkeys(
    text for ranking in rankings for text in ranking.completions))}
  order = {labeler: np.zeros((len(texts), len(texts)), np.int64)
           for labeler in dict.fromkeys(ranking.labeler for ranking in rankings)}
  for ranking in rankings:
    where = np.array([texts[text] for text in ranking.completions])
    ranks = np.asarray(ranking.ranks)
    order[ranking.labeler][np.ix_(where, where)] += np.sign(ranks - ranks[:, None])
  first, second = np.triu_indices(len(texts), 1)
  return list(order), np.sign(np.stack([matrix[first, second] for matrix in order.values()]))


def ordered_alike(signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For every two of L labelers, of the pairs that both order: how many both order alike, and how
  many there are; int64[L, L] each.

  Args:
    signs: [L, pairs], see `signs`.
  """
  told = np.abs(signs) @ np.abs(signs).T
  return (told + signs @ signs.T) // 2, told


def agreement(
  rankings: Sequence[Ranking],
  counted: Callable[[str, str], bool] = lambda first, second: True,
) -> dict[str, Any]:
  """Agreement over every two labelers of the same completions for whom `counted(labeler, labeler)`
  holds. Rankings without a labeler's name are one labeler's: they are compared with none of their
  own.

  Returns: {'agreement': share or None, 'agreement_ci': [low, high] or None, 'pairs', 'prompts'}; a
    pair of completions judged by three labelers counts three times in 'pairs', and only once, with
    its prompt, in the bootstrap.
  """
  alike, told = [], []
  for group in by_prompt(rankings):
    names, matrix = signs(group)
    wanted = np.array([[i < j and counted(a, b) for j, b in enumerate(names)]
                       for i, a in enumerate(names)])
    both, all_told = ordered_alike(matrix)
    alike.append(int(both[wanted].sum()))
    told.append(int(all_told[wanted].sum()))
  share, interval = ratio_interval(alike, told)
  return {
    'agreement': share,
    'agreement_ci': interval,
    'pairs': sum(told),
    'prompts': int(np.count_nonzero(told)),
  }


def within(labelers: Collection[str]) -> Callable[[str, str], bool]:
  """Both of two labelers belong to `labelers`: for `agreement`."""
  return lambda first, second: first in labelers and second in labelers
