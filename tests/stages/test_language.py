"""Pretraining and SFT: the loss and its targets, dropout, validation, the checkpoint chosen."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.data.builders import Place
from rlhf_jax.model import transformer
from rlhf_jax.stages import language, stage


@pytest.fixture(scope='module')
def sft_config(tiny):
  return dataclasses.replace(tiny.LANGUAGE, data=(configs.Source(kind='demonstrations'),),
                             prompt_length=tiny.PROMPT, response_length=tiny.RESPONSE)


@pytest.fixture(scope='module')
def text(bench, tiny):
  return bench(tiny.LANGUAGE)


@pytest.fixture(scope='module')
def sft(bench, sft_config):
  return bench(sft_config)


def plain_loss(params, model, rows):
  """Mean of −log p over the targets, without chunks, counts or pieces."""
  states = transformer.hidden(model, params, rows['tokens'], rows['valid'])
  every = jax.nn.log_softmax((states @ params['embed']['tokens'].T)[:, :-1, :model.vocabulary])
  chosen = jnp.take_along_axis(every, rows['tokens'][:, 1:, None], axis=2)[..., 0]
  return -jnp.sum(jnp.where(rows['mask'][:, 1:], chosen, 0.0)) / jnp.sum(rows['mask'][:, 1:])


plain = jax.jit(jax.value_and_grad(plain_loss), static_argnums=1)


def gradient_of(bench, **options):
  state, metrics = bench.step(**options)
  adam = next(s for s in jax.tree.leaves(state.model.opt_state, is_leaf=lambda s: hasattr(s, 'mu'))
              if hasattr(s, 'mu'))
  return jax.tree.map(lambda m: m / (1 - bench.config.optimizer.b1), adam.mu), metrics


@pytest.mark.parametrize('name', ['text', 'sft'])
def test_loss_and_gradient_equal_the_plain_ones(name, request, tiny):
  bench = request.getfixturevalue(name)
  gradient, metrics = gradient_of(bench)
  loss, wanted = plain(bench.state.model.params, bench.stage.model, bench.batch)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
  assert tiny.far(gradient, wanted) < 1e-4
  assert float(metrics['target_tokens']) == bench.batch['mask'][:, 1:].sum()


def test_the_prompt_is_no_target(sft, sft_config, bench, tiny):
  """Targets are exactly the response and its eos. Among demonstrations alone no prompt position is
  computed, whatever the mask; beside text the mask decides, and with the prompt the gradient
  differs.
  """
  batch = sft.batch
  assert not batch['mask'][:, :tiny.PROMPT].any()
  assert (batch['tokens'][batch['mask']] == tiny.Tokenizer.eos).sum() == sft.config.batch
  masked = batch | {'mask': batch['valid']}
  gradient, metrics = gradient_of(sft)
  same, told = gradient_of(sft, batch=masked)
  assert tiny.far(same, gradient) == 0
  assert told == metrics
  beside = bench(dataclasses.replace(sft_config, pretraining_share=0.25))
  gradient_beside, told = gradient_of(beside)
  assert tiny.far(gradient_beside, gradient) < 1e-4
  np.testing.assert_allclose(told['loss'], metrics['loss'], rtol=1e-5)
  unmasked, others = gradient_of(beside, batch=masked)
  assert float(others['target_tokens']) > float(metrics['target_tokens'])
  assert tiny.far(unmasked, gradient) > 0.1


def test_other_prompt_targets_change_nothing(sft, tiny):
  """What a prompt position should predict is not looked at: only what the response sees counts.

  The first prompt token is hidden from all others (as if it were padding); then its value is no
  input, and as a target it is masked.
  """
  first = np.argmax(sft.batch['valid'], axis=1)
  rows = np.arange(len(first))
  valid = sft.batch['valid'].copy()
  valid[rows, first] = False
  other = sft.batch['tokens'].copy()
  other[rows, first] = (other[rows, first] + 11) % tiny.VOCABULARY
  (a, before), (b, after) = (gradient_of(sft, batch=sft.batch | {'tokens': t, 'valid': valid})
                             for t in (sft.batch['tokens'], other))
  assert float(before['loss']) == float(after['loss'])
  assert tiny.far(b, a) < 1e-6


def test_a_row_of_padding_weighs_nothing(text):
  """The mean is over target tokens, not over rows."""
  full = np.arange(8)[:, None] < 5
  batch = {k: np.where(full, v, 0).astype(v.dtype) for k, v in text.batch.items()}
  batch['valid'][5:, 0] = True
  _, metrics = text.step(batch=batch)
  few = {k: v[:5] for k, v in text.batch.items()}
  loss, _ = plain(text.state.model.params, text.stage.model, few)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)


def test_microbatches_give_the_whole(text, bench, tiny):
  pieces = bench(dataclasses.replace(tiny.LANGUAGE, microbatch=2))
  (whole, told), (state, metrics) = text.step(), pieces.step()
  assert tiny.far(state.model.params, whole.model.params) <= 1e-5
  np.testing.assert_allclose(metrics['loss'], told['loss'], rtol=1e-5)
  np.testing.assert_allclose(metrics['gradient_norm'], told['gradient_norm'], rtol=1e-4)


def test_training_learns_its_batch(text):
  _, told = text.run(20, learning_rate=0.03)
  assert told[-1]['loss'] < told[0]['loss'] - 1
  np.testing.assert_allclose(told[5]['learning_rate'], 0.03 * 0.55, rtol=1e-5)


def test_dropout_is_for_training_only(text, bench, tiny):
  """A different key drops differently; without dropout the key is not looked at."""
  model = dataclasses.replace(tiny.LANGUAGE.model, dropout=0.2)
  dropped = bench(dataclasses.replace(tiny.LANGUAGE, model=model, microbatch=4))
  assert dropped.stage.model.dropout == 0.2
  first, same, other = (float(dropped.step(key=jax.random.key(i))[1]['loss']) for i in (1, 1, 2))
  assert first == same != other
  first, other = (float(text.step(key=jax.random.key(i))[1]['loss']) for i in (1, 2))
  assert first == other


def test_settings_that_are_inherited_and_those_that_are_not(bench, tiny):
  model = configs.Model(layers=9, width=9, dropout=0.2, compute='bfloat16', remat=True, scan=False,
                        logits_chunk=4, fused=False)
  made = bench(dataclasses.replace(tiny.LANGUAGE, model=model)).stage.model
  assert made == dataclasses.replace(tiny.MODEL, dropout=0.2, compute='bfloat16', remat=True,
                                     scan=False, logits_chunk=4, fused=False)


def test_a_run_without_a_parent_starts_at_random(tiny):
  config = dataclasses.replace(tiny.LANGUAGE, init_from='', model=tiny.MODEL, ema=0.9)
  made = language.make(config, {}, None)
  first, other = (jax.jit(made.init)(jax.random.key(i), {}) for i in (0, 1))
  assert tiny.far(first.model.params, other.model.params) > 0.1
  assert tiny.far(first.model.ema, first.model.params) == 0
  assert set(made.export(first)) == {'params', 'ema'}
  assert first.best is None


@pytest.mark.parametrize(('select', 'values', 'best'), [
  ('validation_loss', (3.0, 2.0, 2.5), 1),
  ('reward', (0.1, 0.3, 0.9), 2),
])
def test_the_chosen_checkpoint_is_the_one_exported(parents, tiny, select, values, best):
  config = dataclasses.replace(tiny.LANGUAGE, select=select)
  made = language.make(config, {'init_from': parents['init_from']}, None)
  state = made.init(jax.random.key(0), {'init_from': {'bias': jnp.float32(-1)}})
  for t, value in enumerate(values):
    state = state.replace(model=state.model.replace(params={'bias': jnp.float32(t)}))
    state = made.keep(state, {select: value})
  assert float(made.export(state)['params']['bias']) == 2  # training goes on from the last
  state, told = made.finish(state, None)
  assert float(made.export(state)['params']['bias']) == best
  np.testing.assert_allclose(told[f'best_{select}'], values[best], rtol=1e-6)


def test_only_a_reward_model_is_kept_beside_the_state(text):
  """The parent's parameters are not held a second time."""
  assert text.stage.freeze({'init_from': 1, 'reward': 2}) == {'reward': 2}
  assert text.frozen == {}


