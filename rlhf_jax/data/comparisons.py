"""What one labeler said of pairs of completions of a prompt → K-way rankings again.

The paper's labelers rank K completions at once (§3.5); many files hold the pairs. In: rankings of
few completions. Out: one ranking for each set that the labeler's word orders wholly, the pairs of
the others. Left out: several labelers in one ranking: they are averaged nowhere.
"""

import collections
import graphlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

from rlhf_jax.data.files import Reading
from rlhf_jax.data.records import Ranking

_Piece = tuple[int, Ranking]  # line, what was said there


def put_back(reading: Reading, pieces: Iterable[_Piece]) -> Iterator[_Piece]:
  """Rankings by labeler and prompt, in the order in which they begin.

  Completions that comparisons connect are one set. If they put all of it into one order (a tie
  shares a rank, a > b > c says a > c), the set is one ranking. If they contradict each other, it is
  left out and counted ('intransitive set'); if all are ties, too ('all ranks tied'). Else the
  comparisons stay pairs.
  """
  said = collections.defaultdict(list)
  for line, ranking in pieces:
    said[ranking.prompt, ranking.labeler].append((line, ranking))
  for found in said.values():
    for connected in _components(found):
      yield from _set(reading, connected)


def _set(reading: Reading, pieces: Sequence[_Piece]) -> Iterator[_Piece]:
  """The rankings of one connected set."""
  texts = list(dict.fromkeys(text for _, piece in pieces for text in piece.completions))
  wins, ties = set(), []
  for _, piece in pieces:
    order = zip(piece.completions, piece.ranks, strict=True)
    for (one, its_rank), (other, rank) in itertools.combinations(order, 2):
      if its_rank == rank:
        ties.append((one, other))
      else:
        wins.add((one, other) if its_rank < rank else (other, one))
  if not wins:
    reading.leave_out('all ranks tied', len(pieces))
    return
  ranks = _ranks(texts, wins, ties)
  if ranks is None:
    reading.sets['intransitive sets'] += 1
    reading.leave_out('intransitive set', len(pieces))
  elif len(texts) > 2 and ranks:
    reading.sets[f'sets of {len(texts)}'] += 1
    yield _joined(pieces, texts, ranks)
  elif ranks:
    reading.sets['pairs'] += 1
    yield pieces[0]
  else:
    for line, piece in pieces:
      if len(set(piece.ranks)) > 1:
        reading.sets['pairs'] += 1
        yield line, piece
      else:
        reading.leave_out('all ranks tied')


def _ranks(texts: Sequence[str], wins: set[tuple[str, str]],
           ties: Sequence[tuple[str, str]]) -> dict[str, int] | None:
  """Rank by text; {} where the order of some two is not said; None where it is contradictory."""
  parent = {text: text for text in texts}

  def root(text: str) -> str:
    while parent[text] != text:
      text = parent[text]
    return text

  for one, other in ties:
    parent[root(other)] = root(one)
  better = {(root(winner), root(loser)) for winner, loser in wins}
  above = {root(text): {winner for winner, loser in better if loser == root(text)}
           for text in texts}
  try:
    order = list(graphlib.TopologicalSorter(above).static_order())
  except graphlib.CycleError:
    return None
  # There is one order only if each is known to be better than the next.
  if any(pair not in better for pair in itertools.pairwise(order)):
    return {}
  return {text: 1 + order.index(root(text)) for text in texts}


def _joined(pieces: Sequence[_Piece], texts: Sequence[str], ranks: dict[str, int]) -> _Piece:
  """One ranking with what the first piece says of prompt and labeler."""
  line, first = pieces[0]
  ended = {text: whole for _, piece in pieces
           for text, whole in zip(piece.completions, piece.ended, strict=bool(piece.ended))}
  return line, Ranking(
    first.prompt, tuple(texts), tuple(ranks[text] for text in texts), first.labeler, first.category,
    first.customer, first.meta,
    tuple(ended[text] for text in texts) if len(ended) == len(texts) else ())


def _components(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
  """The pieces that share completions, directly or over others, together; in order."""
  groups: list[tuple[set[str], list[_Piece]]] = []
  for piece in pieces:
    texts, mine, others = set(piece[1].completions), [piece], []
    for known, members in groups:
      if known & texts:
        texts, mine = known | texts, members + mine
      else:
        others.append((known, members))
    groups = [*others, (texts, mine)]
  for _, members in groups:
    members.sort(key=lambda piece: piece[0])
  return sorted((members for _, members in groups), key=lambda members: members[0][0])
