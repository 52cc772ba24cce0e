"""The reward model: loss over a prompt's pairs, then over prompts; its head, bias and accuracy."""

import dataclasses
import itertools
import math
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.model import attention, transformer
from rlhf_jax.stages import reward, stage


@pytest.fixture(scope='module')
def base(bench, tiny):
  return bench(tiny.REWARD)


@pytest.fixture(scope='module')
def scores(base):
  """Scores [B, K] of the batch, completion by completion."""
  run = jax.jit(score_of, static_argnums=1)
  batch, params = base.batch, base.state.model.params
  return np.array([[run(params, base.stage.model, t, v) for t, v in zip(*pair, strict=True)]
                   for pair in zip(batch['tokens'], batch['valid'], strict=True)])


def score_of(params, model, tokens, valid):
  """The head at the last real token of one completion."""
  states = transformer.hidden(model, params, tokens[None], valid[None])[0]
  last = jnp.max(jnp.where(valid, jnp.arange(valid.shape[0]), 0))
  return states[last] @ params['head']['kernel'] + params['head']['bias']


def pairs_of(ranks, present):
  return [(w, l) for w, l in itertools.permutations(range(len(ranks)), 2)
          if present[w] and present[l] and ranks[w] < ranks[l]]


def test_loss_is_a_mean_over_pairs_then_over_prompts(base, scores):
  batch, losses, right, count = base.batch, [], 0, 0
  for row, ranks, present in zip(scores, batch['ranks'], batch['present'], strict=True):
    pairs = pairs_of(ranks, present)
    count, right = count + len(pairs), right + sum(row[w] > row[l] for w, l in pairs)
    if pairs:
      losses.append(np.mean([math.log(1 + math.exp(row[l] - row[w])) for w, l in pairs]))
  assert len(losses) < base.config.batch  # some prompt has ties alone
  assert len(losses) < count  # and some have several pairs
  _, metrics = base.step()
  np.testing.assert_allclose(metrics['loss'], np.mean(losses), rtol=1e-4)
  np.testing.assert_allclose(metrics['accuracy'], right / count, rtol=1e-5)
  assert float(metrics['pairs']) == count
  np.testing.assert_allclose(metrics['score'], scores[batch['present']].mean(), atol=1e-4)


def test_gradient_is_that_of_the_plain_loss(base, tiny):
  batch, model = base.batch, base.stage.model
  pairs = [(b, w, l) for b in range(base.config.batch)
           for w, l in pairs_of(batch['ranks'][b], batch['present'][b])]
  weight = np.array([1 / sum(p[0] == b for p in pairs) for b, _, _ in pairs])
  weight /= len({b for b, _, _ in pairs})
  index = np.array(pairs).T

  def loss(params):
    one = lambda tokens, valid: score_of(params, model, tokens, valid)
    found = jax.vmap(jax.vmap(one))(batch['tokens'], batch['valid'])
    margin = found[index[0], index[1]] - found[index[0], index[2]]
    return -jnp.sum(weight * jax.nn.log_sigmoid(margin))

  state, _ = base.step()
  adam = next(s for s in jax.tree.leaves(state.model.opt_state, is_leaf=lambda s: hasattr(s, 'mu'))
              if hasattr(s, 'mu'))
  found = jax.tree.map(lambda m: m / (1 - base.config.optimizer.b1), adam.mu)
  wanted = jax.jit(jax.grad(loss))(base.state.model.params)
  for tree in (found, wanted):  # the loss does not know a shift of all scores
    for tensor in (tree['head'].pop('bias'), tree['norm'].pop('bias')):
      assert np.abs(tensor).max() < 1e-6
  assert tiny.far(found, wanted) < 1e-3


def test_rematerialised_and_unrolled_layers_step_alike(base, bench, tiny):
  (whole, told), model = base.step(), dataclasses.replace(tiny.MODEL, scan=False, remat=True)
  state, metrics = bench(tiny.REWARD, model).step()
  assert tiny.far(state.model.params, whole.model.params) <= 1e-5
  np.testing.assert_allclose(metrics['loss'], told['loss'], rtol=1e-5)


def test_absent_completions_and_tied_prompts_teach_nothing(base, tiny):
  other = {k: v.copy() for k, v in base.batch.items()}
  other['tokens'][~other['present']] = 5
  other['tokens'][0] = 7
  a, b = (base.step(batch=x)[0].model.params for x in (base.batch, other))
  assert tiny.far(b, a) < 1e-6


