"""Samples of the start, with a stand-in for the model: what is kept of a judge's word."""

import types

import jax
import numpy as np

from rlhf_jax.data.records import Judgement, Prompt
from rlhf_jax.evaluation import start
from rlhf_jax.model.responses import Response


def test_a_judge_may_say_its_scores_as_numpy_does(tmp_path):
  """numpy's numbers are no JSON, and samples are kept as JSON."""
  def judge(prompt, texts, labeler):
    lengths = np.array([len(text) for text in texts], np.float32)
    return Judgement(tuple(lengths), tuple(np.argsort(np.argsort(lengths)) + 1))

  fixed = types.SimpleNamespace(
    texts=['one', 'two', 'three'], prompts=[Prompt('one'), Prompt('two'), Prompt('three')],
    batch=2, start=None, judge=judge,
    respond=lambda params, asked, key, first: [
      Response('x' * (first + 1), (1,) * (first + 1), -1.0, True) for _ in asked])
  found = start.draw(fixed, tmp_path, 'of', 2, seed=0)
  assert [list(row) for row in found.gold] == [[3, 5], [3, 5], [4, 6]]
  again = start.draw(fixed, tmp_path, 'of', 2, seed=0)
  np.testing.assert_array_equal(again.gold, found.gold)
  np.testing.assert_array_equal(again.wins, found.wins)
  assert jax.tree.leaves(again.answers) == jax.tree.leaves(found.answers)
