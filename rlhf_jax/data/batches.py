"""Rows → batch t as a pure function of (seed, t), ordered by a grain MapDataset.

In: rows (len, [i] → dict of numpy). Out: `Batches`, b[step] → dict of numpy [batch, …]; rankings
whole, for evaluation, and the best of each. Left out: iterators and their state, which would need
a checkpoint; worker processes, since a batch of 32 takes less than a millisecond.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.data import builders


class Batches:
  """b[step] → {name: [batch, …]}; `epoch`: steps that see every row of the first source once, rows
  over rows a batch, so no whole number: whoever multiplies it by epochs rounds the product.
  """

  def __init__(self, parts: list[tuple[Any, grain.MapDataset, int]], epoch: float):
    self._parts, self.epoch = parts, epoch  # (rows, their order, how many a batch)

  def __getitem__(self, step: int) -> Mapping[str, np.ndarray]:
    # Row r of the endless order is in batch r // batch: epochs run on across batches.
    found = [rows[order[step * count + row]]
             for rows, order, count in self._parts for row in range(count)]
    return {name: np.stack([row[name] for row in found]) for name in found[0]}


def batches(rows: Any, batch: int, seed: int) -> Batches:
  """Endless batches; every epoch has another order.

  Raises: BadInput where there are no rows.
  """
  return Batches([(rows, _order(rows, seed), batch)], len(rows) / batch)


def mixed(first: Any, second: Any, batch: int, share: float, seed: int) -> Batches:
  """Batches whose last round(batch · share) rows come from `second`; `epoch` counts `first`.

  Raises: BadInput where one has no rows, or no place in a batch.
  """
  others = round(batch * share)
  if not 0 <= others < batch:
    raise BadInput(f'pretraining_share: expected to leave room in a batch of {batch}, '
                   f'found {share}')
  if share and not others:
    raise BadInput(f'pretraining_share: {share} of a batch of {batch} is not a row; raise one of '
                   'them, or set pretraining_share 0')
  parts = [(first, _order(first, seed), batch - others)]
  if others:
    parts.append((second, _order(second, seed + 1), others))
  return Batches(parts, len(first) / (batch - others))


def whole(rankings: Any, batch: int) -> dict[str, np.ndarray]:
  """All rows of rankings, [N, K, …], filled up to a multiple of `batch` with rows without present
  completions.
  """
  found = [rankings[index] for index in range(len(rankings))]
  missing = -len(found) % batch
  arrays = {name: np.stack([row[name] for row in found] + missing * [found[-1][name]])
            for name in found[0]}
  arrays['present'][len(found):] = False
  return arrays


@dataclasses.dataclass(frozen=True)
class Preferred:
  """The best completion of every ranking as rows of tokens and valid [P+R]: what stands in for
  demonstrations where there are none.
  """
  rankings: Any

  def __len__(self) -> int:
    return len(self.rankings)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    row = self.rankings[index]
    best = np.argmin(np.where(row['present'], row['ranks'], np.iinfo(np.int32).max))
    return {name: row[name][best] for name in ('tokens', 'valid')}


def _order(rows: Any, seed: int) -> grain.MapDataset:
  """Row numbers without end, every epoch a permutation of its own; seeded by (seed, epoch)."""
  if not len(rows):
    raise BadInput('data: expected rows to train on, found none')
  # Numbers and not rows go through grain: its bookkeeping costs more than reading a row here.
  return grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()


def prompts_and_text(config: configs.PPO, parent: Any, place: Any, shapes: Mapping[str, Any]
                     ) -> Callable[[int], dict[str, dict[str, Any]]]:
  """step -> the prompts of a PPO update, and rows of text where `shapes` has any.

  Args:
    parent: the policy's run, whose tokenizer reads, and whose held-out text stays held out: that of
      the Language run which it began as.
    shapes: {'prompts': {'tokens': [B, P], …}, 'pretraining': …}, whose fields a batch has.

  Raises: BadInput where text is wanted and no source is named, and as `builders.build` does.
  """
  make = functools.partial(builders.build, tokenizer=parent.tokenizer, place=place,
                           limits=builders.Limits.like(config))
  prompts = make(config.prompts, heldout=0.0, seed=config.seed).train
  parts = {'prompts': batches(prompts, config.episodes, config.seed)}
  if 'pretraining' in shapes:
    if not config.pretraining:
      raise BadInput('pretraining: no text for the ptx gradient; name sources, or set ptx_ratio 0')
    text = make(config.pretraining, heldout=getattr(parent.language, 'heldout', 0.0),
                seed=getattr(parent.language, 'seed', config.seed)).train
    parts['pretraining'] = batches(text, shapes['pretraining']['tokens'].shape[0], config.seed)

  def batch(step):
    found = {name: part[step] for name, part in parts.items()}
    return {name: {k: rows[k] for k in shapes[name]} for name, rows in found.items()}

  return batch
