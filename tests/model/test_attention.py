"""Attention in one kernel: the rows it is given, what it is asked for, and when it is not taken.

XLA's own operations stand in for a device's kernel, which has the same interface.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.model import attention, experience, transformer
from rlhf_jax.runtime import meshes

LENGTH = 5
TAKES = {  # what the product asks of whole rows
  'every': lambda valid: transformer.every,
  'before the response': lambda valid: experience._before(LENGTH),
  'last': experience._last}


@pytest.fixture
def kernel(monkeypatch):
  """A kernel on this device, for every type and length; no window."""
  monkeypatch.setattr(attention, 'KERNELS', {jax.default_backend(): 'xla'})
  monkeypatch.setattr(transformer, 'has_kernel',
                      lambda config, time: config.fused and not config.window)


@pytest.fixture(params=['gpt', 'llama'])
def dense(request, cases):
  return cases[request.param]


def states_and_gradient(config, params, rows, take):
  """Final states where a token is valid, and a gradient through all of those."""
  picked = take(rows[1])
  real = picked(rows[1])

  def loss(params):
    states = transformer.hidden(config, params, *rows, take=picked)
    weights = jnp.where(real, jnp.linspace(-1, 1, real.size).reshape(real.shape), 0)
    return jnp.sum(weights[..., None] * states**2), states

  gradient, states = jax.jit(jax.grad(loss, has_aux=True))(params)
  return np.asarray(states, np.float32)[np.asarray(real)], gradient


def check_near(found, wanted, tolerance):
  np.testing.assert_allclose(found[0], wanted[0], rtol=tolerance, atol=tolerance)
  largest = max(float(jnp.linalg.norm(x)) for x in jax.tree.leaves(wanted[1]))
  for one, other in zip(*map(jax.tree.leaves, (found[1], wanted[1])), strict=True):
    # A key's bias moves no softmax: its gradient is rounding of what the others have.
    size = max(float(jnp.linalg.norm(other)), 1e-2 * largest)
    assert float(jnp.linalg.norm(one - other)) <= tolerance * size


@pytest.mark.parametrize('form', [{}, {'scan': True}, {'remat': True}, {'parallel': True}],
                         ids=['unrolled', 'scan', 'remat', 'parallel'])
@pytest.mark.parametrize('take', TAKES.values(), ids=TAKES)
def test_rows_padded_on_both_sides_give_the_same(dense, rows, take, form, kernel):
  config = dataclasses.replace(dense.config, **form)
  plain = dataclasses.replace(config, fused=False)
  check_near(states_and_gradient(config, dense.params, rows, take),
             states_and_gradient(plain, dense.params, rows, take), 1e-5)


def test_the_kernel_sees_rows_without_padding_on_their_left(dense, rows, kernel, monkeypatch):
  """A token that is no prompt's never comes before one: causality alone keeps it out."""
  asked = []

  def watched(query, key, value):
    asked.append(query.shape)
    return jnp.zeros_like(query)

  monkeypatch.setattr(transformer, 'causal', watched)
  transformer.hidden(dense.config, dense.params, *rows)
  assert len(asked) == dense.config.layers  # no layer goes another way
  batch, time = rows[0].shape
  assert set(asked) == {(batch, time, dense.config.heads, dense.config.head_size)}


def test_no_mask_is_made(dense, rows, kernel):
  batch, time = rows[0].shape

  def masked(fused):
    config = dataclasses.replace(dense.config, fused=fused)
    # A function of its own: jit keeps what it traced by function, the stand-in's kernel with it.
    traced = jax.jit(lambda params, *rows: transformer.hidden(config, params, *rows))
    return f'tensor<{batch}x{time}x{time}xi1>' in traced.lower(dense.params, *rows).as_text()

  assert masked(fused=False) and not masked(fused=True)