def test_without_a_choice_the_last_is_exported(text):
  state, told = text.stage.finish(text.stage.keep(text.state, {}), None)
  assert state is text.state
  assert told == {}


class Rows(list):
  """Rows as a builder gives them."""


def test_validation_is_the_loss_of_the_heldout_rows(parents, tiny, sft_config, monkeypatch):
  """Over all of them, without dropout, by token; pretraining text apart from demonstrations."""
  split = lambda rows: Rows({k: v[i] for k, v in rows.items()} for i in range(len(rows['mask'])))
  length = tiny.PROMPT + tiny.RESPONSE
  heldout = {'demonstrations': tiny.response_rows(11, 3), 'text': tiny.text_rows(5, length, 4)}

  def build(sources, **options):
    assert options['limits'].length == length
    assert options['limits'].prompt_length == tiny.PROMPT
    rows = heldout[sources[0].kind]
    return types.SimpleNamespace(train=split(rows), heldout=split(rows), card={})

  monkeypatch.setattr(language.builders, 'build', build)
  monkeypatch.setattr(language.data_batches, 'mixed',
                      lambda first, second, batch, share, seed: types.SimpleNamespace(epoch=7))
  config = dataclasses.replace(sft_config, steps=0, epochs=2, pretraining_share=0.1,
                               pretraining=(configs.Source(),),
                               model=configs.Model(scan=True, dropout=0.5))
  made = language.make(config, {'init_from': parents['init_from']}, 'a place')
  assert made.steps == 14  # two epochs of seven batches
  params = parents['init_from'].params
  state = stage.State(step=0, learning_rate=0, model=stage.Trained(params=params, opt_state=()))
  metrics, rows = made.evaluate(state, {}, 14)
  assert rows == []
  for name, kind in (('validation', 'demonstrations'), ('pretraining', 'text')):
    loss, _ = plain(params, tiny.MODEL, heldout[kind])
    np.testing.assert_allclose(metrics[f'{name}_loss'], loss, rtol=1e-5)


