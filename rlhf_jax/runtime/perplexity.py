"""`perplexity`: how well a model predicts texts.

Enter: a policy, texts. Leave: mean nats a token with its interval.
Each text stands alone: what the tokenizer starts texts with, then the text, cut at the context; no
end token is asked for. Left out: a sliding window over long texts.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.configs import BadInput, Source
from rlhf_jax.data import agreement, readers, sources, store
from rlhf_jax.model import experience
from rlhf_jax.runtime.metrics import console
from rlhf_jax.stages.stage import Parent

_BUCKET = 64  # rows are padded to a multiple of it, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """`nats` a token over `tokens` predicted ones of `texts` texts, `cut` of which were cut at the
  context; `interval`: 95 %, bootstrap over texts, None of one.
  """
  nats: float
  interval: Sequence[float] | None
  tokens: int
  texts: int
  cut: int


def perplexity(parent: Parent, texts: Sequence[str], batch: int = 16) -> Perplexity:
  """Mean −log p of the tokens of `texts`, every token but the first of each text.

  Raises:
    BadInput: no text has a token to predict.
  """
  encoded = parent.tokenizer.encode_all(texts)
  whole = [[*parent.tokenizer.start, *ids] for ids in encoded]
  kept = sorted((ids[:parent.model.context] for ids in whole), key=len)  # like lengths together
  kept = [ids for ids in kept if len(ids) > 1]
  if not kept:
    raise BadInput('the texts hold no token to predict')
  losses = jax.jit(functools.partial(experience.next_token_losses, parent.model))
  sums = []
  with console.status('') as status:
    for start in range(0, len(kept), batch):
      status.update(f'{start} of {len(kept)} texts')
      rows = _rows(kept[start:start + batch], batch, parent)
      found, mask = jax.device_get(losses(parent.params, rows))
      sums += [float(x) for x in np.sum(found, axis=1, where=mask, dtype=np.float64)]
  counts = [len(ids) - 1 for ids in kept]
  nats, interval = agreement.ratio_interval(sums[:len(kept)], counts)
  return Perplexity(nats, interval, sum(counts), len(kept),
                    sum(len(ids) > parent.model.context for ids in whole))


def texts_of(files: Sequence[Path], place: sources.Place) -> tuple[list[str], int]:
  """Every text of the files in order, one that is there twice twice, unlike in training; and how
  many rows could not be read.
  """
  paths = [file.absolute() if store.is_local(file) else file for file in files]
  sources.require([Source('text', tuple(map(str, paths)))], place)
  found, refused = [], 0
  for path in paths:
    lines, reading = readers.read_file(path, '', 'text', place.skip_bad_rows)
    found += [record.text for _, record in lines]
    refused += reading.refused.total()
  return found, refused


def _rows(pieces: Sequence[Sequence[int]], batch: int, parent: Parent) -> dict[str, np.ndarray]:
  """Right-padded rows [batch, T]; the first token of a row has nothing that could predict it."""
  length = min(-(-len(pieces[-1]) // _BUCKET) * _BUCKET, max(parent.model.context, 2))
  tokens = np.full((batch, length), parent.tokenizer.pad, np.int32)
  valid = np.zeros((batch, length), bool)
  for row, ids in enumerate(pieces):
    tokens[row, :len(ids)], valid[row, :len(ids)] = ids, True
  valid[len(pieces):, 0] = True  # a row without a token attends to nothing
  mask = valid.copy()
  mask[:, 0] = False
  return {'tokens': tokens, 'valid': valid, 'mask': mask}


def show(found: Perplexity) -> None:
  """What was found; the last line is for programs: nats_per_token NUMBER tokens COUNT."""
  print(f'{found.texts} texts, {found.cut} cut at the context')
  told = f'perplexity {np.exp(found.nats):.3f} a token'
  if found.interval is not None:
    low, high = found.interval
    told = f'95 % interval {low:.3f} to {high:.3f}; {told}'
  print(told)
  print(f'nats_per_token {found.nats:.3f} tokens {found.tokens}')