def test_causal_is_softmax_over_what_stands_before(kernel):
  random = np.random.default_rng(3)
  query, key, value = (random.normal(size=(2, 7, n, 8)).astype(np.float32) for n in (4, 2, 2))
  found = attention.causal(query, key, value)
  for b, t, n in np.ndindex(2, 7, 4):
    scores = key[b, :t + 1, n // 2] @ query[b, t, n] / np.sqrt(8)
    weights = np.exp(scores - scores.max())
    np.testing.assert_allclose(found[b, t, n], weights @ value[b, :t + 1, n // 2] / weights.sum(),
                               rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------- gradient


def by_rows(query, key, value, mask):
  """Attention of [B, T, N, H] on [B, G, S, H], in float64, one query at a time."""
  out = np.zeros(query.shape)
  for b, t, n in np.ndindex(query.shape[:3]):
    group = n // (query.shape[2] // key.shape[1])
    slots = np.flatnonzero(mask[b, t])
    scores = key[b, group, slots] @ query[b, t, n] / np.sqrt(query.shape[3])
    weights = np.exp(scores - scores.max(initial=-np.inf))
    out[b, t, n] = weights @ value[b, group, slots] / max(weights.sum(), 1e-300)
  return out


@pytest.mark.parametrize('heads', [4, 2], ids=['heads share keys', 'each its own'])
def test_the_gradient_is_that_of_differences(heads):
  random = np.random.default_rng(7)
  shapes = (2, 5, heads, 3), (2, 2, 6, 3), (2, 2, 6, 3)
  given = [random.normal(size=shape) for shape in shapes]
  weights, mask = random.normal(size=shapes[0]), random.random((2, 5, 6)) < 0.6
  mask[..., 0] = True
  loss = lambda *given: np.sum(weights * by_rows(*given, mask))
  asked = lambda *given: jnp.sum(weights * attention.attend(*given, mask, None))
  found = jax.grad(asked, (0, 1, 2))(*(jnp.asarray(x, jnp.float32) for x in given))
  for which, part in enumerate(found):
    for place in np.ndindex(part.shape):
      ends = []
      for step in (1e-5, -1e-5):
        moved = [x.copy() for x in given]
        moved[which][place] += step
        ends.append(loss(*moved))
      np.testing.assert_allclose(part[place], (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-5)


def test_a_query_that_may_look_nowhere_moves_no_key():
  """Padding on the left reads something, which nobody may see, and learns nothing."""
  random = np.random.default_rng(8)
  given = [jnp.asarray(random.normal(size=shape), jnp.float32)
           for shape in ((1, 3, 2, 4), (1, 2, 3, 4), (1, 2, 3, 4))]
  mask = np.tril(np.ones((1, 3, 3), bool)) & (np.arange(3) > 0)
  query, key, _ = jax.grad(lambda *given: jnp.sum(attention.attend(*given, mask, None)**2),
                           (0, 1, 2))(*given)
  assert not np.any(query[:, 0]) and not np.any(key[:, :, 0]) and np.any(query[:, 2])


# ------------------------------------------------------------------------------------ when


BIG = {'compute': 'bfloat16', 'head_size': 64}


@pytest.fixture
def trials(monkeypatch):
  """A kernel of this device that passes its trial; which ones were tried."""
  tried = []
  monkeypatch.setattr(attention, 'KERNELS', {jax.default_backend(): 'xla'})
  monkeypatch.setattr(attention, '_trial', lambda *given: not tried.append(given))
  return tried


def test_none_on_a_cpu(cases, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  assert not attention.has_kernel(dataclasses.replace(cases['gpt'].config, **BIG), 512)


def test_taken_for_long_rows_in_bfloat16(cases, trials):
  assert attention.has_kernel(dataclasses.replace(cases['gpt'].config, **BIG), attention.LONG)
  assert trials == [('xla', attention.LONG, 2, 0, 64)]


@pytest.mark.parametrize(('change', 'time'), [
  ({'fused': False}, 512), ({'compute': 'float32'}, 512), ({}, 127),
  ({'window': 64}, 512)], ids=str)
def test_left_where_it_does_not_fit(cases, trials, change, time):
  config = dataclasses.replace(cases['gpt'].config, **BIG | change)
  assert not attention.has_kernel(config, time) and not trials


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_trial_inside_a_traced_function(shape):
  """It runs while a program is traced, whose values and mesh it must not touch."""
  attention._trial.cache_clear()
  seen = []
  with jax.set_mesh(meshes.make_mesh(configs.Mesh(*shape))):
    jax.jit(lambda x: seen.append(attention._trial('xla', 128, 4, 2, 64)) or x)(1.0)
  assert seen == [True]


@pytest.mark.parametrize('fault', ['raises', 'wrong'])
def test_a_kernel_that_fails_its_trial_is_left_with_a_warning(monkeypatch, fault):
  right = attention.causal

  def broken(query, key, value, kernel=None):
    if kernel == 'xla':
      return right(query, key, value, kernel)
    if fault == 'raises':
      raise RuntimeError('no such library')
    return functools.partial(right, kernel='xla')(query, key, value[:, ::-1])

  monkeypatch.setattr(attention, 'causal', broken)
  attention._trial.cache_clear()
  with pytest.warns(UserWarning, match='attention without other, whose trial gave: '
                    + ('no such library' if fault == 'raises' else r'\d')):
    assert attention._trial('other', 128, 4, 2, 64) is False
  attention._trial.cache_clear()


@pytest.mark.skipif(jax.default_backend() not in attention.KERNELS, reason='no kernel for it')
def test_the_kernel_of_this_device(random_params):
  """As near to float32 as XLA's operations are in bfloat16, and the same bits again."""
  config = configs.Model(layers=2, width=128, heads=2, vocabulary=64, context=160, init_std=0.1,
                         compute='bfloat16')
  params, slots = random_params(config, False, 1), np.arange(160)
  starts, ends = np.array([[0], [5], [40], [100]]), np.array([[160], [150], [160], [130]])
  valid = (slots >= starts) & (slots < ends)
  rows = np.random.default_rng(0).integers(0, 64, valid.shape), valid
  made = lambda **change: states_and_gradient(
    dataclasses.replace(config, **change), params, rows, TAKES['every'])
  assert attention.has_kernel(config, 160)
  exact, plain, fused = made(compute='float32'), made(fused=False), made()
  far = lambda found, wanted: float(np.sqrt(sum(
    np.sum((np.float64(a) - np.float64(b))**2) for a, b in zip(
      *map(jax.tree.leaves, (found, wanted)), strict=True))))
  for part in (0, 1):  # states, gradient
    assert far(fused[part], exact[part]) <= 1.5 * far(plain[part], exact[part])
  again = made()
  assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (fused, again)),
                                                  strict=True))
