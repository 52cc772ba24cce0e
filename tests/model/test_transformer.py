"""The forward pass against plain numpy; padding, cache, scan, remat, dropout, the scalar head."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.model import attention, sharding, transformer
from rlhf_jax.objectives import likelihood
from rlhf_jax.runtime import flops

hidden = jax.jit(transformer.hidden, static_argnums=0)
scalars = jax.jit(transformer.scalars)


# ------------------------------------------------------------------------------------ numpy oracle


def numpy_norm(config, x, weights):
  if config.norm == 'layer':
    x = x - x.mean(-1, keepdims=True)
  y = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon) * weights['scale']
  return y + weights.get('bias', 0.0)


def numpy_rotate(config, x, position):
  """One head of one token: pair i of its halves turned by position·θ^(−2i/H)."""
  half = len(x) // 2
  out = x.copy()
  for i in range(half):
    angle = position * config.rope_theta**(-2 * i / len(x))
    out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
    out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
  return out


def numpy_attention(config, x, w, back):
  """One row without padding, head by head and token by token, `back` tokens back at most."""
  project = lambda name: np.einsum('td,dnh->tnh', x, w[name]['kernel']) + w[name].get('bias', 0.0)
  query, key, value = project('query'), project('key'), project('value')
  length, heads, size = query.shape
  out = np.zeros((length, heads, size))
  for n in range(heads):
    group = n // (heads // key.shape[1])
    for t in range(length):
      turn = lambda v, p: numpy_rotate(config, v, p) if config.positions == 'rope' else v
      first = max(0, t + 1 - back)
      scores = np.array([turn(query[t, n], t) @ turn(key[s, group], s)
                         for s in range(first, t + 1)])
      weights = np.exp(scores / math.sqrt(size))
      out[t, n] = weights @ value[first:t + 1, group] / weights.sum()
  return np.einsum('tnh,nhd->td', out, w['out']['kernel']) + w['out'].get('bias', 0.0)


def numpy_mlp(config, x, w):
  project = lambda name: x @ w[name]['kernel'] + w[name].get('bias', 0.0)
  if config.gated:
    gate = project('gate')
    inner = project('up') * gate / (1 + np.exp(-gate))
  else:
    up = project('up')
    inner = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
  return inner @ w['down']['kernel'] + w['down'].get('bias', 0.0)


def numpy_hidden(config, params, tokens):
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  x = params['embed']['tokens'][tokens]
  if config.positions == 'learned':
    x = x + params['embed']['positions'][:len(tokens)]
  for layer in range(config.layers):
    w = jax.tree.map(lambda p, i=layer: p[i], params['blocks'])
    banded = config.window and layer % config.window_every == config.window_every - 1
    back = config.window if banded else len(x)
    read = numpy_norm(config, x, w['norm_attention'])
    x = x + numpy_attention(config, read, w['attention'], back)
    x = x + numpy_mlp(config, numpy_norm(config, x, w['norm_mlp']), w['mlp'])
  return numpy_norm(config, x, params['norm'])


def test_forward_pass_equals_plain_numpy(case, rows):
  tokens, valid = rows
  found = hidden(case.config, case.params, tokens, valid)
  for b in range(len(tokens)):
    wanted = numpy_hidden(case.config, case.params, tokens[b][valid[b]])
    np.testing.assert_allclose(found[b][valid[b]], wanted, rtol=1e-3, atol=1e-4)


# ----------------------------------------------------------------------------------------- padding


def test_left_padding_changes_no_logit(case, rows):
  tokens, valid = rows
  shift = lambda x, fill: np.concatenate([np.full((len(x), 4), fill, x.dtype), x], axis=1)
  plain = hidden(case.config, case.params, tokens, valid)
  padded = hidden(case.config, case.params, shift(tokens, 9), shift(valid, False))[:, 4:]
  table = transformer.unembedding(case.params)
  before, after = (likelihood.logits_of(h, table, case.config.vocabulary) for h in (plain, padded))
  assert np.std(before[valid][:, :case.config.vocabulary]) > 1
  np.testing.assert_allclose(after[valid], before[valid], rtol=1e-4, atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter(case, rows):
  tokens, valid = rows
  other = np.where(valid, tokens, 36)
  np.testing.assert_array_equal(
    hidden(case.config, case.params, other, valid)[valid],
    hidden(case.config, case.params, tokens, valid)[valid])


def test_no_token_sees_a_later_one(case, rows):
  tokens, valid = rows
  changed = tokens.copy()
  changed[:, 6] = (changed[:, 6] + 1) % 37
  before = np.asarray(hidden(case.config, case.params, tokens, valid))
  after = np.asarray(hidden(case.config, case.params, changed, valid))
  np.testing.assert_array_equal(before[:, :6][valid[:, :6]], after[:, :6][valid[:, :6]])
  assert np.abs(before[:, 6:] - after[:, 6:])[valid[:, 6:]].max() > 1e-2


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('which', ['a slice', 'one a row'])
def test_positions_that_nobody_asks_for_are_not_missed(case, rows, scan, which):
  """States and gradients of some positions are those of a pass that computes all."""
  config = dataclasses.replace(case.config, scan=scan)
  if which == 'a slice':
    take = lambda x: x[:, 3:8]
  else:
    at = np.array([10, 6, 7, 8, 9, 5, 0])
    take = lambda x: jnp.take_along_axis(x, at.reshape(-1, *[1] * (x.ndim - 1)), axis=1)
  weights = np.random.default_rng(0).normal(size=take(np.zeros((7, 11, 1))).shape)

  def asked(params):
    states = transformer.hidden(config, params, *rows, take=take)
    return jnp.sum(weights * states**2), states

  def whole(params):
    states = take(transformer.hidden(config, params, *rows))
    return jnp.sum(weights * states**2), states

  found, wanted = (jax.jit(jax.grad(f, has_aux=True))(case.params) for f in (asked, whole))
  assert found[1].shape == (*weights.shape[:2], config.width)
  np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5, atol=1e-5)
  largest = max(float(jnp.linalg.norm(x)) for x in jax.tree.leaves(wanted[0]))
  for one, other in zip(*map(jax.tree.leaves, (found[0], wanted[0])), strict=True):
    # A key's bias moves no softmax: its gradient is rounding of what the others have.
    size = max(float(jnp.linalg.norm(other)), 1e-2 * largest)
    assert float(jnp.linalg.norm(one - other)) <= 1e-5 * size


# ------------------------------------------------------------------------------- long rows


def test_attention_in_pieces_changes_neither_value_nor_gradient(case, rows, monkeypatch):
  weights = np.where(rows[1], np.linspace(-1, 1, rows[1].size).reshape(rows[1].shape), 0)

  def loss(params):
    states = transformer.hidden(case.config, params, *rows)
    return jnp.sum(weights[..., None] * states**2), states

  run = lambda: jax.jit(jax.grad(lambda params: loss(params), has_aux=True))(case.params)
  plain, states = run()
  monkeypatch.setattr(attention, 'LONG', 11)  # as long as the rows are
  found, in_pieces = run()
  np.testing.assert_allclose(in_pieces[rows[1]], states[rows[1]], rtol=1e-5, atol=1e-5)
  whole = max(float(jnp.linalg.norm(x)) for x in jax.tree.leaves(plain))
  for one, other in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
    # A key's bias moves no softmax: its gradient is rounding of what the others have.
    assert jnp.linalg.norm(one - other) <= 1e-5 * max(float(jnp.linalg.norm(other)), 1e-2 * whole)


def test_pieces_leave_three_eighths_of_the_scores_out(cases):
  case, long = cases['gpt'], attention.LONG
  config = dataclasses.replace(case.config, positions='rope')
  tokens = jnp.zeros((1, long), jnp.int32)

  def products(config):
    pass_ = lambda params: transformer.hidden(config, params, tokens, tokens == 0)
    return flops.count(jax.jit(pass_).trace(case.params).jaxpr.jaxpr).total

  scores = config.layers * 4 * long * long * config.heads * config.head_size
  scanned = dataclasses.replace(config, scan=True)
  assert products(scanned) - products(config) == pytest.approx(3 / 8 * scores, rel=1e-6)


# ------------------------------------------------------------------------------------ cache, scan


@functools.partial(jax.jit, static_argnums=(0, 4))
def decode(config, params, tokens, valid, prefix):
  """Final states of every token after `prefix`, one at a time out of a cache."""
  length = tokens.shape[1]
  positions = jnp.cumsum(valid, axis=1) - 1
  causal = jnp.tril(jnp.ones((prefix, prefix), bool))
  _, cache = transformer.run_blocks(config, params, tokens[:, :prefix],
                                    jnp.maximum(positions[:, :prefix], 0),
                                    causal & valid[:, None, :prefix], keep_cache=True)
  cache = transformer.with_room(cache, length - prefix)
  found = []
  for t in range(prefix, length):
    look = (valid & (jnp.arange(length) <= t))[:, None, :]
    x, cache = transformer.run_blocks(config, params, tokens[:, t:t + 1], positions[:, t:t + 1],
                                      look, cache, t)
    found.append(x[:, 0])
  return jnp.stack(found, axis=1)


@pytest.mark.parametrize(('name', 'scan'), [
  ('gpt', False), ('llama', False), ('llama', True), ('gpt3', False), ('gpt3', True)])
def test_cached_decode_equals_the_full_forward(cases, rows, name, scan):
  case = cases[name]
  config = dataclasses.replace(case.config, scan=scan)
  tokens, valid = rows
  whole = hidden(config, case.params, tokens, valid)[:, 6:]
  found = decode(config, case.params, tokens, valid, 6)
  np.testing.assert_allclose(found[valid[:, 6:]], whole[valid[:, 6:]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('name', 'options'), [
  ('gpt', {'scan': True}),
  ('gpt', {'remat': True}),
  ('llama', {'scan': True, 'remat': True}),
  ('gpt3', {'scan': True, 'remat': True}),
])
def test_scan_and_remat_change_neither_value_nor_gradient(cases, rows, name, options):
  case = cases[name]

  def run(config):
    weights = np.where(rows[1], np.linspace(-1, 1, rows[1].size).reshape(rows[1].shape), 0)
    loss = lambda params: jnp.sum(weights[..., None] * transformer.hidden(config, params, *rows)**2)
    return jax.jit(jax.value_and_grad(loss))(case.params)

  plain, other = run(case.config), run(dataclasses.replace(case.config, **options))
  # With learned positions a key bias has no gradient at all: what is left of it is rounding.
  whole = max(np.linalg.norm(b) for b in jax.tree.leaves(plain))
  for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-8 * whole


# ----------------------------------------------------------------------------- dropout, precision


def test_dropout_needs_a_key(cases, rows):
  case = cases['gpt']
  dropped = dataclasses.replace(case.config, dropout=0.5)
  plain = hidden(case.config, case.params, *rows)
  np.testing.assert_array_equal(hidden(dropped, case.params, *rows), plain)
  first, second = (hidden(dropped, case.params, *rows, jax.random.key(i)) for i in (0, 1))
  assert np.abs(first - plain).max() > 0.1
  assert np.abs(first - second).max() > 0.1
  np.testing.assert_array_equal(hidden(case.config, case.params, *rows, jax.random.key(0)), plain)


def test_every_layer_drops_its_own(cases, rows):
  """Two layers that both passed a row's whole residual on, or both dropped it, would tell."""
  case = cases['gpt']
  config = dataclasses.replace(case.config, dropout=0.5)
  again = hidden(config, case.params, *rows, jax.random.key(0))
  scanned = hidden(dataclasses.replace(config, scan=True), case.params, *rows, jax.random.key(0))
  np.testing.assert_allclose(scanned[rows[1]], again[rows[1]], rtol=1e-4, atol=1e-5)
  keys = []
  with pytest.MonkeyPatch.context() as patch:
    apply = transformer.Block.apply

    def watched(*args, rngs=None):
      keys.append(rngs['dropout'])
      return apply(*args, rngs=rngs)

    patch.setattr(transformer.Block, 'apply', watched)
    transformer.hidden(config, case.params, *rows, jax.random.key(0))
  assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == config.layers


