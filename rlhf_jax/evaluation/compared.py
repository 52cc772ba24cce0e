"""Variants of a sweep against each other, on the same seeds and the same prompts.

In: the finished points of each variant. Out: differences with intervals over seeds and prompts,
each pair together, so that what all variants have in common cancels. Left out: what a variant is,
and its own intervals (study.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# One number of a row of an evaluation; None where there is none.
Value = Callable[[Mapping[str, Any]], float | None]
Rows = Sequence[Mapping[str, Any]]
# Seed -> (step -> rows, one a prompt).
Seeds = Mapping[int, Mapping[int, Rows]]
Interval = Callable[[np.ndarray], tuple[float | None, list[float] | None]]


def numbers(rows: Rows, value: Value) -> np.ndarray:
  """float64 [prompts], NaN for None."""
  found = [value(row) for row in rows]
  return np.array([np.nan if x is None else float(x) for x in found])


def at_the_end(one: Seeds, other: Seeds, value: Value, interval: Interval
               ) -> dict[str, Any] | None:
  """What `one` has more than `other` after their last steps, over the seeds that both have.

  None too where they did not meet the same prompts.
  """
  if prompts(one) != prompts(other):
    return None
  last = lambda seeds, seed: numbers(seeds[seed][max(seeds[seed])], value)
  return told([last(one, seed) - last(other, seed) for seed in one if seed in other], interval)


def at_the_same_kl(one: Seeds, other: Seeds, kl: Value, value: Value, interval: Interval
                   ) -> dict[str, Any] | None:
  """What `one` has more at its end than `other` had where it first was as far from the start.

  `other`'s number for a prompt is linear in √KL between the two evaluations around that distance.
  Seeds whose `other` never came so far are left out; 'd' is the mean distance of the rest.
  """
  if prompts(one) != prompts(other):
    return None
  differences, distances = [], []
  for seed in one:
    end = one[seed][max(one[seed])]
    distance = _distance(end, kl)
    there = _between(other.get(seed, {}), distance, kl, value)
    if there is not None:
      differences.append(numbers(end, value) - there)
      distances.append(distance)
  found = told(differences, interval)
  return found and found | {'d': float(np.mean(distances))}


def reach(seeds: Seeds, kl: Value) -> float:
  """The distance √KL that every seed has reached."""
  return min(max(_distance(rows, kl) for rows in path.values()) for path in seeds.values())


def at_a_distance(seeds: Seeds, distance: float, kl: Value, value: Value) -> dict[int, np.ndarray]:
  """Seed -> [prompts] where the run first was as far from the start, as `at_the_same_kl` takes it;
  without the seeds that never were.
  """
  found = {seed: _between(path, distance, kl, value) for seed, path in seeds.items()}
  return {seed: there for seed, there in found.items() if there is not None}


def told(differences: Sequence[np.ndarray], interval: Interval) -> dict[str, Any] | None:
  """{'mean', 'low', 'high', 'n', 'seeds'} of [prompts] a seed, no ends of a single number; None
  where there is none.
  """
  if not differences:
    return None
  stacked = np.array(differences)
  mean, ends = interval(stacked)
  if mean is None:
    return None
  low, high = ends or (None, None)
  return {'mean': mean, 'low': low, 'high': high, 'n': int(np.isfinite(stacked).sum()),
          'seeds': len(differences)}


def prompts(seeds: Seeds) -> set[tuple[Any, ...]]:
  """The prompts that its evaluations met, by their ids: one tuple, in a sweep. Where lengths differ
  so may the prompts that fit, and as many are not the same.
  """
  return {tuple(row.get('id') for row in rows) for path in seeds.values() for rows in path.values()}


def _distance(rows: Rows, kl: Value) -> float:
  return float(np.sqrt(max(np.mean(numbers(rows, kl)), 0.0)))


def _between(path: Mapping[int, Rows], distance: float, kl: Value, value: Value
             ) -> np.ndarray | None:
  before: tuple[float, np.ndarray] | None = None
  for _, rows in sorted(path.items()):
    here, found = _distance(rows, kl), numbers(rows, value)
    if here >= distance:
      if before is None or here == before[0]:
        return found
      share = (distance - before[0]) / (here - before[0])
      return before[1] + share * (found - before[1])
    before = here, found
  return None
