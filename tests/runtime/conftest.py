"""A stage of ten lines for tests of the host side: linear regression whose every step also draws
noise.
"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running

from rlhf_jax import configs
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime import inputs, loop
from rlhf_jax.stages.stage import Stage

WIDTH, ROWS = 8, 6


@pytest.fixture(autouse=True)
def nobody_is_left():
  """A test that fails leaves no process at work."""
  yield
  while running.started:
    running.end(running.started.pop())


@pytest.fixture(scope='session')
def tokenizer() -> Tokenizer:
  return Tokenizer.train(['one two three'], 300)


class Faults:
  """What goes wrong, set by a test."""

  def __init__(self):
    self.batch: dict[int, Exception] = {}  # step -> raised when its batch is asked for
    self.nan_at = -1  # batch that holds a NaN
    self.after: dict[int, object] = {}  # step -> called when its evaluation begins


@pytest.fixture
def faults(monkeypatch, tokenizer) -> Faults:
  """Makes every Language run this file's regression; returns the switches for what goes wrong."""
  return _install(monkeypatch, tokenizer)


@pytest.fixture(scope='module')
def module_faults(tokenizer):
  """As `faults`, for fixtures of a wider scope."""
  with pytest.MonkeyPatch.context() as patch:
    yield _install(patch, tokenizer)


@pytest.fixture(scope='session', autouse=True)
def shared_executables(tmp_path_factory):
  """One compilation cache for all workdirs of the tests, whose regressions are the same."""
  with pytest.MonkeyPatch.context() as patch:
    folder = str(tmp_path_factory.mktemp('executables'))
    patch.setenv('JAX_COMPILATION_CACHE_DIR', folder)
    jax.config.update('jax_compilation_cache_dir', folder)
    yield


def _install(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> Faults:
  wrong = Faults()
  module = types.ModuleType('regression_stage')
  module.make = lambda config, parents, place, judge_rows=None: _stage(config, tokenizer, wrong)
  monkeypatch.setitem(sys.modules, module.__name__, module)
  monkeypatch.setitem(loop.STAGES, configs.Language, module.__name__)
  monkeypatch.setattr(loop, 'stopping', loop.Stopping())
  monkeypatch.setitem(inputs.NEEDED, configs.Language, ())  # a regression reads no data
  return wrong


def _stage(config: configs.Language, tokenizer: Tokenizer, wrong: Faults) -> Stage:
  optimizer = optax.adam(config.optimizer.learning_rate)

  def init(key, parents):
    w = parents['init_from']['w'] if parents else jax.random.normal(key, (WIDTH, WIDTH))
    return {'params': {'w': w}, 'opt': optimizer.init({'w': w}), 'best': {'w': w, 'loss': jnp.inf}}

  def update(state, frozen, batch, key):
    def loss(params):
      noise = jax.random.normal(key, (ROWS, WIDTH))
      error = batch['x'] @ params['w'] - batch['y'] + 0.1 * noise
      return jnp.mean(error ** 2) + 0.01 * sum(
        jnp.sum((params['w'] - p['w']) ** 2) for p in frozen.values())

    value, grads = jax.value_and_grad(loss)(state['params'])
    updates, opt = optimizer.update(grads, state['opt'])
    params = optax.apply_updates(state['params'], updates)
    return state | {'params': params, 'opt': opt}, {
      'loss': value, 'undefined': jnp.float32(jnp.nan), 'samples': batch['x'][:2, 0],
      'frozen': sum((jnp.sum(jnp.abs(p['w'])) for p in frozen.values()), jnp.float32(0))}

  def batches(t):
    if t in wrong.batch:
      raise wrong.batch[t]
    rng = np.random.default_rng((config.seed, t))
    x = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    y = np.full((ROWS, WIDTH), np.nan if t == wrong.nan_at else 1.0, np.float32)
    return {'x': x, 'y': y}

  def evaluate(state, frozen, step):
    if step in wrong.after:
      wrong.after[step]()
    total = float(jnp.sum(state['params']['w'] ** 2))
    return {'validation_loss': total}, [{'prompt': 'p', 'response': str(total)}]

  def keep(state, metrics):
    better = metrics['validation_loss'] < state['best']['loss']
    best = {'w': jnp.where(better, state['params']['w'], state['best']['w']),
            'loss': jnp.where(better, metrics['validation_loss'], state['best']['loss'])}
    return state | {'best': best}

  shape = jax.ShapeDtypeStruct((ROWS, WIDTH), np.float32)
  return Stage(
    model=configs.Model(vocabulary=tokenizer.vocabulary), tokenizer=tokenizer, kind='policy',
    steps=config.steps, init=init, freeze=lambda parents: dict(parents), update=update,
    batches=batches, batch_shapes={'x': shape, 'y': shape}, axes={'w': ('width', None)},
    export=lambda state: {'params': state['params'], 'ema': state['best']}, evaluate=evaluate,
    keep=keep, finish=lambda state, frozen: (state, {'final': float(state['best']['loss'])}),
    tokens=ROWS, evaluate_every=config.evaluate_every,
    describe=lambda samples: [{'x': float(x)} for x in samples])
