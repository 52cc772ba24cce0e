"""The next-token loss of a model on held-out text, with an interval.

In: rows of text, parameters. Out: nats a token. What it rises above the start's is the alignment
tax. Left out: building the rows (data.builders).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from rlhf_jax import configs
from rlhf_jax.data import agreement
from rlhf_jax.model import experience, responses

PARTS = 32  # the loss is taken over so many runs of rows, for its interval


def pretraining_loss(model: configs.Model, params: Any, rows: Any, batch: int
                     ) -> tuple[float | None, list[float] | None]:
  """(nats a token, its 95 % interval by bootstrap over runs of rows); see `by_part`."""
  found = by_part(model, params, rows, batch)
  return agreement.ratio_interval(
    [mean * tokens for mean, tokens in found], [tokens for _, tokens in found])


def by_part(model: configs.Model, params: Any, rows: Any, batch: int) -> list[tuple[float, int]]:
  """(nats a token, tokens) of each run of rows.

  Args:
    rows: random access to rows of text (dicts of numpy arrays).
    batch: rows at a time.
  """
  size = -(-len(rows) // PARTS)
  parts = [_Part(rows, start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
  return [responses.mean_loss(_losses(model), params, part, min(batch, size)) for part in parts]


@functools.lru_cache(maxsize=16)
def _losses(model: configs.Model) -> Callable:
  return jax.jit(functools.partial(experience.next_token_losses, model))


@dataclasses.dataclass(frozen=True)
class _Part:
  """Rows [start, stop) of rows."""
  rows: Any
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start

  def __getitem__(self, index: int) -> Any:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self.rows[self.start + index]
