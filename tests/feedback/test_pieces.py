"""Pieces: what was whole comes back, what is damaged or of something else does not."""

import json

import pytest

from rlhf_jax.feedback import pieces
from rlhf_jax.model import responses


@pytest.fixture
def folder(tmp_path):
  found = pieces.Pieces(tmp_path / 'some' / 'work', 'this')
  assert found.done == [] and not found.folder.exists()  # nothing is written for nothing
  for number in (0.1, 2**-0.5, 3):
    found.append({'n': number})
  return found.folder


def test_what_was_whole_comes_back_to_the_bit(folder):
  assert pieces.Pieces(folder, 'this').done == [{'n': 0.1}, {'n': 2**-0.5}, {'n': 3}]


@pytest.mark.parametrize('damage', [b'', b'{"n": ', None])
def test_what_stands_behind_damage_is_made_again(folder, damage):
  second = sorted((folder / 'this').iterdir())[1]
  second.unlink() if damage is None else second.write_bytes(damage)
  found = pieces.Pieces(folder, 'this')
  assert found.done == [{'n': 0.1}]
  found.append({'n': 4})
  assert pieces.Pieces(folder, 'this').done == [{'n': 0.1}, {'n': 4}, {'n': 3}]


def test_pieces_of_something_else_are_begun_anew(folder):
  found = pieces.Pieces(folder, 'that')
  assert found.done == []
  found.append({'n': 5})
  assert pieces.Pieces(folder, 'that').done == [{'n': 5}]
  found.remove()
  found.remove()
  assert not folder.exists()


def test_a_fingerprint_tells_values_apart():
  told = {pieces.fingerprint(value) for value in (['a', 'b'], ['ab'], ['b', 'a'], [])}
  assert len(told) == 4 and pieces.fingerprint(['a', 'b']) in told


def test_responses_are_given_back_as_they_were():
  some = [responses.Response('a – b', (3, 4, 2), -1 / 3, True),
          responses.Response('', (), 0.0, False)]
  assert pieces.unpacked(json.loads(json.dumps(pieces.packed(some)))) == some