def test_bfloat16_computes_near_float32_from_the_same_master_weights(case, rows):
  low = hidden(dataclasses.replace(case.config, compute='bfloat16'), case.params, *rows)
  assert low.dtype == jnp.bfloat16
  high = hidden(case.config, case.params, *rows)
  valid = rows[1]
  gap = np.linalg.norm((low.astype(jnp.float32) - high)[valid]) / np.linalg.norm(high[valid])
  assert 1e-5 < gap < 0.1


def test_norms_in_bfloat16_keep_their_float32_parameters(case, rows):
  """What leaves a norm is rounded once, to half a unit (2⁻⁸); rounded scales would cost another."""
  config = dataclasses.replace(case.config, compute='bfloat16')
  random = np.random.default_rng(0)
  x = jnp.asarray(random.normal(0, 3, (64, config.width)), jnp.bfloat16)
  weights = {'scale': jnp.float32(1 + random.uniform(-2**-9, 2**-9, config.width))}
  if config.norm == 'layer':
    weights['bias'] = jnp.float32(random.uniform(1, 2, config.width))
  wanted = numpy_norm(config, np.asarray(x, np.float64), {
    name: np.float64(values) for name, values in weights.items()})

  def gap(weights):
    found = transformer.Norm(config).apply({'params': weights}, x)
    assert found.dtype == jnp.bfloat16
    return np.max((np.abs(np.float64(found) - wanted) - 1e-5) / np.abs(wanted))

  assert gap(weights) <= 2**-8
  assert gap(jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)) > 2**-8
  # The copy that decoding and the frozen reference use says the very same.
  np.testing.assert_array_equal(
    hidden(config, sharding.in_compute_type(case.params, 'bfloat16'), *rows),
    hidden(config, case.params, *rows))


