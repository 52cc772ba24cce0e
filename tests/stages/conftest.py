"""Tiny parents, hand-made batches, and a bench that compiles each configuration once."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.stages import language, ppo, reward, stage

VOCABULARY, PROMPT, RESPONSE, TEXT = 37, 6, 5, 9
MODEL = configs.Model(layers=2, width=24, heads=4, kv_heads=2, head_size=6, mlp=40,
                      vocabulary=VOCABULARY, context=16, init_std=0.2, scan=True)
# Adam divides by √v + ε. The usual ε turns rounding into whole steps where a gradient is almost 0.
ADAM = configs.Optimizer(learning_rate=0.01, warmup=10, warmup_from=0.1, schedule='constant',
                         epsilon=1e-4, clip=0.0)
PPO = configs.PPO(episodes=8, minibatch=4, epochs=2, updates=40, kl_coef=0.3, ptx_coef=2.0,
                  ptx_ratio=1.5, temperature=0.8, no_eos_penalty=0.7, ema=0.9, value_clip=0.05,
                  prompt_length=PROMPT, response_length=RESPONSE, text_length=TEXT,
                  policy_optimizer=ADAM,
                  value_optimizer=dataclasses.replace(ADAM, learning_rate=0.02))
LANGUAGE = configs.Language(init_from='gpt', model=configs.Model(scan=True), batch=8, length=TEXT,
                            steps=20, optimizer=dataclasses.replace(ADAM, schedule='cosine'))
REWARD = configs.Reward(batch=8, k_max=3, prompt_length=PROMPT, response_length=RESPONSE,
                        optimizer=dataclasses.replace(ADAM, warmup=0))
STAGES = {configs.Language: language, configs.Reward: reward, configs.PPO: ppo}


@pytest.fixture(scope='package', autouse=True)
def _quick(quick_compilation):
  return


class Tokenizer:
  """What a stage asks of a tokenizer when it builds no data."""
  pad, bos, eos, vocabulary = 0, 1, 2, VOCABULARY
  ends, start = (2,), [1]


# --------------------------------------------------------------------------------------- batches


def text_rows(count, length, seed):
  """Packed text whose last rows are not full."""
  random = np.random.default_rng(seed)
  tokens = random.integers(3, VOCABULARY, (count, length)).astype(np.int32)
  valid = np.arange(length) < random.integers(length // 2, length + 1, (count, 1))
  return {'tokens': np.where(valid, tokens, 0), 'valid': valid,
          'mask': valid & (np.arange(length) > 0)}


def prompt_rows(count, seed):
  """Left-padded prompts of 2 … PROMPT tokens."""
  random = np.random.default_rng(seed)
  valid = np.arange(PROMPT) >= PROMPT - random.integers(2, PROMPT + 1, (count, 1))
  tokens = random.integers(3, VOCABULARY, (count, PROMPT)).astype(np.int32)
  return {'tokens': np.where(valid, tokens, 0), 'valid': valid}


def response_rows(count, seed):
  """Prompts with responses that end in eos, targets on the response only."""
  random = np.random.default_rng(seed)
  prompts, lengths = prompt_rows(count, seed), random.integers(2, RESPONSE + 1, (count, 1))
  valid = np.arange(RESPONSE) < lengths
  tokens = random.integers(3, VOCABULARY, (count, RESPONSE)).astype(np.int32)
  tokens = np.where(np.arange(RESPONSE) == lengths - 1, Tokenizer.eos, np.where(valid, tokens, 0))
  join = lambda a, b: np.concatenate([a, b], axis=1)
  return {'tokens': join(prompts['tokens'], tokens.astype(np.int32)),
          'valid': join(prompts['valid'], valid),
          'mask': join(np.zeros_like(prompts['valid']), valid)}


def ranking_rows(count, k, seed):
  """Rankings of 2 … k completions with ties; the first prompt has nothing but ties."""
  random = np.random.default_rng(seed)
  rows = response_rows(count * k, seed)
  for name in ('tokens', 'valid'):  # one prompt before all of its completions
    rows[name][:, :PROMPT] = np.repeat(rows[name][::k, :PROMPT], k, axis=0)
  present = np.arange(k) < random.integers(2, k + 1, (count, 1))
  ranks = np.where(present, random.integers(1, k + 1, (count, k)), 0).astype(np.int32)
  ranks[0] = 1
  shaped = {name: rows[name].reshape(count, k, -1) for name in ('tokens', 'valid')}
  shaped = {name: np.where(present[..., None], x, 0).astype(x.dtype) for name, x in shaped.items()}
  shaped['valid'][~present, 0] = True  # an absent completion is a row like any other to the model
  return shaped | {'ranks': ranks, 'present': present}


def batch_of(config, seed=0):
  """A batch as the stage's data would give it."""
  if isinstance(config, configs.Reward):
    return ranking_rows(config.batch, config.k_max, seed)
  if isinstance(config, configs.Language):
    if config.data and config.data[0].kind == 'demonstrations':
      return response_rows(config.batch, seed)
    return text_rows(config.batch, config.length, seed)
  rows = round(config.episodes * config.ptx_ratio)
  text = {'pretraining': text_rows(rows, config.text_length, seed)} if rows else {}
  return {'prompts': prompt_rows(config.episodes, seed)} | text


