"""Sampling against a loop without cache; ends, padding, chunks, frequencies, greedy, early exit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.model import experience, generate, transformer
from rlhf_jax.objectives import likelihood

PROMPT, LENGTH, EOS, PAD = 6, 5, 2, 0
STATIC = ('length', 'temperature', 'eos', 'pad')
sample = jax.jit(generate.generate, static_argnums=0, static_argnames=STATIC)
fresh = jax.jit(experience.response_logprobs, static_argnums=(0, 4, 5))
options = functools.partial(dict, length=LENGTH, temperature=0.8, eos=EOS, pad=PAD)


@pytest.fixture(scope='module')
def prompts(rows):
  """Left-padded prompts, eleven of them."""
  tokens, valid = (np.concatenate([x[:, :PROMPT], x[:4, :PROMPT]]) for x in rows)
  return tokens, valid


@pytest.fixture(scope='module')
def ending(cases):
  """Case -> parameters under which about a third of all tokens are eos, so that rows end apart."""
  def change(case):
    params = jax.tree.map(np.asarray, case.params)
    place = 'unembed' if 'unembed' in params else 'embed'
    table = params[place]['tokens'].copy()
    table[EOS] *= 2.5
    return params | {place: params[place] | {'tokens': table}}

  return {name: change(case) for name, case in cases.items()}


@functools.partial(jax.jit, static_argnums=(0, 3))
def next_logits(config, params, rows, temperature):
  states = transformer.hidden(config, params, *rows)
  return likelihood.logits_of(states, transformer.unembedding(params), config.vocabulary,
                              temperature)


def loop(config, params, prompts, valid, key, *, length, temperature, eos, pad):
  """The sampler without cache and without an early end: a whole forward pass for every token."""
  batch = len(prompts)
  tokens = np.concatenate([prompts, np.full((batch, length), pad)], axis=1).astype(np.int32)
  valid = np.concatenate([valid, np.zeros((batch, length), bool)], axis=1)
  logprobs = np.zeros((batch, length))
  done = np.zeros(batch, bool)
  for t in range(length):
    logits = next_logits(config, params, (tokens, valid), temperature)[:, PROMPT + t - 1]
    token = np.asarray(jax.random.categorical(jax.random.fold_in(key, t), logits))
    chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(batch), token]
    for b in range(batch):
      if not done[b]:
        tokens[b, PROMPT + t], valid[b, PROMPT + t], logprobs[b, t] = token[b], True, chosen[b]
    done |= token == eos
  return tokens, valid, logprobs


@pytest.mark.parametrize(('name', 'scan'), [('gpt', False), ('llama', True), ('gpt3', True)])
def test_equals_the_loop(cases, ending, prompts, name, scan):
  config = dataclasses.replace(cases[name].config, scan=scan)
  found = sample(config, ending[name], *prompts, jax.random.key(3), **options())
  tokens, valid, logprobs = loop(cases[name].config, ending[name], *prompts, jax.random.key(3),
                                 **options())
  ends = found.mask.sum(axis=1)
  assert ends.min() < ends.max() == LENGTH  # rows end apart, so this says something
  np.testing.assert_array_equal(found.tokens, tokens)
  np.testing.assert_array_equal(found.valid, valid)
  np.testing.assert_array_equal(found.mask, valid[:, PROMPT:])
  np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-4)


@pytest.mark.parametrize(('name', 'scan'), [('llama', True), ('gpt3', False)])
def test_loops_that_read_only_what_they_fill(cases, ending, prompts, monkeypatch, name, scan):
  """As on a GPU: scanned layers unrolled, and a loop for each part of a response."""
  config, here = dataclasses.replace(cases[name].config, scan=scan), jax.default_backend()
  given = ending[name], *prompts, jax.random.key(3)

  def run(unrolled, loops, **changes):
    monkeypatch.setattr(generate, 'UNROLLED', unrolled)
    monkeypatch.setattr(generate, 'LOOPS', loops)
    # A function of its own: jit keeps what it traced by function.
    return jax.jit(functools.partial(generate.generate, config, **options(**changes)))

  monkeypatch.setattr(generate, 'SHORTEST', 2)
  for changes in ({}, {'eos': -1}, {'length': 1}):  # rows end apart, none ends, no loop
    wanted = run((), {}, **changes)(*given)
    found = run((here,), {here: 3}, **changes)(*given)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.mask, wanted.mask)
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-5)
  assert generate.loops(LENGTH) == [2, 5] and generate.loops(7) == [2, 4, 7]
  one, two = (run((here,), loops).lower(*given).as_text() for loops in ({}, {here: 3}))
  assert two.count('stablehlo.while') == one.count('stablehlo.while') + 1
  keys = f'tensor<{len(prompts[0])}x{transformer.kv_heads(config)}x{PROMPT + 2}x'
  assert keys in two and keys not in one  # the first loop reads no more
  if scan:  # over layers in the prefill and in the loop, where they are not unrolled
    scanned = run((), {}).lower(*given).as_text()
    assert scanned.count('stablehlo.while') == one.count('stablehlo.while') + 2


def test_scanned_layers_decode_in_place(cases, prompts, monkeypatch):
  """A scan that gives caches out anew copies all of them at every token."""
  monkeypatch.setattr(generate, 'UNROLLED', ())
  case = cases['llama']
  config = dataclasses.replace(case.config, scan=True)
  run = functools.partial(generate.generate, config, key=jax.random.key(0), **options())
  scans = []

  def walk(jaxpr, inside):
    for equation in jaxpr.eqns:
      here = inside or equation.primitive.name == 'while'
      if inside and equation.primitive.name == 'scan':
        scans.append(equation)
      for value in equation.params.values():
        if hasattr(value, 'jaxpr'):
          walk(value.jaxpr, here)

  walk(jax.jit(run).trace(case.params, *prompts).jaxpr.jaxpr, False)
  layers, = scans
  cache = (config.layers, len(prompts[0]), config.kv_heads, PROMPT + LENGTH, config.head_size)
  shapes = [var.aval.shape for var in layers.outvars]
  assert shapes.count(cache) == 2
  # All is carried: what a scan gives out layer by layer has another shape inside.
  assert shapes == [var.aval.shape for var in layers.params['jaxpr'].jaxpr.outvars]


@pytest.mark.parametrize('name', ['gpt', 'llama'])
def test_sampler_logprobs_equal_a_fresh_forward_pass(cases, ending, prompts, name):
  config, params = cases[name].config, ending[name]
  found = sample(config, params, *prompts, jax.random.key(0), **options())
  again = fresh(config, params, found.tokens, found.valid, LENGTH, 0.8)
  mask = np.asarray(found.mask)
  assert np.abs(found.logprobs - again)[mask].max() <= 1e-5
  other = fresh(config, params, found.tokens, found.valid, LENGTH, 1.0)
  assert np.abs(found.logprobs - other)[mask].max() > 1e-2


def test_any_of_several_tokens_ends_a_response(cases, ending, prompts):
  """Chat models have more than one end token."""
  config, params = cases['gpt'].config, ending['gpt']
  one = sample(config, params, *prompts, jax.random.key(3), **options())
  other = int(one.tokens[:, -LENGTH:][one.mask][0])  # the first row's first token
  both = sample(config, params, *prompts, jax.random.key(3), **options(eos=(EOS, other)))
  for before, after, mask in zip(one.tokens[:, -LENGTH:], both.tokens[:, -LENGTH:], both.mask,
                                 strict=True):
    until = next((t for t, token in enumerate(before) if token in (EOS, other)), LENGTH - 1)
    np.testing.assert_array_equal(mask, np.arange(LENGTH) <= until)
    np.testing.assert_array_equal(after[mask], before[mask])
  np.testing.assert_array_equal(
    generate.ended(both, (EOS, other)),
    [any(token in (EOS, other) for token in row[mask])
     for row, mask in zip(both.tokens[:, -LENGTH:], both.mask, strict=True)])


def test_after_eos_there_is_nothing(cases, ending, prompts):
  found = sample(cases['gpt'].config, ending['gpt'], *prompts, jax.random.key(3), **options())
  responses = np.asarray(found.tokens)[:, PROMPT:]
  for b in range(len(responses)):
    hits = np.flatnonzero(responses[b] == EOS)
    length = hits[0] + 1 if len(hits) else LENGTH
    assert bool(generate.ended(found, EOS)[b]) == bool(len(hits))
    np.testing.assert_array_equal(found.mask[b], np.arange(LENGTH) < length)
    np.testing.assert_array_equal(responses[b, length:], PAD)
    np.testing.assert_array_equal(found.logprobs[b, length:], 0)
    assert (responses[b, :length] != EOS)[:-1].all()
  np.testing.assert_array_equal(found.tokens[:, :PROMPT], prompts[0])
  np.testing.assert_array_equal(found.valid, np.concatenate([prompts[1], found.mask], axis=1))


def test_a_sampled_pad_is_a_token_like_any_other(cases, prompts):
  """Nothing asks `token == pad`: only what comes after eos is padding."""
  case = cases['llama']
  plain = sample(case.config, case.params, *prompts, jax.random.key(1), **options())
  pad = int(plain.tokens[0, PROMPT + 1])
  found = sample(case.config, case.params, *prompts, jax.random.key(1), **options(pad=pad))
  assert found.mask[0, 1]
  np.testing.assert_array_equal(found.mask, plain.mask)
  np.testing.assert_array_equal(np.where(found.valid, found.tokens, 0),
                                np.where(plain.valid, plain.tokens, 0))


def test_a_row_does_not_feel_when_its_neighbours_end(cases, prompts):
  """The same row beside neighbours that all end at once, and beside neighbours that go on."""
  case = cases['llama']
  tokens, valid = prompts
  free = sample(case.config, case.params, tokens, valid, jax.random.key(5), **options())
  others = tokens.copy()
  others[1:] = 7
  changed = sample(case.config, case.params, others, valid, jax.random.key(5), **options())
  assert (np.asarray(free.tokens)[1:, PROMPT:] != np.asarray(changed.tokens)[1:, PROMPT:]).any()
  for a, b in zip(jax.tree.leaves(free), jax.tree.leaves(changed), strict=True):
    np.testing.assert_allclose(a[0], b[0], atol=1e-6)


def test_more_room_changes_no_earlier_token(cases, ending, prompts):
  case = cases['gpt']
  short = sample(case.config, ending['gpt'], *prompts, jax.random.key(3), **options())
  long = sample(case.config, ending['gpt'], *prompts, jax.random.key(3), **options(length=9))
  np.testing.assert_array_equal(short.tokens, long.tokens[:, :PROMPT + LENGTH])
  np.testing.assert_array_equal(short.mask, long.mask[:, :LENGTH])


def test_decoding_stops_when_every_row_has_ended(cases, prompts, monkeypatch):
  case, calls = cases['gpt'], []
  run = transformer.run_blocks

  def counted(*args, **kwargs):
    jax.debug.callback(lambda: calls.append(1))
    return run(*args, **kwargs)

  monkeypatch.setattr(transformer, 'run_blocks', counted)
  everything_ends = jax.tree.map(np.zeros_like, case.params)  # uniform logits …
  for eos, wanted in ((0, 1), (5, LENGTH)):  # … of which greedy takes id 0
    calls.clear()
    found = jax.jit(functools.partial(generate.generate, case.config, length=LENGTH, temperature=0,
                                      eos=eos, pad=1))(everything_ends, *prompts, jax.random.key(0))
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert len(calls) == wanted  # the prefill, and a token at a time but the last
    np.testing.assert_array_equal(found.mask.sum(axis=1), wanted)


def test_greedy_takes_the_most_likely_token(cases, prompts):
  case = cases['llama']
  found = sample(case.config, case.params, *prompts, jax.random.key(0), **options(temperature=0))
  again = sample(case.config, case.params, *prompts, jax.random.key(9), **options(temperature=0))
  np.testing.assert_array_equal(found.tokens, again.tokens)
  logits = next_logits(case.config, case.params, (found.tokens, found.valid), 1.0)
  best = np.argmax(logits[:, PROMPT - 1:-1], axis=-1)
  mask = np.asarray(found.mask)
  np.testing.assert_array_equal(found.tokens[:, PROMPT:][mask], best[mask])
  plain = fresh(case.config, case.params, found.tokens, found.valid, LENGTH, 1.0)
  np.testing.assert_allclose(found.logprobs[mask], plain[mask], atol=1e-5)


def test_chunks_keep_the_order_of_the_prompts(cases, prompts):
  case = cases['llama']
  tokens, valid = (x[:8] for x in prompts)
  chunked = jax.jit(generate.generate_in_chunks, static_argnums=(0, 5), static_argnames=STATIC)
  whole = sample(case.config, case.params, tokens, valid, jax.random.key(0),
                 **options(temperature=0))
  greedy = chunked(case.config, case.params, tokens, valid, jax.random.key(0), 4,
                   **options(temperature=0))
  np.testing.assert_array_equal(greedy.tokens, whole.tokens)
  np.testing.assert_allclose(greedy.logprobs, whole.logprobs, atol=1e-5)
  same = (np.repeat(tokens[:1], 8, axis=0), np.repeat(valid[:1], 8, axis=0))
  random = chunked(case.config, case.params, *same, jax.random.key(0), 4, **options())
  assert len({tuple(row) for row in np.asarray(random.tokens)}) > 4  # chunks do not share a key


@pytest.mark.parametrize('shape', [(1, 1), (3, 17), (64, 512), (5, 50257)])
@pytest.mark.parametrize('seed', [0, 3, 2**32 - 1])
def test_the_noise_is_jaxs_to_the_bit(shape, seed):
  key = jax.random.fold_in(jax.random.key(seed), 7)
  found = jax.jit(generate._gumbel, static_argnums=1)(key, shape)
  np.testing.assert_array_equal(found, jax.random.gumbel(key, shape))


def test_other_keys_have_jaxs_noise():
  key = jax.random.key(0, impl='rbg')
  np.testing.assert_array_equal(generate._gumbel(key, (2, 9)), jax.random.gumbel(key, (2, 9)))
  old, key = jax.config.jax_threefry_partitionable, jax.random.key(0)
  try:
    jax.config.update('jax_threefry_partitionable', False)
    np.testing.assert_array_equal(generate._gumbel(key, (2, 9)), jax.random.gumbel(key, (2, 9)))
  finally:
    jax.config.update('jax_threefry_partitionable', old)


@pytest.mark.parametrize('temperature', [1.0, 0.5])
def test_first_tokens_have_the_models_frequencies(cases, temperature):
  """χ² over the real ids; padding rows of the table, made enormous here, are never sampled."""
  case, count = cases['gpt'], 20_000
  config = case.config
  params = jax.tree.map(np.asarray, case.params)
  table = 0.3 * params['embed']['tokens']
  table[config.vocabulary:] = 50
  params = params | {'embed': params['embed'] | {'tokens': table}}
  tokens, valid = np.array([[0, 9, 21]], np.int32), np.array([[False, True, True]])
  many = tuple(np.repeat(x, count, axis=0) for x in (tokens, valid))
  found = sample(config, params, *many, jax.random.key(0),
                 **options(length=1, temperature=temperature))
  drawn = np.bincount(np.asarray(found.tokens)[:, -1], minlength=len(table))
  assert drawn[config.vocabulary:].sum() == 0
  logits = next_logits(config, params, (tokens, valid), temperature)[0, -1, :config.vocabulary]
  expected = count * np.asarray(jax.nn.softmax(logits), np.float64)
  chi2 = np.sum((drawn[:config.vocabulary] - expected)**2 / expected)
  freedom = config.vocabulary - 1
  assert chi2 < freedom + 5 * np.sqrt(2 * freedom)
  logits = next_logits(config, params, (tokens, valid), 0.75)[0, -1, :config.vocabulary]
  wrong = count * np.asarray(jax.nn.softmax(logits), np.float64)
  assert np.sum((drawn[:config.vocabulary] - wrong)**2 / wrong) > 5 * freedom


def test_keys_decide(cases, prompts):
  case = cases['gpt']
  first, same, other = (sample(case.config, case.params, *prompts, jax.random.key(i), **options())
                        for i in (0, 0, 1))
  np.testing.assert_array_equal(first.tokens, same.tokens)
  assert (first.tokens != other.tokens).any()


def test_bfloat16_sampler_reports_float32_logprobs(cases, prompts):
  config = dataclasses.replace(cases['llama'].config, compute='bfloat16')
  found = sample(config, cases['llama'].params, *prompts, jax.random.key(0), **options())
  assert found.logprobs.dtype == jnp.float32
  again = fresh(config, cases['llama'].params, found.tokens, found.valid, LENGTH, 0.8)
  gap = np.abs(found.logprobs - again)[np.asarray(found.mask)]
  assert gap.max() < 0.5
