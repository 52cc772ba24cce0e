"""One PPO update against the paper's algorithm written out in numpy, and its rules one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.model import experience, transformer
from rlhf_jax.stages import ppo, stage, validation


@pytest.fixture(scope='module')
def base(bench, tiny):
  return bench(tiny.PPO)


def shifted(params, seed):
  """Parameters that are no longer those of the parent."""
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda p: p + 0.05 * random.normal(size=p.shape).astype(np.float32), params)


@pytest.fixture(scope='module')
def drifted(base):
  """A state in warm-up whose policy is not the reference, nor its value model the reward model."""
  start, config = base.state, base.config
  return start.replace(
    step=jnp.int32(3),
    policy=stage.start(config.policy_optimizer, shifted(start.policy.params, 0), config.ema),
    value=stage.start(config.value_optimizer, shifted(start.value.params, 1)))


# -------------------------------------------------------------------- the oracle, slow and plain


def forward(model, params, rows):
  return transformer.hidden(model, params, rows['tokens'], rows['valid'])


def logprobs_of(model, params, rows, temperature):
  """log p of every token but the first, [B, T−1]."""
  logits = forward(model, params, rows) @ params['embed']['tokens'].T
  every = jax.nn.log_softmax(logits[:, :-1, :model.vocabulary] / temperature)
  return jnp.take_along_axis(every, rows['tokens'][:, 1:, None], axis=2)[..., 0]


def values_of(model, params, rows):
  """The value before each token but the first, [B, T−1]."""
  return (forward(model, params, rows) @ params['head']['kernel'] + params['head']['bias'])[:, :-1]


def policy_objective(params, model, rows, temperature, length, old, advantages, mask):
  ratio = jnp.exp(logprobs_of(model, params, rows, temperature)[:, -length:] - old)
  surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
  return -jnp.sum(surrogate * mask) / jnp.sum(mask)


def text_objective(params, model, rows):
  return -jnp.sum(logprobs_of(model, params, rows, 1.0) * rows['mask'][:, 1:]) / jnp.sum(
    rows['mask'][:, 1:])


def value_objective(params, model, rows, length, clip, old, returns, mask):
  values = values_of(model, params, rows)[:, -length:]
  near = old + jnp.clip(values - old, -clip, clip)
  worse = jnp.maximum((values - returns)**2, (near - returns)**2)
  return 0.5 * jnp.sum(worse * mask) / jnp.sum(mask)


class Adam:
  """Adam as Kingma and Ba write it, in float64, with an average of the weights."""

  def __init__(self, params, decay=0.0):
    self.params = jax.tree.map(np.float64, params)
    self.mean = jax.tree.map(np.zeros_like, self.params)
    self.square = jax.tree.map(np.zeros_like, self.params)
    self.average, self.decay, self.count = self.params, decay, 0

  def step(self, gradient, rate, config):
    self.count += 1
    b1, b2 = config.b1, config.b2
    self.mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, self.mean, gradient)
    self.square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, self.square, gradient)
    self.params = jax.tree.map(
      lambda p, m, v: p - rate * m / (1 - b1**self.count) /
      (np.sqrt(v / (1 - b2**self.count)) + config.epsilon), self.params, self.mean, self.square)
    self.average = jax.tree.map(lambda a, p: self.decay * a + (1 - self.decay) * p, self.average,
                                self.params)


def advantages_of(rewards, values, mask, discount, lam):
  found = np.zeros(rewards.shape)
  for b, count in enumerate(mask.sum(axis=1)):
    after = 0.0
    for t in reversed(range(count)):
      following = values[b, t + 1] if t + 1 < count else 0.0
      after = rewards[b, t] + discount * following - values[b, t] + discount * lam * after
      found[b, t] = after
  return found


def oracle(bench, state, samples, key):
  """What an update makes of these rollouts: (policy, value) as Adam, metrics."""
  config, length = bench.config, bench.config.response_length
  model, value_model = bench.stage.model, bench.parents['reward'].model
  rows = {k: np.asarray(samples[k]) for k in ('tokens', 'valid')}
  mask = rows['valid'][:, -length:]
  response = lambda params: np.float64(
    jax.jit(logprobs_of, static_argnums=0)(model, params, rows, config.temperature))[:, -length:]

  # Score, penalty, KL, rewards.
  last = [np.flatnonzero(row)[-1] for row in rows['valid']]
  reward = bench.parents['reward'].params
  states = np.float64(jax.jit(forward, static_argnums=0)(value_model, reward, rows))
  score = np.array([states[b, t] @ reward['head']['kernel'] for b, t in enumerate(last)])
  score += float(reward['head']['bias'])
  ended = np.array([rows['tokens'][b, t] == 2 for b, t in enumerate(last)])
  old = response(state.policy.params)
  kl = old - response(bench.parents['policy'].params)
  rewards = -float(state.kl_coef) * kl
  for b, count in enumerate(mask.sum(axis=1)):
    rewards[b, count - 1] += score[b] - (0 if ended[b] else config.no_eos_penalty)

  # Advantages, whitened over the update.
  values = np.float64(
    jax.jit(values_of, static_argnums=0)(value_model, state.value.params, rows))[:, -length:]
  advantages = advantages_of(rewards, values, mask, config.discount, config.gae_lambda)
  returns = advantages + values
  white = (advantages - advantages[mask].mean()) / advantages[mask].std()

  # Epochs of minibatches, every row once an epoch, all against the same old numbers.
  policy, value = Adam(state.policy.params, config.ema), Adam(state.value.params)
  gradients = [jax.jit(jax.grad(f), static_argnums=n) for f, n in (
    (policy_objective, (1, 3, 4)), (text_objective, 1), (value_objective, (1, 3, 4)))]
  narrow = lambda tree: jax.tree.map(np.float32, tree)
  warm = min(0.1 + 0.9 * int(state.step) / 10, 1.0)
  count = config.episodes // config.minibatch
  for epoch_key in jax.random.split(jax.random.split(key)[1], config.epochs):
    order = np.asarray(jax.random.permutation(epoch_key, config.episodes))
    for i in range(count):
      chosen = order[i * config.minibatch:(i + 1) * config.minibatch]
      some = {k: x[chosen] for k, x in rows.items()}
      text = {k: x[i::count] for k, x in bench.batch['pretraining'].items()}
      ppo = gradients[0](narrow(policy.params), model, some, config.temperature, length,
                         old[chosen], white[chosen], mask[chosen])
      ptx = gradients[1](narrow(policy.params), model, text)
      both = jax.tree.map(lambda a, b: np.float64(a) + float(state.ptx_coef) * np.float64(b), ppo,
                          ptx)
      back = gradients[2](narrow(value.params), value_model, some, length, config.value_clip,
                          values[chosen], returns[chosen], mask[chosen])
      policy.step(both, 0.01 * warm, config.policy_optimizer)
      value.step(jax.tree.map(np.float64, back), 0.02 * warm, config.value_optimizer)
  means = {
    'score': score.mean(), 'score_std': score.std(), 'eos_rate': ended.mean(),
    'kl': np.sum(kl * mask, axis=1).mean(), 'entropy': -old[mask].mean(),
    'kl_k3': np.sum((np.exp(-kl) - 1 + kl) * mask, axis=1).mean(),
    'response_length': mask.sum(axis=1).mean(), 'return': returns[mask].mean(),
    'explained_variance': 1 - np.mean((returns - values)[mask]**2) / returns[mask].var()
  }
  return policy, value, means


def test_an_update_is_the_papers_algorithm(base, drifted, tiny):
  state, metrics = base.step(drifted)
  policy, value, means = oracle(base, drifted, metrics['samples'], base.key)
  assert 0 < means['eos_rate'] < 1  # the penalty fell on some
  assert abs(means['kl']) > 0.1
  for name, wanted in means.items():
    np.testing.assert_allclose(metrics[name], wanted, rtol=1e-3, atol=1e-4, err_msg=name)
  for found, wanted, before in ((state.policy.params, policy.params, drifted.policy.params),
                                (state.policy.ema, policy.average, drifted.policy.params),
                                (state.value.params, value.params, drifted.value.params)):
    assert tiny.far(found, wanted) < 1e-5
    went, should = tiny.moved(found, before), tiny.moved(wanted, before)
    assert np.linalg.norm(went - should) < 1e-4 * np.linalg.norm(should)


# --------------------------------------------------------------------------------------- the rules


def gradient_of(trained, config):
  """The gradient of the first optimizer step, read back out of Adam's first moment."""
  adam = next(s for s in jax.tree.leaves(trained.opt_state, is_leaf=lambda s: hasattr(s, 'mu'))
              if hasattr(s, 'mu'))
  assert int(adam.count) == 1
  return jax.tree.map(lambda m: m / (1 - config.b1), adam.mu)