# -------------------------------------------------------------------------------------- parameters


def test_scalar_head_reads_every_position(case, rows):
  states = np.asarray(hidden(case.config, case.scalar, *rows), np.float64)
  wanted = states @ np.asarray(case.scalar['head']['kernel']) + float(case.scalar['head']['bias'])
  np.testing.assert_allclose(scalars(case.scalar, states.astype(np.float32)), wanted, rtol=1e-4,
                             atol=1e-5)


def test_reward_head_starts_at_one_over_root_width_plus_one(case):
  wide = dataclasses.replace(case.config, width=4000)
  head = transformer.with_scalar_head(wide, {'embed': 1, 'unembed': 2}, jax.random.key(0))
  assert set(head) == {'embed', 'head'}  # the unembedding gives way
  assert float(head['head']['bias']) == 0
  np.testing.assert_allclose(np.std(head['head']['kernel']), 1 / math.sqrt(4001), rtol=0.05)
  zero = transformer.with_scalar_head(wide, {}, jax.random.key(0), zero=True)
  np.testing.assert_array_equal(zero['head']['kernel'], 0)
  fresh = jax.eval_shape(functools.partial(transformer.init, wide, scalar=True), jax.random.key(0))
  assert 'unembed' not in fresh
  assert fresh['head']['kernel'].shape == (4000,)


