"""Schedules, Adam, the average of the weights, microbatches, the best checkpoint."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.stages import stage

apply = jax.jit(stage.apply, static_argnums=(0, 4))


def multipliers(steps, count, **options):
  config = configs.Optimizer(**options)
  run = jax.jit(jax.vmap(functools.partial(stage.schedule, config, steps=steps)))
  return np.asarray(run(jnp.arange(count)))


def test_cosine_goes_down_to_ten_percent():
  found = multipliers(100, 121)
  wanted = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(t / 100, 1))) for t in range(121)]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  assert found[0] == 1
  np.testing.assert_allclose(found[[50, 100, 120]], [0.55, 0.1, 0.1], rtol=1e-5)


def test_cosine_begins_after_warm_up():
  found = multipliers(110, 111, warmup=10)
  np.testing.assert_allclose(found[:10], np.arange(10) / 10, atol=1e-6)
  np.testing.assert_allclose(found[10:], multipliers(100, 101), rtol=1e-5)


def test_ppo_warms_up_from_a_tenth_and_stays():
  config = configs.PPO().policy_optimizer
  found = multipliers(500, 500, **dataclasses.asdict(config))
  np.testing.assert_allclose(found[:11], 0.1 + 0.09 * np.arange(11), rtol=1e-5)
  np.testing.assert_array_equal(found[10:], 1)


def numpy_adam(params, gradients, config, rates):
  """Clipping, Adam, decoupled decay on the kernel alone."""
  params = {k: np.float64(v) for k, v in params.items()}
  mean, square = ({k: 0.0 for k in params} for _ in range(2))
  for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
    norm = math.sqrt(sum(float(np.sum(np.float64(g)**2)) for g in gradient.values()))
    scale = min(1, config.clip / norm) if config.clip else 1
    for k in params:
      g = np.float64(gradient[k]) * scale
      mean[k] = config.b1 * mean[k] + (1 - config.b1) * g
      square[k] = config.b2 * square[k] + (1 - config.b2) * g * g
      step = mean[k] / (1 - config.b1**t) / (np.sqrt(square[k] /
                                                     (1 - config.b2**t)) + config.epsilon)
      decay = config.weight_decay if k == 'kernel' else 0.0
      params[k] = params[k] - rate * (step + decay * params[k])
  return params


@pytest.mark.parametrize('options', [{}, {'clip': 0.0}, {'weight_decay': 0.1}])
def test_adam_equals_numpy(options):
  config = configs.Optimizer(**{'epsilon': 1e-5, 'clip': 0.5} | options)
  random = np.random.default_rng(0)
  draw = lambda size: {'kernel': random.normal(0, size, (3, 2)).astype(np.float32),
                       'bias': random.normal(0, size, 2).astype(np.float32)}
  params = draw(1.0)
  gradients, rates = [draw(2.0), draw(0.01), draw(1.0)], [0.1, 0.3, 0.2]
  trained = stage.start(config, params)
  for gradient, rate in zip(gradients, rates, strict=True):
    trained = apply(config, trained, gradient, rate, 0.0)
  for name, wanted in numpy_adam(params, gradients, config, rates).items():
    np.testing.assert_allclose(trained.params[name], wanted, rtol=1e-5, atol=1e-6)
  assert trained.ema is None


def test_average_of_the_weights():
  config, params = configs.Optimizer(clip=0.0), {'bias': np.array([1.0, -2.0], np.float32)}
  trained, wanted = stage.start(config, params, 0.992), params['bias']
  for t in range(5):
    trained = apply(config, trained, {'bias': np.array([1.0, 3.0 - t], np.float32)}, 0.1, 0.992)
    wanted = 0.992 * wanted + 0.008 * np.asarray(trained.params['bias'])
  np.testing.assert_allclose(trained.ema['bias'], wanted, rtol=1e-6)


@pytest.mark.parametrize('pieces', [1, 2, 6])
def test_accumulation_is_the_gradient_of_the_sum(pieces):
  random = np.random.default_rng(0)
  params, rows = random.normal(size=4), {'x': random.normal(size=(12, 4)), 'row': np.arange(12)}

  def loss(params, rows):
    each = jnp.tanh(rows['x'] @ params) * rows['row']
    return jnp.sum(each) / 12, {'loss': jnp.sum(each) / 12, 'rows': jnp.sum(rows['row'])}

  run = jax.jit(functools.partial(stage.accumulate, loss, pieces=pieces))
  gradient, metrics = run(params, rows)
  y = np.tanh(rows['x'] @ params)
  np.testing.assert_allclose(gradient, ((1 - y**2) * rows['row']) @ rows['x'] / 12, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], y @ rows['row'] / 12, rtol=1e-5)
  assert int(metrics['rows']) == 66  # every row once


@pytest.mark.parametrize('pieces', [1, 3])
def test_blocks_are_cast_once_and_the_gradient_is_the_same(pieces):
  random = np.random.default_rng(1)
  draw = lambda *shape: random.normal(size=shape).astype(np.float32)
  params = {'embed': {'tokens': draw(5, 4)},
            'blocks': {'kernel': draw(2, 4, 4), 'bias': draw(2, 4)}}  # two layers
  rows = {'token': np.arange(12) % 5}

  def loss(params, rows):
    table = params['embed']['tokens'].astype('bfloat16')
    x = table[rows['token']]
    for kernel, bias in zip(params['blocks']['kernel'], params['blocks']['bias'], strict=True):
      x = jnp.tanh(x @ kernel.astype('bfloat16') + bias.astype('bfloat16'))
    total = jnp.sum((x @ table.T).astype('float32'))
    return total, {'loss': total}

  run = functools.partial(stage.accumulate, loss, pieces=pieces)
  wanted, found = jax.jit(run)(params, rows), jax.jit(functools.partial(run, dtype='bfloat16'))
  for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found(params, rows)), strict=True):
    assert a.dtype == b.dtype == jnp.float32
    np.testing.assert_array_equal(a, b)
  if pieces > 1:
    loop, = (e for e in found.trace(params, rows).jaxpr.jaxpr.eqns if e.primitive.name == 'scan')
    kernel = loop.params['jaxpr'].jaxpr
    given = [var.aval for var in kernel.invars if var.aval.shape == (2, 4, 4)]
    assert sorted(str(x.dtype) for x in given) == ['bfloat16', 'float32']  # it, and the sum


def test_microbatches_must_divide():
  assert stage.pieces_of(12, 0) == 1 and stage.pieces_of(12, 4) == 3
  with pytest.raises(configs.BadInput, match='batch: microbatch 5 does not divide 12'):
    configs.check_run(configs.Reward(batch=12, microbatch=5))


@pytest.mark.parametrize(('larger', 'values', 'best'), [
  (False, (3.0, 2.0, 2.5, 2.0), 1),  # the first of equals
  (True, (0.1, 0.4, 0.4, -1.0), 1),
  (True, (-5.0, -7.0, math.nan, -6.0), 0),  # NaN is never better
])
def test_the_best_parameters_are_kept(larger, values, best):
  state = stage.State(step=jnp.int32(0), learning_rate=jnp.float32(1),
                      model=stage.Trained(params={'bias': jnp.float32(-1)}, opt_state=()),
                      best={'params': {'bias': jnp.float32(-1)},
                            'value': jnp.float32(-np.inf if larger else np.inf)})
  for t, value in enumerate(values):
    state = state.replace(model=state.model.replace(params={'bias': jnp.float32(t)}))
    state = stage.keep_best(state, value, larger)
  assert float(state.best['params']['bias']) == best
  assert float(state.best['value']) == np.float32(values[best])