@pytest.mark.parametrize(('change', 'word'), [
  ({'length': 17}, 'rows of 17 tokens'),
  ({'microbatch': 3}, 'microbatch 3'),
])
def test_bad_sizes_are_refused(bench, tiny, change, word):
  with pytest.raises(configs.BadInput, match=word):
    bench(dataclasses.replace(tiny.LANGUAGE, **change)).step()


def test_an_average_is_not_of_the_chosen_checkpoint(tiny):
  with pytest.raises(configs.BadInput, match='select and ema'):
    language.make(dataclasses.replace(tiny.LANGUAGE, select='reward', ema=0.9), {}, None)


@pytest.mark.parametrize(('change', 'said'), [
  ({'json': '{"model": "another"}'}, 'different tokenizers'),
  ({'context': 8}, 'its model.context is 8')])
def test_a_reward_model_that_cannot_read_samples_chooses_nothing(parents, tiny, change, said):
  other = dataclasses.replace(
    parents['reward'], tokenizer=types.SimpleNamespace(json=change.get('json', '{}')),
    model=dataclasses.replace(parents['reward'].model, context=change.get('context', 99)))
  config = dataclasses.replace(tiny.LANGUAGE, init_from='sft', select='reward')
  with pytest.raises(configs.BadInput, match=said):
    language.make(config, {'init_from': parents['init_from'], 'reward': other}, None)


def test_samples_that_choose_fit_the_model_whose_rows_are_shorter(parents, tiny):
  """Learned positions beyond the table would be clamped, without a word."""
  tokenizer = types.SimpleNamespace(json='{}')
  other, base = (dataclasses.replace(parents[role], tokenizer=tokenizer) for role in
                 ('reward', 'init_from'))
  other = dataclasses.replace(other, model=dataclasses.replace(other.model, context=999))
  config = dataclasses.replace(tiny.LANGUAGE, init_from='sft', select='reward', prompt_length=90,
                               response_length=9)
  assert config.length <= base.model.context < 99
  with pytest.raises(configs.BadInput, match='rows of 99 tokens do not fit the model'):
    language.make(config, {'init_from': base, 'reward': other}, None)


def test_a_model_without_rows_for_its_tokenizer_is_refused(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "the cat runs, the cat sleeps"}\n' * 9)
  config = configs.Language(data=(configs.Source(files=('a.jsonl',)),),
                            model=configs.Model(layers=1, width=8, heads=1, vocabulary=250))
  with pytest.raises(configs.BadInput, match=r'^model\.vocabulary: expected at least 2\d\d'):
    language.make(config, {}, Place(tmp_path / 'w', tmp_path))


def test_selecting_by_reward_wants_a_tokenizer_that_is_there(tiny):
  """With a model of its own the first evaluation would fail, hours in."""
  config = dataclasses.replace(
    tiny.LANGUAGE, init_from='', select='reward', reward='reward',
    model=configs.Model(layers=1, width=8, heads=1, vocabulary=64),
    prompts=(configs.Source('prompts', ('a.jsonl',)),))
  with pytest.raises(configs.BadInput, match='needs init_from'):
    language._check(config, 'a place')