@pytest.fixture(scope='module')
def single(bench, tiny):
  """One epoch of one minibatch: a single optimizer step."""
  return bench(dataclasses.replace(tiny.PPO, epochs=1, minibatch=tiny.PPO.episodes))


def test_first_ratio_is_one(base):
  """Temperature 0.8, left padding, a cache: the sampler and a fresh pass still agree."""
  state, metrics = base.step()
  assert abs(float(metrics['ratio_first']) - 1) <= 1e-5
  assert 0 <= float(metrics['logprob_gap']) <= 1e-5
  assert abs(float(metrics['kl'])) <= 1e-5
  assert abs(float(base.step(state)[1]['ratio_first']) - 1) <= 1e-5


def test_the_first_update_is_the_same_for_every_kl_coef(base, drifted, tiny):
  start = base.state.policy.params
  none, huge = (tiny.moved(base.step(kl_coef=b)[0].policy.params, start) for b in (0, 1000))
  assert np.linalg.norm(none) > 0.1
  assert np.linalg.norm(none - huge) < 0.01 * np.linalg.norm(none)
  none, huge = (base.step(drifted, kl_coef=b)[0].policy.params for b in (0, 1000))
  assert np.linalg.norm(tiny.moved(none, huge)) > 0.1  # where policy ≠ reference, β does matter


