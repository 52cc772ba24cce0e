"""What responses look like, whatever they say: variety, repetition, length.

In: texts. Out: plain numbers. Words are what whitespace separates. Left out: anything that needs a
tokenizer.
"""

from collections.abc import Sequence

import numpy as np


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
  """The runs of n words of a text, in order."""
  words = text.split()
  return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float | None:
  """Different n-grams over all n-grams of all texts together (Li et al. 2016); None if there is
  none.

  It falls as texts are added, so only sets of about one size may be compared.
  """
  found = [gram for text in texts for gram in ngrams(text, n)]
  return len(set(found)) / len(found) if found else None


def repetition(texts: Sequence[str], n: int = 2) -> float | None:
  """Mean over texts of the share of a text's n-grams it has said before; texts of fewer than n
  words are left out."""
  shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(text, n))]
  return float(np.mean(shares)) if shares else None


def statistics(texts: Sequence[str]) -> dict[str, float | None]:
  """distinct_1, distinct_2, distinct_3, repetition (of word pairs) and words a text."""
  return {
    **{f'distinct_{n}': distinct(texts, n) for n in (1, 2, 3)},
    'repetition': repetition(texts),
    'words': float(np.mean([len(text.split()) for text in texts])) if texts else None,
  }