def test_microbatches_give_the_whole(base, bench, tiny):
  """A tied prompt in one piece: the count of prompts is the whole batch's."""
  pieces = bench(dataclasses.replace(tiny.REWARD, microbatch=2))
  (whole, told), (state, metrics) = base.step(), pieces.step()
  assert tiny.far(state.model.params, whole.model.params) <= 1e-5
  for name in told:
    np.testing.assert_allclose(metrics[name], told[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_training_learns_the_order(base):
  _, told = base.run(25)
  assert told[-1]['loss'] < 0.5 * told[0]['loss']
  assert told[-1]['accuracy'] > 0.95


def test_the_bias_stays_what_it_was(base):
  """To the bit: the loss does not know it, and Adam would make steps of rounding."""
  head = base.state.model.params['head']
  start = jnp.float32(0.3)
  params = base.state.model.params | {'head': head | {'bias': start}}
  state = base.state.replace(model=base.state.model.replace(params=params))
  for t in range(5):
    state, _ = base.step(state, key=jax.random.key(t))
  assert state.model.params['head']['bias'] == start
  assert np.abs(state.model.params['head']['kernel'] - head['kernel']).max() > 1e-3


def test_start_is_the_trunk_with_a_new_head(base, parents, tiny):
  found, trunk = base.state.model.params, parents['init_from'].params
  assert set(found) == {*trunk, 'head'} - {'unembed'}
  for name in ('embed', 'blocks', 'norm'):
    assert tiny.far(found[name], trunk[name]) == 0
  assert float(found['head']['bias']) == 0
  wide = stage.Parent(dataclasses.replace(tiny.MODEL, width=4000), None, None)
  head = reward.make(tiny.REWARD, {'init_from': wide}, None).init(
    jax.random.key(0), {'init_from': {}}).model.params['head']['kernel']
  np.testing.assert_allclose(np.std(head), 1 / math.sqrt(4001), rtol=0.05)


def test_no_dropout_whatever_the_parent_had(parents, tiny):
  parent = parents['init_from']
  dropped = dataclasses.replace(parent, model=dataclasses.replace(parent.model, dropout=0.2))
  assert reward.make(tiny.REWARD, {'init_from': dropped}, None).model.dropout == 0


@pytest.fixture
def placed(parents, tiny, monkeypatch):
  """A stage on made-up data: 11 held-out rankings, 9 demonstrations."""
  split = lambda rows: [{k: v[i] for k, v in rows.items()} for i in range(len(rows['tokens']))]
  ranked = tiny.batch_of(dataclasses.replace(tiny.REWARD, batch=11), 5)
  demonstrations = tiny.response_rows(9, 6)
  asked = []

  def build(data, **options):
    asked.append((data, options['heldout']))
    rows = demonstrations if data and data[0].kind == 'demonstrations' else ranked
    return types.SimpleNamespace(train=split(rows), heldout=split(rows), card={})

  monkeypatch.setattr(reward.builders, 'build', build)
  monkeypatch.setattr(reward.data_batches, 'batches',
                      lambda rows, batch, seed: types.SimpleNamespace(epoch=4))
  language = configs.Language(data=(configs.Source(kind='demonstrations'),), heldout=0.2)
  parent = dataclasses.replace(parents['init_from'], config=language)
  config = dataclasses.replace(tiny.REWARD, data=(configs.Source(kind='rankings'),))
  made = reward.make(config, {'init_from': parent}, 'a place')
  state = made.init(jax.random.key(0), {'init_from': parent.params})
  return made, state, ranked, demonstrations, asked


def test_finish_makes_demonstrations_score_zero(placed, tiny):
  made, state, _, demonstrations, asked = placed
  assert (made.steps, asked[-1][1]) == (4, 0.2)  # the training split of the very same SFT data
  run = jax.jit(score_of, static_argnums=1)
  score = lambda params: np.array([run(params, made.model, t, v) for t, v in zip(
    demonstrations['tokens'], demonstrations['valid'], strict=True)])
  before = score(state.model.params)
  after, told = made.finish(state, {})
  assert abs(before.mean()) > 1e-3
  np.testing.assert_allclose(score(after.model.params), before - before.mean(), atol=1e-5)
  np.testing.assert_allclose(told['demonstrations_mean_before'], before.mean(), rtol=1e-4)
  np.testing.assert_allclose(told['demonstrations_std'], before.std(), rtol=1e-4)
  same = after.model.params | {'head': state.model.params['head']}
  assert tiny.far(same, state.model.params) == 0  # nothing but the bias moved


def test_of_very_many_demonstrations_some_from_first_to_last_score_zero(placed, monkeypatch):
  """Files are often sorted by where their rows come from."""
  made, state, _, demonstrations, _ = placed
  monkeypatch.setattr(reward, 'CENTRE_ROWS', 4)
  rows = demonstrations['tokens'], demonstrations['valid']
  each = np.array([score_of(state.model.params, made.model, *row)
                   for row in zip(*rows, strict=True)])
  wanted = np.mean([each[len(each) * quarter // 4] for quarter in range(4)])
  assert abs(wanted - each[:4].mean()) > 1e-4
  _, told = made.finish(state, {})
  assert told['demonstrations'] == 4
  np.testing.assert_allclose(told['demonstrations_mean_before'], wanted, atol=1e-5)


def test_evaluation_counts_heldout_pairs_once(placed):
  """Eleven prompts in batches of eight: what fills the last batch up is not counted."""
  made, state, ranked, _, _ = placed
  run = jax.jit(score_of, static_argnums=1)
  losses, right, count = [], 0, 0
  for b in range(11):
    row = [float(run(state.model.params, made.model, ranked['tokens'][b, k], ranked['valid'][b, k]))
           for k in range(3)]
    pairs = pairs_of(ranked['ranks'][b], ranked['present'][b])
    count, right = count + len(pairs), right + sum(row[w] > row[l] for w, l in pairs)
    if pairs:
      losses.append(np.mean([math.log(1 + math.exp(row[l] - row[w])) for w, l in pairs]))
  metrics, rows = made.evaluate(state, {}, 1)
  assert rows == []
  assert metrics['validation_pairs'] == count
  np.testing.assert_allclose(metrics['validation_accuracy'], right / count, rtol=1e-5)
  np.testing.assert_allclose(metrics['validation_loss'], np.mean(losses), rtol=1e-4)


@pytest.mark.parametrize(('change', 'word'), [
  ({'response_length': 11}, 'rows of 17 tokens'),
  ({'microbatch': 3}, 'microbatch 3'),
])
def test_bad_sizes_are_refused(bench, tiny, change, word):
  with pytest.raises(configs.BadInput, match=word):
    bench(dataclasses.replace(tiny.REWARD, **change)).step()


def test_without_data_the_number_of_completions_must_be_named(parents, tiny):
  with pytest.raises(configs.BadInput, match='k_max 0'):
    reward.make(dataclasses.replace(tiny.REWARD, k_max=0), parents, None)


def test_rankings_of_a_run_are_not_looked_for_below_the_data():
  """A relative workdir beside --data: the file's path must not depend on either."""
  collected = stage.Parent(None, None, None, None, pathlib.Path('runs/a/rankings'))
  source, = reward._sources(configs.Reward(data='rankings'), {'data': collected}, 'data')
  assert source.files == (str(pathlib.Path.cwd() / 'runs/a/rankings/rankings.jsonl'),)


@pytest.mark.parametrize(('count', 'length', 'whole'), [(2, 6, True), (2, 5, False), (3, 6, False)])
def test_a_kernel_takes_whole_rows_where_those_are_few_more(base, monkeypatch, count, length,
                                                            whole):
  """Prompts of the other tokens of 12: two as long as their completions are 24 for 18, just a third
  more. XLA's operations in the kernel's place.
  """
  model, params = base.stage.model, base.state.model.params
  random, took, causal = np.random.default_rng(4), [], attention.causal
  tokens = random.integers(3, model.vocabulary, (4, count, 12)).astype(np.int32)
  tokens[:, 1:, :-length] = tokens[:, :1, :-length]
  starts = random.integers(0, 12 - length, (4, 1, 1))
  valid = (np.arange(12) >= starts) & (np.arange(12) < random.integers(13 - length, 13,
                                                                       (4, count, 1)))
  weights = random.normal(size=(4, count))

  def made():
    def total(params):
      scores = reward._forward(model, length, params, {'tokens': tokens, 'valid': valid})
      return jnp.sum(scores * weights), scores

    return jax.jit(jax.grad(total, has_aux=True))(params)

  gradient, scores = made()
  monkeypatch.setattr(attention, 'KERNELS', {jax.default_backend(): 'xla'})
  monkeypatch.setattr(transformer, 'has_kernel', lambda config, time: True)
  monkeypatch.setattr(transformer, 'causal', lambda *given: took.append(1) or causal(*given))
  found, again = made()
  assert bool(took) == whole
  np.testing.assert_allclose(again, scores, rtol=1e-4, atol=1e-5)
  for one, other in zip(*map(jax.tree.leaves, (found, gradient)), strict=True):
    assert np.linalg.norm(one - other) <= 1e-4 * max(np.linalg.norm(other), 1e-2)