# ----------------------------------------------------------------------------------------- bench


class Bench:
  """A stage with its start and its jitted update; nothing is donated, so states stay."""

  def __init__(self, config, parents):
    self.config, self.parents = config, parents
    self.stage = STAGES[type(config)].make(config, parents, None)
    self.params = {role: parent.params for role, parent in parents.items()}
    self.state = self.stage.init(jax.random.key(0), self.params)
    self.frozen = self.stage.freeze(self.params)
    self.batch = batch_of(config)
    self.update = jax.jit(functools.partial(_with_all_samples, self.stage.update))
    self.key = jax.random.key(1)

  def step(self, state=None, batch=None, key=None, **changes):
    """One update of `state` (or the start) with some of its fields replaced by float32 numbers."""
    state = self.state if state is None else state
    state = state.replace(**{k: jnp.float32(v) for k, v in changes.items()})
    return self.update(state, self.frozen, self.batch if batch is None else batch,
                       self.key if key is None else key)

  def run(self, updates, **changes):
    """Several updates from the start, on the same batch, with new keys; all metrics."""
    state = self.state.replace(**{k: jnp.float32(v) for k, v in changes.items()})
    told = []
    for t in range(updates):
      state, metrics = self.step(state, key=jax.random.fold_in(self.key, t))
      told.append({k: float(v) for k, v in metrics.items() if k != 'samples'})
    return state, told


@pytest.fixture(scope='session')
def make_parents(random_params):
  """(model) -> role -> Parent: a language model; a reward model with a trunk of its own."""
  @functools.cache
  def make(model):
    other = dataclasses.replace(model, width=16, mlp=32)
    language_model = stage.Parent(model, Tokenizer(), random_params(model, False, 1))
    scalar = stage.Parent(other, Tokenizer(), random_params(other, True, 2))
    return {'init_from': language_model, 'policy': language_model, 'reward': scalar}

  return make


@pytest.fixture(scope='session')
def parents(make_parents):
  """The parents of most benches."""
  return make_parents(MODEL)


@pytest.fixture(scope='session')
def bench(make_parents):
  """(config, model) -> Bench, one for each pair, with the parents that the config names."""
  @functools.cache
  def make(config, model=MODEL):
    roles = ('policy', 'reward') if isinstance(config, configs.PPO) else ('init_from',)
    if isinstance(config, configs.PPO) and ':' in config.reward:
      roles = ('policy',)
    return Bench(config, {role: make_parents(model)[role] for role in roles})

  return make


def _with_all_samples(update, *args):
  """Traces an update such that every rollout is in metrics['samples']."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ppo, 'SHOWN', 1000)
    return update(*args)


# ------------------------------------------------------------------------------------ comparison


def far(a, b):
  """The largest ‖a−b‖/‖b‖ over the tensors of two trees (0/0 is 0)."""
  ratios = jax.tree.map(
    lambda x, y: float(np.linalg.norm(np.float64(x) - np.float64(y)) /
                       max(np.linalg.norm(np.float64(y)), 1e-30)), a, b)
  return max(jax.tree.leaves(ratios))


def moved(new, old):
  """All changes of a tree as one vector."""
  return np.concatenate([np.ravel(np.float64(a) - np.float64(b)) for a, b in zip(
    jax.tree.leaves(new), jax.tree.leaves(old), strict=True)])


@pytest.fixture(scope='session')
def tiny():
  """The configurations and helpers of this file."""
  names = ('VOCABULARY', 'PROMPT', 'RESPONSE', 'TEXT', 'MODEL', 'ADAM', 'PPO', 'LANGUAGE', 'REWARD',
           'Tokenizer', 'text_rows', 'response_rows', 'batch_of', 'far', 'moved')
  return types.SimpleNamespace(**{name: globals()[name] for name in names})