def test_ptx_gradient_is_added_with_a_plus(single, tiny):
  """g(γ) = g(0) + γ·∇NLL before one optimizer step (Eq. 2, whose sign is a plus)."""
  config, model = single.config.policy_optimizer, single.stage.model
  text = jax.jit(jax.grad(text_objective), static_argnums=1)(single.state.policy.params, model,
                                                             single.batch['pretraining'])
  without, with_text = (gradient_of(single.step(ptx_coef=c)[0].policy, config) for c in (0.0, 27.8))
  wanted = jax.tree.map(lambda g, t: g + 27.8 * t, without, text)
  assert tiny.far(with_text, wanted) < 1e-4
  assert tiny.far(without, wanted) > 0.5


def test_ptx_lowers_the_loss_on_text(single, tiny):
  """Ten updates with a large γ learn the text; the first row of metrics is the loss before."""
  _, told = single.run(10, ptx_coef=100.0, policy_learning_rate=0.03)
  assert told[-1]['ptx_loss'] < told[0]['ptx_loss'] - 0.5
  rows, params = single.batch['pretraining'], single.state.policy.params
  loss = jax.jit(text_objective, static_argnums=1)(params, single.stage.model, rows)
  np.testing.assert_allclose(told[0]['ptx_loss'], loss, rtol=1e-4)


def test_without_coefficients_it_is_plain_ppo(base, drifted, bench, tiny):
  """γ = 0 and no text at all give the same parameters; without a ratio no text is asked for."""
  plain = bench(dataclasses.replace(tiny.PPO, ptx_ratio=0.0))
  assert set(plain.stage.batch_shapes) == {'prompts'}
  assert set(base.stage.batch_shapes) == {'prompts', 'pretraining'}
  assert base.stage.batch_shapes['pretraining']['tokens'].shape == (12, tiny.TEXT)
  zero, metrics = base.step(drifted, kl_coef=0.0, ptx_coef=0.0)
  absent, others = plain.step(drifted, kl_coef=0.0, ptx_coef=0.0)
  assert tiny.far(zero.policy.params, absent.policy.params) <= 1e-5
  assert tiny.far(zero.value.params, absent.value.params) <= 1e-5
  assert float(metrics['ptx_gradient_norm']) == 0
  assert np.isnan(metrics['ptx_loss'])  # not measured
  assert 'ptx_loss' not in others


def test_optimizer_steps(base, single):
  """epochs × minibatches of each model; ptx adds none."""
  counts = lambda trained: {
    int(s.count) for s in jax.tree.leaves(trained.opt_state, is_leaf=lambda s: hasattr(s, 'mu'))
    if hasattr(s, 'mu')
  }
  for bench, wanted in ((base, 4), (single, 1)):
    state, _ = bench.step()
    assert counts(state.policy) == counts(state.value) == {wanted}
    assert int(state.step) == 1


