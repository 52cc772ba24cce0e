"""One labeler's comparisons put back: orders worked out by hand, and the properties of any."""

import itertools
import pathlib
import random

import pytest

from rlhf_jax.data.comparisons import put_back
from rlhf_jax.data.files import Reading
from rlhf_jax.data.records import Ranking


def said(words, prompt='p', labeler='ann'):
  """'a>b c=d' -> numbered comparisons."""
  pieces = []
  for line, word in enumerate(words.split(), 1):
    one, sign, other = word
    pieces.append((line, Ranking(prompt, (one, other), (1, 2) if sign == '>' else (1, 1), labeler)))
  return pieces


def back(pieces):
  reading = Reading(pathlib.Path('f'))
  found = [(line, dict(zip(ranking.completions, ranking.ranks, strict=True)))
           for line, ranking in put_back(reading, pieces)]
  return found, dict(reading.sets), dict(reading.refused)


@pytest.mark.parametrize(('words', 'found', 'sets', 'refused'), [
  ('a>b', [(1, {'a': 1, 'b': 2})], {'pairs': 1}, {}),
  ('a>b a>b', [(1, {'a': 1, 'b': 2})], {'pairs': 1}, {}),
  ('a>b b>c a>c', [(1, {'a': 1, 'b': 2, 'c': 3})], {'sets of 3': 1}, {}),
  ('a>b b>c', [(1, {'a': 1, 'b': 2, 'c': 3})], {'sets of 3': 1}, {}),  # a > c follows
  ('b>c a=b', [(1, {'a': 1, 'b': 1, 'c': 2})], {'sets of 3': 1}, {}),
  ('a=b b>c c=d', [(1, {'a': 1, 'b': 1, 'c': 2, 'd': 2})], {'sets of 4': 1}, {}),
  # nobody said how a and c stand
  ('a>b c>b', [(1, {'a': 1, 'b': 2}), (2, {'c': 1, 'b': 2})], {'pairs': 2}, {}),
  ('a>b c>b d=a', [(1, {'a': 1, 'b': 2}), (2, {'c': 1, 'b': 2})], {'pairs': 2},
   {'all ranks tied': 1}),
  # two sets that nothing connects
  ('a>b c>d b>e', [(1, {'a': 1, 'b': 2, 'e': 3}), (2, {'c': 1, 'd': 2})],
   {'sets of 3': 1, 'pairs': 1}, {}),
  ('a>b b>c c>a', [], {'intransitive sets': 1}, {'intransitive set': 3}),
  ('a>b b>a', [], {'intransitive sets': 1}, {'intransitive set': 2}),
  ('a>b a=b', [], {'intransitive sets': 1}, {'intransitive set': 2}),
  ('a=b b=c', [], {}, {'all ranks tied': 2}),
])
def test_by_hand(words, found, sets, refused):
  assert back(said(words)) == (found, sets, refused)


def test_prompts_and_labelers_stay_apart():
  pieces = said('a>b') + said('b>c', labeler='bob') + said('b>c', prompt='q')
  assert [found for _, found in back(pieces)[0]] == [
    {'a': 1, 'b': 2}, {'b': 1, 'c': 2}, {'b': 1, 'c': 2}]


@pytest.mark.parametrize('seed', range(20))
def test_all_pairs_of_any_order_give_it_back(seed):
  generator = random.Random(seed)
  ranks = {text: generator.randrange(1, 5) for text in 'abcdef'}
  pairs = list(itertools.combinations('abcdef', 2))
  generator.shuffle(pairs)
  pieces = [(line, Ranking('p', (a, b), tuple(1 + (ranks[text] > min(ranks[a], ranks[b]))
                                              for text in (a, b)), 'ann'))
            for line, (a, b) in enumerate(pairs, 1)]
  dense = {rank: place for place, rank in enumerate(sorted(set(ranks.values())), 1)}
  assert back(pieces)[0] == [(1, {text: dense[ranks[text]] for text in back(pieces)[0][0][1]})]
  assert set(back(pieces)[0][0][1]) == set('abcdef')


def test_what_is_known_of_the_first_is_kept():
  pieces = [(3, Ranking('p', ('a', 'b'), (1, 2), 'ann', 'chat', 'c1', {'k': 1}, (True, False))),
            (4, Ranking('p', ('b', 'c'), (1, 2), 'ann', ended=(False, True)))]
  assert list(put_back(Reading(pathlib.Path('f')), pieces)) == [
    (3, Ranking('p', ('a', 'b', 'c'), (1, 2, 3), 'ann', 'chat', 'c1', {'k': 1},
                (True, False, True)))]
