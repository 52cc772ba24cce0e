"""What compiles, what is baked in, what is donated: one executable serves a whole sweep."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@contextlib.contextmanager
def compilations():
  """A list that grows by one name for every program handed to XLA."""
  found = []
  listen = lambda event, seconds, **_: found.append(event) if 'backend_compile' in event else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(params=['language', 'reward', 'ppo'])
def any_bench(request, bench, tiny):
  return bench({'language': tiny.LANGUAGE, 'reward': tiny.REWARD, 'ppo': tiny.PPO}[request.param])


def test_the_second_update_compiles_nothing(any_bench):
  state, _ = any_bench.step()
  jax.random.fold_in(any_bench.key, 1)
  with compilations() as compiled:
    state, _ = any_bench.step(state, key=jax.random.fold_in(any_bench.key, 2))
    any_bench.step(state, key=jax.random.fold_in(any_bench.key, 3))
  assert compiled == []
  assert any_bench.update._cache_size() == 1


def test_the_counter_counts():
  with compilations() as compiled:
    jax.jit(lambda x: x * 3.25 + 1)(np.ones(3))
  assert len(compiled) == 1


def test_coefficients_and_learning_rates_are_data(bench, tiny):
  ppo, language = bench(tiny.PPO), bench(tiny.LANGUAGE)
  before, _ = ppo.step()
  language.step()
  with compilations() as compiled:
    for name, value in (('kl_coef', 0.5), ('ptx_coef', 9.0), ('ptx_coef', 0.0),
                        ('policy_learning_rate', 0.1), ('value_learning_rate', 0.1)):
      changed, metrics = ppo.step(**{name: value})
      if name.endswith('coef'):
        assert float(metrics[name]) == np.float32(value)
    language.step(learning_rate=0.5)
  assert compiled == []
  assert ppo.update._cache_size() == language.update._cache_size() == 1
  assert tiny.far(changed.value.params, before.value.params) > 1e-3


def largest_constant(text):
  """Characters of the longest literal in a lowered program."""
  return max(len(found) for found in re.findall(r'dense<([^>]*)>', text))


def test_reference_and_reward_are_arguments(bench, tiny):
  made = bench(tiny.PPO)
  text = made.update.lower(made.state, made.frozen, made.batch, made.key).as_text()
  assert largest_constant(text) < 500
  table = np.asarray(made.frozen['reference']['embed']['tokens'])
  baked = jax.jit(lambda x: x @ table).lower(np.ones((1, 64), np.float32)).as_text()
  assert largest_constant(baked) > 5000  # this is what it would look like


def test_state_is_donated_and_nothing_else(any_bench, tiny):
  """As the loop does it: jitted init and freeze from the same parents, then donated updates."""
  given = jax.tree.map(jnp.asarray, any_bench.params)
  state = jax.jit(any_bench.stage.init)(jax.random.key(0), given)
  frozen = jax.jit(any_bench.stage.freeze)(given)
  update = jax.jit(any_bench.stage.update, donate_argnums=0)
  held = jax.tree.leaves(state)
  first, _ = update(state, frozen, any_bench.batch, any_bench.key)
  second, _ = update(first, frozen, any_bench.batch, jax.random.key(9))
  gone = [x.is_deleted() for x in held if x.size > 1]
  assert all(gone)
  assert not any(x.is_deleted() for x in jax.tree.leaves((frozen, given)))
  undonated, _ = any_bench.step(any_bench.state)
  undonated, _ = any_bench.step(undonated, key=jax.random.key(9))
  for a, b in zip(jax.tree.leaves(second), jax.tree.leaves(undonated), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_compute(bench, tiny):
  """float32 masters and losses; old log-probs are a fresh pass's, and the gap is a metric."""
  made = bench(tiny.PPO, dataclasses.replace(tiny.MODEL, compute='bfloat16'))
  assert made.frozen['reference']['embed']['tokens'].dtype == jnp.bfloat16
  state, metrics = made.step()
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.policy.params))
  assert all(v.dtype == jnp.float32 for k, v in metrics.items() if k != 'samples')
  assert 0 <= float(metrics['logprob_gap']) < 0.1
  assert abs(float(metrics['ratio_first']) - 1) < 1e-2
  assert abs(float(metrics['kl'])) < 1e-2  # policy and reference round alike
  whole, _ = bench(tiny.PPO).step()
  went = tiny.moved(state.value.params, made.state.value.params)
  should = tiny.moved(whole.value.params, made.state.value.params)
  assert went @ should > 0.5 * np.linalg.norm(went) * np.linalg.norm(should)
