"""FLOPs of a program, against sums made by hand and XLA's count of builds without a loop."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from rlhf_jax import configs
from rlhf_jax.runtime import abstract, experiment, flops, layout

MODEL = configs.Model(layers=3, width=48, heads=4, mlp=80, vocabulary=128, context=24)
PPO = configs.PPO(policy='gpt', reward='reward', episodes=8, minibatch=4, ptx_ratio=2.0,
                  prompt_length=10, response_length=6, text_length=24)


def made(name, **changes):
  """An Abstract of a small file: 'gpt', 'reward' on it, 'ppo' on both."""
  model = dataclasses.replace(MODEL, **changes.pop('model', {}))
  runs = {
    'gpt': configs.Language(model=model, batch=4, length=24, steps=5),
    'reward': configs.Reward(init_from='gpt', data=(), batch=2, prompt_length=10,
                             response_length=6, **{'k_max': 3} | changes.pop('reward', {})),
    'ppo': PPO}
  runs[name] = dataclasses.replace(runs[name], **changes)
  return abstract.make(experiment.Experiment(pathlib.Path('x.py'), runs, {}), name)


@pytest.fixture(autouse=True)
def as_on_a_cpu(monkeypatch):
  """A GPU's decoding is unrolled, and its float32 log-probabilities are taken again."""
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')


def traced(stage):
  state, frozen = layout.shapes(stage)
  key = jax.eval_shape(lambda: jax.random.key(0))
  update = lambda *given: stage.stage.update(*given)  # a new one: jax keeps what it traced
  return jax.jit(update).trace(state, frozen, stage.stage.batch_shapes, key)


def counted(stage, trips=None):
  return flops.count(traced(stage).jaxpr.jaxpr, trips, 'scoring')


@functools.cache
def plain_ppo():
  return counted(made('ppo'), trips=5)


def forward(rows, queries, keys, wanted=None, model=MODEL):
  """One pass of the blocks: projections of every query, and its products with all keys.

  Where the states of `wanted` positions only are asked for, the last layer makes keys and values of
  all (two of the four projections), and all else of those.
  """
  wanted = queries if wanted is None else wanted
  keyed = 2 * model.width**2
  asked = 2 * model.width**2 + 2 * model.width * model.mlp + 2 * keys * model.width
  return 2 * rows * (queries * (model.layers - 1) * (keyed + asked) + queries * keyed +
                     wanted * asked)


def logits(positions, model=MODEL):
  return 2 * positions * model.width * model.vocabulary


def test_pretraining_by_hand():
  once = forward(4, 24, 24) + logits(4 * 23)
  found = counted(made('gpt'))
  assert found.total == pytest.approx(3 * once, rel=1e-6)  # backward: two products for each
  assert found.phases['training'] == 0  # nothing there carries a scope: `otherwise` has it
  assert found.recomputed == 0


def test_reward_by_hand():
  """Two prompts, read once each; of their last layer keys and values alone have a gradient."""
  rows = 2 * 3
  head = 2 * rows * MODEL.width
  keys, unused = forward(2, 10, 10, wanted=0), forward(2, 10, 10, wanted=1)
  wanted = 3 * (keys + forward(rows, 6, 16, wanted=1) + head) + unused - keys
  assert counted(made('reward')).total == pytest.approx(wanted, rel=1e-6)


def test_demonstrations_by_hand():
  """Nothing of the last layer, and no logits, where the prompt is; all of it beside text."""
  made_sft = functools.partial(made, 'gpt', data=(configs.Source(kind='demonstrations'),),
                               prompt_length=16, response_length=8)
  once = forward(4, 24, 24, wanted=8) + logits(4 * 8)
  assert counted(made_sft()).total == pytest.approx(3 * once, rel=1e-6)
  beside = made_sft(pretraining_share=0.25, pretraining=(configs.Source(),))
  once = forward(4, 24, 24) + logits(4 * 23)
  assert counted(beside).total == pytest.approx(3 * once, rel=1e-6)


def test_ppo_by_hand():
  found = plain_ppo()
  decode = 5 * (forward(8, 1, 16) + logits(8))
  prefill = forward(8, 10, 10, wanted=1) + logits(8)  # and the first token
  assert found.phases['rollout'] == pytest.approx(prefill + decode, rel=1e-6)
  assert found.decoding == pytest.approx(decode, rel=1e-6)
  passes = forward(8, 16, 16, wanted=6)
  values, score = 2 * 8 * 6 * MODEL.width, 2 * 8 * MODEL.width
  assert found.phases['scoring'] == pytest.approx(
    2 * passes + forward(8, 16, 16, wanted=1) + logits(8 * 6) + values + score, rel=1e-6)
  assert found.phases['training'] == pytest.approx(
    3 * (2 * passes + logits(8 * 6) + values), rel=1e-6)
  assert found.phases['ptx'] == pytest.approx(3 * (forward(16, 24, 24) + logits(16 * 23)), rel=1e-6)


@pytest.mark.parametrize('changes', [
  {'microbatch': 2}, {'rollout_chunks': 4}, {'model': {'logits_chunk': 23}}])
def test_how_it_is_computed_changes_nothing(changes):
  assert counted(made('ppo', **changes), 5).total == pytest.approx(plain_ppo().total, rel=1e-6)


def test_scanned_layers_compute_every_position():
  saved = (forward(8, 10, 10) - forward(8, 10, 10, wanted=1)  # prefill
           + 8 * (forward(8, 16, 16) - forward(8, 16, 16, wanted=6))  # 2 scored, 2 trained
           + forward(8, 16, 16) - forward(8, 16, 16, wanted=1))  # the reward model
  whole = counted(made('ppo', model={'scan': True}), 5)
  assert whole.total == pytest.approx(plain_ppo().total + saved, rel=1e-6)