def test_start_has_the_stated_spread():
  config = configs.Model(layers=3, width=64, heads=4, mlp=96, vocabulary=100, init_std=0.02)
  params = jax.jit(transformer.init, static_argnums=0)(config, jax.random.key(0))
  assert params['embed']['tokens'].shape == (128, 64)  # 100 ids in a table of whole 64s
  std = lambda *path: float(np.std(functools.reduce(lambda p, k: p[k], path, params)))
  np.testing.assert_allclose(std('embed', 'tokens'), 0.02, rtol=0.05)
  np.testing.assert_allclose(std('blocks', 'mlp', 'up', 'kernel'), 0.02, rtol=0.05)
  for path in (('blocks', 'mlp', 'down', 'kernel'), ('blocks', 'attention', 'out', 'kernel')):
    np.testing.assert_allclose(std(*path), 0.02 / math.sqrt(6), rtol=0.05)  # 2 adds a layer
  first, second = params['blocks']['mlp']['up']['kernel'][:2]
  assert np.abs(first - second).max() > 0.01  # layers do not share their start


def test_axes_name_every_dimension(case):
  for scalar, params in ((False, case.params), (True, case.scalar)):
    names = transformer.axes(case.config, scalar)
    same = jax.tree.map(lambda p, n: len(n) == p.ndim, params, names)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(('change', 'word'), [
  ({'head_size': 0, 'heads': 7}, 'heads'),
  ({'kv_heads': 3}, 'kv_heads'),
  ({'head_size': 5}, 'even'),
  ({'norm': 'batch'}, 'norm'),
  ({'positions': 'alibi'}, 'positions'),
  ({'activation': 'relu'}, 'activation'),
  ({'compute': 'float16'}, 'compute'),
  ({'vocabulary': 0}, 'vocabulary'),
  ({'rotary': 0.1}, 'rotary'),
  ({'rope_scaling': (2.0, 1.0)}, 'rope_scaling'),
  ({'window': -1}, 'window'),
])
def test_impossible_shapes_are_refused(cases, change, word):
  with pytest.raises(configs.BadInput, match=word):
    configs.check_model(dataclasses.replace(cases['llama'].config, **change))


def test_gradients_of_tables_and_biases_add_up_in_float32():
  """A sum in bfloat16 stands still at 256 equal parts: 8192 rows of a few common ids are many."""
  config = configs.Model(layers=1, width=32, heads=2, vocabulary=64, context=128,
                         positions='learned', tied=False, compute='bfloat16')
  params = transformer.init(config, jax.random.key(0))
  tokens = np.minimum(np.random.default_rng(0).geometric(0.2, (64, 128)), 63)
  want = jax.random.normal(jax.random.key(1), (1, 128, config.width))  # alike in all rows

  def gradient(config):
    loss = lambda params: jnp.sum(transformer.hidden(
      config, params, tokens, np.ones_like(tokens, bool)).astype(jnp.float32) * want)
    return jax.jit(jax.grad(loss))(params)

  found, exact = gradient(config), gradient(dataclasses.replace(config, compute='float32'))
  far = lambda path: np.linalg.norm(path(found) - path(exact)) / np.linalg.norm(path(exact))
  assert far(lambda g: g['embed']['tokens']) < 0.01
  assert far(lambda g: g['embed']['positions']) < 0.01
  for part in ('value', 'out'):
    assert far(lambda g, part=part: g['blocks']['attention'][part]['bias']) < 0.01
  for part in ('up', 'down'):
    assert far(lambda g, part=part: g['blocks']['mlp'][part]['bias']) < 0.01