def test_old_logprobs_are_fixed_over_epochs(base, single):
  """After the first optimizer step the ratio leaves 1, and large steps are clipped."""
  _, metrics = base.step(policy_learning_rate=0.3)
  assert float(metrics['approximate_kl']) > 1e-3
  assert float(metrics['clip_fraction']) > 0.05
  assert abs(float(metrics['ratio_first']) - 1) <= 1e-5
  _, metrics = single.step(policy_learning_rate=0.3)  # one step: nothing to leave yet
  assert float(metrics['approximate_kl']) < 1e-9
  assert float(metrics['clip_fraction']) == 0


def test_average_of_the_weights_is_taken_at_every_optimizer_step(single, base, tiny):
  before = single.state.policy.params
  after = single.step()[0].policy
  wanted = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, before, after.params)
  assert tiny.far(after.ema, wanted) < 1e-6
  four = base.step()[0].policy  # four steps: not what one average at the end would be
  once = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, before, four.params)
  assert np.linalg.norm(tiny.moved(four.ema, once)) > 0.1 * np.linalg.norm(
    tiny.moved(four.ema, before))
  assert set(base.stage.export(single.state)) == {'params', 'ema'}


def test_models_start_where_the_paper_says(base, tiny):
  """Policy and reference: SFT. Value model: a copy of the reward model."""
  state, frozen, params = base.state, base.frozen, base.params
  for found in (state.policy.params, state.policy.ema, frozen['reference']):
    assert tiny.far(found, params['policy']) == 0
  for found in (state.value.params, frozen['reward']):
    assert tiny.far(found, params['reward']) == 0
  moved, _ = base.step()
  assert tiny.far(moved.value.params, params['reward']) > 0
  assert tiny.far(base.frozen['reward'], params['reward']) == 0


def test_learning_rates_warm_up_from_a_tenth(base):
  for step, share in ((0, 0.1), (5, 0.55), (10, 1.0), (39, 1.0)):
    _, metrics = base.step(base.state.replace(step=jnp.int32(step)))
    np.testing.assert_allclose(metrics['policy_learning_rate'], 0.01 * share, rtol=1e-5)
    np.testing.assert_allclose(metrics['value_learning_rate'], 0.02 * share, rtol=1e-5)


def test_a_new_key_gives_new_rollouts(base):
  first, same, other = (base.step(key=jax.random.key(i))[1]['samples']['tokens'] for i in (1, 1, 2))
  np.testing.assert_array_equal(first, same)
  assert (first != other).any()


@pytest.fixture(scope='module')
def pieces(bench, tiny):
  """The base run in microbatches of two, with the adaptive controller."""
  return bench(dataclasses.replace(tiny.PPO, microbatch=2, kl_target=1.0, kl_horizon=100))