def test_a_parent_with_as_many_completions_as_its_data_has():
  """Its weights do not depend on their number; its own program does."""
  found = made('ppo', reward={'k_max': 0})
  assert counted(found, 5).total == plain_ppo().total
  with pytest.raises(configs.BadInput, match=r'k_max is 0 .* --reward.k_max 9'):
    made('reward', k_max=0)


def test_recomputation_is_told_apart():
  again = counted(made('ppo', model={'remat': True}), 5)
  assert again.recomputed > 0
  assert again.total - again.recomputed == pytest.approx(plain_ppo().total, rel=1e-6)


# ---------------------------------------------------------------- without loops, against XLA


def unrolled(monkeypatch, trips):
  """Loops of jax.lax become straight lines of `trips` (while) or as many steps as there are."""
  def scan(body, carry, xs=None, length=None, **_):
    count = length if xs is None else jax.tree.leaves(xs)[0].shape[0]
    told = []
    for i in range(count):
      carry, one = body(carry, None if xs is None else jax.tree.map(lambda x, i=i: x[i], xs))
      told.append(one)
    return carry, jax.tree.map(lambda *all_: jnp.stack(all_), *told)

  def while_loop(_, body, carry):
    for _ in range(trips):
      carry = body(carry)
    return carry

  monkeypatch.setattr(jax.lax, 'scan', scan)
  monkeypatch.setattr(jax.lax, 'map', lambda f, xs: scan(lambda _, x: (None, f(x)), None, xs)[1])
  monkeypatch.setattr(jax.lax, 'while_loop', while_loop)


# So wide that what is no product is lost among products: it is about 1 / width of all.
WIDE = {'layers': 2, 'width': 512, 'mlp': 0, 'vocabulary': 192, 'context': 96, 'scan': True,
        'remat': True, 'logits_chunk': 48}


def test_language_without_loops(monkeypatch):
  stage = made('gpt', model=WIDE, batch=8, microbatch=4, length=96)
  found = counted(stage).total
  unrolled(monkeypatch, 0)
  assert found == pytest.approx(traced(stage).lower().cost_analysis()['flops'], rel=0.02)


@pytest.mark.long
def test_ppo_without_loops(monkeypatch):
  stage = made('ppo', model=WIDE, episodes=4, minibatch=2, microbatch=1, rollout_chunks=2,
               prompt_length=93, response_length=3, text_length=96)
  found = counted(stage, 2).total
  unrolled(monkeypatch, 2)
  assert found == pytest.approx(traced(stage).lower().cost_analysis()['flops'], rel=0.02)


# ---------------------------------------------------------------- rules


def test_loops_multiply_and_branches_do_not_add():
  square = jnp.ones((4, 4))

  def program(x):
    x = jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5)[0]
    x = jax.lax.fori_loop(0, 3, lambda _, x: jax.jit(lambda y: y @ y)(x), x)
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert flops.count(jax.make_jaxpr(program)(square).jaxpr).total == (5 + 3 + 2) * 2 * 4**3


def test_a_loop_of_unknown_length_is_refused():
  program = lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x)
  jaxpr = jax.make_jaxpr(program)(jnp.ones((4, 4))).jaxpr
  with pytest.raises(flops.Incomplete, match='unknown length'):
    flops.count(jaxpr)
  counts = flops.count(jaxpr, trips=7)
  assert counts.total == counts.decoding == 7 * 2 * 4**3


def test_a_loop_without_products_needs_no_length():
  program = lambda x: jax.lax.while_loop(lambda x: x < 9, lambda x: x + 1, x)
  assert flops.count(jax.make_jaxpr(program)(1.0).jaxpr).total == 0


def test_what_has_no_rule_is_refused():
  image, kernel = jnp.ones((1, 1, 8, 8)), jnp.ones((1, 1, 3, 3))
  program = lambda x: jax.lax.conv(x, kernel, (1, 1), 'SAME')
  with pytest.raises(flops.Incomplete, match='conv_general_dilated'):
    flops.count(jax.make_jaxpr(program)(image).jaxpr)
  inside = lambda x: jax.lax.scan(lambda x, _: (program(x), None), x, None, length=2)[0]
  with pytest.raises(flops.Incomplete, match='conv_general_dilated'):
    flops.count(jax.make_jaxpr(inside)(image).jaxpr)


def test_a_fused_attention_kernel_is_refused():
  """It multiplies inside, and no rule sees how much; the kernels go by the names that jax gives."""
  from jax._src.cudnn import fused_attention_stablehlo as kernels
  names = [kernels._dot_product_attention_fwd_p_wrapper.name,
           kernels._dot_product_attention_bwd_p_wrapper.name]
  for name in names:
    hidden = core.Primitive(name)
    hidden.def_abstract_eval(lambda x: x)
    with pytest.raises(flops.Incomplete, match=name):
      flops.count(jax.make_jaxpr(hidden.bind)(jnp.ones(3)).jaxpr)


@pytest.mark.parametrize(('path', 'name'), [
  ('rollout/while/body', 'rollout'), ('training/cond/transpose(jvp(ptx))/while', 'ptx'),
  ('jit(one)/while', 'other'), ('training_data/x', 'other')])
def test_phase_of_a_name_stack(path, name):
  assert flops.phase(path, 'other') == name
