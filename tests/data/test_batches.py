"""Batches: batch t is a function of (seed, t) alone; an epoch sees every row once, in its order."""

import itertools
import json

import jax
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.data.batches import batches, mixed, prompts_and_text
from rlhf_jax.data.sources import Place
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime import checkpoint, workdir
from rlhf_jax.stages.stage import Parent


def rows(count, start=0):
  return [{'tokens': np.array([start + index, 7], np.int32), 'valid': np.array([True, False])}
          for index in range(count)]


def seen(found, steps):
  return [found[step]['tokens'][:, 0].tolist() for step in steps]


def chained(parts):
  return list(itertools.chain.from_iterable(parts))


def test_a_batch_is_a_pure_function_of_seed_and_step():
  one, two = batches(rows(23), 4, seed=3), batches(rows(23), 4, seed=3)
  forwards = seen(one, range(40))
  assert seen(two, reversed(range(40))) == forwards[::-1]
  assert seen(two, [17, 3, 17]) == [forwards[17], forwards[3], forwards[17]]
  assert seen(batches(rows(23), 4, seed=4), range(40)) != forwards


def test_shapes_and_types():
  batch = batches(rows(5), 3, 0)[0]
  assert batch['tokens'].shape == (3, 2) and batch['tokens'].dtype == np.int32
  assert batch['valid'].dtype == bool


def test_every_epoch_sees_every_row_once_in_another_order():
  found = batches(rows(24), 4, 0)
  assert found.epoch == 6
  epochs = [chained(seen(found, range(6 * epoch, 6 * epoch + 6))) for epoch in range(4)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(24)) and epoch != list(range(24))
  assert len(set(map(tuple, epochs))) == 4


def test_epochs_run_on_across_batches():
  found = batches(rows(7), 3, 0)
  assert found.epoch == 7 / 3
  stream = chained(seen(found, range(14)))
  assert [sorted(stream[start:start + 7]) for start in range(0, 42, 7)] == [list(range(7))] * 6
  small = batches(rows(2), 5, 0)
  assert small.epoch == 2 / 5 and len(seen(small, [0])[0]) == 5


@pytest.mark.parametrize(('count', 'batch', 'epochs'), [(127, 64, 1), (100, 64, 16), (24, 4, 3)])
def test_epochs_leave_at_most_half_a_batch_of_rows_unseen(count, batch, epochs):
  steps = round(batches(rows(count), batch, 0).epoch * epochs)  # as the stages count
  assert abs(steps * batch - count * epochs) <= batch / 2


def test_the_last_rows_of_a_mixed_batch_are_of_the_second():
  found = mixed(rows(12), rows(40, start=100), 8, 0.26, seed=1)
  assert found.epoch == 2
  taken = seen(found, range(20))
  for batch in taken:
    assert all(row < 100 for row in batch[:6]) and all(row >= 100 for row in batch[6:])
  assert sorted(chained(batch[:6] for batch in taken[:2])) == list(range(12))
  assert sorted(chained(batch[6:] for batch in taken)) == list(range(100, 140))
  assert seen(mixed(rows(12), rows(40, start=100), 8, 0.26, seed=1), [13]) == [taken[13]]


def test_nothing_mixed_in_is_the_first_alone():
  alone = batches(rows(12), 4, 5)
  assert seen(mixed(rows(12), rows(9), 4, 0.0, 5), range(9)) == seen(alone, range(9))


def test_what_cannot_be():
  with pytest.raises(BadInput, match='found none'):
    batches([], 4, 0)
  with pytest.raises(BadInput, match='leave room in a batch of 4'):
    mixed(rows(4), rows(4), 4, 1.0, 0)
  with pytest.raises(BadInput, match=r'0\.1 of a batch of 4 is not a row'):
    mixed(rows(4), rows(4), 4, 0.1, 0)


@pytest.mark.parametrize('runs', [{'sft': configs.Language()}, {
  'sft': configs.Language(), 'ppo': configs.PPO(policy='sft'), 'again': configs.PPO(policy='ppo')}])
def test_text_that_the_language_run_held_out_stays_held_out(tmp_path, runs):
  """That of a PPO run which starts from a PPO run too."""
  runs['sft'] = configs.Language(heldout=0.5, seed=3)
  for name, run in runs.items():
    workdir.write_json(tmp_path / name / 'config.json', workdir.describe(run, {}))
    workdir.write_json(tmp_path / name / 'finished.json', {})
  for kind, key in (('prompts', 'prompt'), ('text', 'text')):
    (tmp_path / f'{kind}.jsonl').write_text(''.join(
      json.dumps({key: f'{index:03d}'}) + '\n' for index in range(40)))
  sources = {kind: (configs.Source(kind, (f'{kind}.jsonl',)),) for kind in ('prompts', 'text')}
  config = configs.PPO(prompts=sources['prompts'], pretraining=sources['text'], episodes=4,
                       text_length=4, seed=9)
  tokenizer = Tokenizer.train(['0123456789'], 300)
  shapes = {'prompts': {'tokens': None},
            'pretraining': {'tokens': jax.ShapeDtypeStruct((40, 4), np.int32)}}
  name, run = list(runs.items())[-1]
  read = [prompts_and_text(
    config, Parent(None, tokenizer, None, run, tmp_path / name, language),
    Place(tmp_path / 'w', tmp_path), shapes)(0)['pretraining']['tokens'] for language in (
      checkpoint.language_below(tmp_path / name, run), runs['sft'], None)]
  texts = [set(map(tuple, rows.tolist())) for rows in read]
  assert texts[0] == texts[1] and len(texts[0]) < 0.7 * len(texts[2])