def test_microbatches_give_the_whole(base, pieces, drifted, tiny):
  """Responses differ in length, so a mean of means would not do."""
  (whole, told), (state, metrics) = base.step(drifted), pieces.step(drifted)
  np.testing.assert_array_equal(metrics['samples']['tokens'], told['samples']['tokens'])
  for name in ('policy', 'value'):
    assert tiny.far(getattr(state, name).params, getattr(whole, name).params) <= 1e-5
  for name in set(told) - {'samples', 'logprob_gap'}:
    np.testing.assert_allclose(metrics[name], told[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_cpu_scores_a_minibatch_at_a_time(base, drifted, monkeypatch):
  """Elsewhere all rows at once; what they are worth is the same."""
  config, models, sizes = base.config, base.stage.update.args[1], []
  rollout = jax.jit(functools.partial(ppo.roll_out, config, models))(
    drifted.policy.params, base.batch['prompts'], base.key)

  def response_values(model, params, tokens, *rest):
    sizes.append(len(tokens))
    return values(model, params, tokens, *rest)

  values = experience.response_values
  monkeypatch.setattr(experience, 'response_values', response_values)
  score = lambda: jax.jit(lambda *given: ppo.scored(config, models, *given)[0])(
    drifted, base.frozen, rollout)
  pieces = score()
  monkeypatch.setattr(ppo, 'CACHED', ())
  whole = score()
  assert sizes == [config.minibatch, config.episodes]
  for name in ('score', 'kl', 'values', 'advantages', 'returns'):
    np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-4, atol=1e-5,
                               err_msg=name)


def test_the_controller_moves_beta_and_beta_is_state(pieces, drifted):
  """In nats a sequence: above the target β rises by at most 20 % · n/horizon, below it falls."""
  state, metrics = pieces.step(drifted)
  error = float(metrics['kl']) / 1.0 - 1
  assert 0 < abs(error) < 0.2  # not clipped; per token it would be
  np.testing.assert_allclose(state.kl_coef, 0.3 * (1 + error * 8 / 100), rtol=1e-5)
  np.testing.assert_allclose(metrics['kl_coef'], 0.3)  # the one that was used
  low, _ = pieces.step()  # KL 0
  np.testing.assert_allclose(low.kl_coef, 0.3 * (1 - 0.2 * 8 / 100), rtol=1e-5)
  again, metrics = pieces.step(low)
  np.testing.assert_allclose(metrics['kl_coef'], low.kl_coef)
  assert float(again.kl_coef) != float(low.kl_coef)


def test_a_fixed_beta_stays(base, drifted):
  assert float(base.step(drifted)[0].kl_coef) == np.float32(0.3)


@pytest.mark.parametrize(('change', 'word'), [
  ({'minibatch': 3}, 'minibatch 3'),
  ({'microbatch': 3}, 'microbatch 3'),
  ({'rollout_chunks': 3}, 'rollout_chunks 3'),
  ({'ptx_ratio': 0.1}, 'ptx_ratio'),
  ({'kl_target': 6.0, 'kl_horizon': 1}, 'kl_horizon 1 must be more than a fifth of episodes 8'),
  ({'kl_target': 6.0, 'kl_coef': 0.0}, 'kl_coef 0'),
  ({'response_length': 11}, 'rows of 17 tokens'),
  ({'text_length': 17}, 'rows of 17 tokens'),
])
def test_numbers_that_do_not_go_together_are_refused(bench, tiny, change, word):
  with pytest.raises(configs.BadInput, match=word):
    bench(dataclasses.replace(tiny.PPO, **change))


def test_the_reward_model_reads_whole_rows_too(parents, tiny):
  """Also where the value model is another's; text is the policy's alone."""
  short = dataclasses.replace(parents['reward'], model=dataclasses.replace(
    parents['reward'].model, context=10))
  with pytest.raises(configs.BadInput, match=r'rows of 11 tokens .*context is 10'):
    ppo.make(tiny.PPO, parents | {'reward': short, 'value': parents['reward']}, None)
  enough = dataclasses.replace(short, model=dataclasses.replace(short.model, context=11))
  longer = dataclasses.replace(tiny.PPO, text_length=16)
  made = ppo.make(longer, parents | {'reward': enough, 'value': enough}, None)
  assert made.steps == 40 and made.tokens == 8 * 11  # of which tokens/s are


def test_every_promised_metric_is_there_and_finite(base, drifted):
  _, metrics = base.step(drifted)
  wanted = {
    'score', 'kl', 'kl_k3', 'entropy', 'clip_fraction', 'approximate_kl', 'ratio_first',
    'value_loss', 'policy_loss', 'explained_variance', 'response_length', 'eos_rate',
    'policy_gradient_norm', 'value_gradient_norm', 'ptx_loss', 'ptx_gradient_norm', 'kl_coef',
    'ptx_coef', 'logprob_gap', 'policy_learning_rate', 'value_learning_rate'
  }
  assert wanted <= set(metrics)
  for name in set(metrics) - {'samples'}:
    assert metrics[name].dtype == jnp.float32, name
    assert metrics[name].shape == (), name
    assert np.isfinite(metrics[name]), name


def test_samples_are_described_in_text(base):
  class Named(type(base.stage.tokenizer)):
    def decode(self, ids):
      return ' '.join(map(str, ids))
    decode_prompt = decode

  samples = jax.device_get(base.step()[1]['samples'])
  rows = validation.describe(base.config, Named(), samples)
  assert len(rows) == base.config.episodes
  for b, row in enumerate(rows):
    tokens, valid = samples['tokens'][b], samples['valid'][b]
    assert row['prompt'] == ' '.join(map(str, tokens[:6][valid[:6]]))
    assert row['response'] == ' '.join(map(str, tokens[6:][valid[6:]]))
    np.testing.assert_allclose(row['score'], samples['score'][b])
