"""Hugging Face folders: parameters come in and go out unchanged, and logits are transformers'.

What transformers says of the small models here was recorded by huggingface/record.py; with the
extra `parity` the same is asked again live.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.model import experience, families, generate, huggingface, sharding, transformer
from rlhf_jax.runtime import meshes

HERE = pathlib.Path(__file__).parent / 'huggingface'
ROOT = pathlib.Path(__file__).parent.parent.parent
_spec = importlib.util.spec_from_file_location('record', HERE / 'record.py')
record = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(record)
POLICIES = [f'{name}-policy' for name in record.MODELS]
FOLDERS = [f'{name}-{kind}' for name in record.MODELS for kind in record.KINDS]


def loaded(folder):
  described = huggingface.describe(folder)
  return described, huggingface.load(folder, described)


def logits(model, params, tokens, valid):
  hidden = transformer.hidden(model, params, jnp.asarray(tokens), jnp.asarray(valid))
  return np.asarray(hidden @ transformer.unembedding(params).T)[..., :model.vocabulary]


@pytest.mark.parametrize('name', POLICIES)
def test_logits_are_those_of_transformers(name):
  described, params = loaded(HERE / name)
  tokens, valid = record.inputs()
  expected = np.load(HERE / name / 'expected.npz')['logits']
  found = logits(described.model, params, tokens, valid)
  assert np.abs(expected[valid]).max() > 1  # weights of noise make logits that matter
  np.testing.assert_allclose(found[valid], expected[valid], atol=1e-4)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('name', POLICIES)
def test_cached_decode_is_that_of_transformers(name, scan):
  described, params = loaded(HERE / name)
  tokens, valid = record.inputs()
  model = configs.Model(**{**vars(described.model), 'scan': scan})
  rollout = generate.generate(model, params, jnp.asarray(tokens, jnp.int32), jnp.asarray(valid),
                              jax.random.key(0), length=record.NEW, temperature=0.0,
                              eos=record.VOCABULARY + 1, pad=0)
  np.testing.assert_array_equal(rollout.tokens[:, tokens.shape[1]:],
                                np.load(HERE / name / 'expected.npz')['greedy'])
  fresh = experience.response_logprobs(model, params, rollout.tokens, rollout.valid, record.NEW)
  np.testing.assert_allclose(rollout.logprobs, fresh, atol=1e-4)


@pytest.mark.parametrize('name', [f'{name}-reward' for name in record.MODELS])
def test_scores_are_those_of_transformers(name):
  described, params = loaded(HERE / name)
  assert described.kind == 'reward'
  tokens, valid = record.inputs()
  found = experience.scores(described.model, params, jnp.asarray(tokens), jnp.asarray(valid))
  np.testing.assert_allclose(found, np.load(HERE / name / 'expected.npz')['scores'], atol=1e-4)


@pytest.mark.parametrize('name', FOLDERS)
def test_out_and_in_again_changes_no_bit(name, tmp_path):
  described, params = loaded(HERE / name)
  huggingface.save(tmp_path, described.model, params, described.kind)
  there = safetensors.numpy.load_file(HERE / name / 'model.safetensors')
  here = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
  assert there.keys() == here.keys()
  for key, value in there.items():
    assert value.tobytes() == here[key].tobytes() and value.shape == here[key].shape, key
  again = huggingface.describe(tmp_path)
  assert (again.model, again.kind) == (described.model, described.kind)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_small_floats_come_back_as_they_were(dtype, tmp_path):
  kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
  given = safetensors.numpy.load_file(HERE / 'gpt2-policy' / 'model.safetensors')
  given = {name: value.astype(kind) for name, value in given.items()}
  shutil.copy(HERE / 'gpt2-policy' / 'config.json', tmp_path)
  safetensors.numpy.save_file(given, tmp_path / 'model.safetensors')
  described, params = loaded(tmp_path)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  huggingface.save(tmp_path / 'out', described.model, params, 'policy', dtype=dtype)
  found = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert all(value.tobytes() == found[name].tobytes() for name, value in given.items())


def test_several_files_with_an_index(tmp_path):
  described, params = loaded(HERE / 'qwen2-policy')
  huggingface.save(tmp_path, described.model, params, 'policy', shard_bytes=8000)
  files = sorted(path.name for path in tmp_path.glob('*.safetensors'))
  assert len(files) > 2 and files[0] == f'model-00001-of-{len(files):05}.safetensors'
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  total = sum(v.nbytes for f in files for v in
              safetensors.numpy.load_file(tmp_path / f).values())
  assert index['metadata']['total_size'] == total
  _, again = loaded(tmp_path)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))


@pytest.mark.parametrize('sizes', [(8000, 1 << 30), (1 << 30, 8000), (8000, 20000)])
def test_a_model_in_the_place_of_another_is_read_as_it_is(sizes, tmp_path):
  described, params = loaded(HERE / 'qwen2-policy')
  (tmp_path / 'notes.txt').write_text('mine')
  other = jax.tree.map(lambda leaf: leaf + 1, params)
  for size, of in zip(sizes, (other, params), strict=True):
    huggingface.save(tmp_path, described.model, of, 'policy', shard_bytes=size)
  huggingface.save(tmp_path / 'new', described.model, params, 'policy', shard_bytes=sizes[1])
  assert {path.name for path in tmp_path.iterdir()} - {'new', 'notes.txt'} == {
    path.name for path in (tmp_path / 'new').iterdir()}
  _, again = loaded(tmp_path)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))


def test_the_bias_of_scores_comes_back(tmp_path):
  described, params = loaded(HERE / 'llama-reward')
  params['head']['bias'] = jnp.float32(-1.5)
  huggingface.save(tmp_path, described.model, params, 'reward')
  assert float(loaded(tmp_path)[1]['head']['bias']) == -1.5


def test_parameters_lie_as_the_mesh_says():
  """On 8 devices every parameter is laid out by the rule table, and is the same."""
  code = """
import jax, pathlib, sys
from rlhf_jax import configs
from rlhf_jax.model import huggingface, sharding, transformer
from rlhf_jax.runtime import meshes
folder = pathlib.Path(sys.argv[1])
described = huggingface.describe(folder)
mesh = meshes.make_mesh(configs.Mesh(data=2, fsdp=2, tensor=2))
params = huggingface.load(folder, described, mesh)
names = transformer.axes(described.model)
placed = lambda p, axes: jax.sharding.NamedSharding(mesh, sharding.spec(axes))
wanted = jax.tree.map(placed, params, names)
assert jax.tree.all(jax.tree.map(lambda p, s: p.sharding == s, params, wanted))
alone = huggingface.load(folder, described)
assert jax.tree.all(jax.tree.map(lambda a, b: bool((jax.device_get(a) == b).all()), params, alone))
kernel = params['blocks']['mlp']['up']['kernel']
assert kernel.addressable_shards[0].data.size * 4 == kernel.size
"""
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
                              'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', code, str(HERE / 'llama-policy')], cwd=ROOT,
                        env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def changed(tmp_path, name='llama-policy', **settings):
  folder = tmp_path / name
  shutil.copytree(HERE / name, folder)
  config = json.loads((folder / 'config.json').read_text()) | settings
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize('settings, words', [
  ({'architectures': ['MambaForCausalLM']}, ['MambaForCausalLM', 'GPTNeoXForCausalLM']),
  ({'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1.0}}, ["'yarn'", 'llama3', 'linear']),
  # what people add by hand stands beside rope_parameters, and wins in transformers
  ({'rope_scaling': {'type': 'yarn', 'factor': 2.0}}, ["'yarn'"]),
  ({'rope_scaling': 'linear'}, ['rope_scaling', 'an object', 'linear']),
  ({'hidden_act': 'relu'}, ['hidden_act', "'relu'", 'silu']),
  ({'attention_bias': True}, ['attention_bias', 'True']),
  ({'num_hidden_layers': None}, ['num_hidden_layers', 'missing']),
  ({'num_hidden_layers': 'two'}, ['num_hidden_layers', 'number', 'two']),
  ({'num_hidden_layers': 3}, ['9 parameters are missing', 'layers.2']),
  ({'num_hidden_layers': 1}, ['9 parameters are left over', 'layers.1']),
  ({'intermediate_size': 32}, ['mlp.down_proj.weight', '[16, 24]', '[16, 32]']),
  ({'vocab_size': 51}, ['[50, 16]', '[51, 16]']),
])
def test_refusals_are_one_line_that_names_the_thing(tmp_path, settings, words):
  with pytest.raises(BadInput) as error:
    loaded(changed(tmp_path, **settings))
  message = str(error.value)
  assert '\n' not in message and str(tmp_path) in message
  for word in words:
    assert word in message, message


def test_refusals_about_files(tmp_path):
  with pytest.raises(BadInput, match=r'config\.json.*no such file'):
    huggingface.describe(tmp_path)
  folder = changed(tmp_path)
  (folder / 'model.safetensors').write_bytes(b'\x10' * 40)
  with pytest.raises(BadInput, match=r'model\.safetensors: expected a whole safetensors file'):
    loaded(folder)
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  with pytest.raises(BadInput, match='pickled weights'):
    loaded(folder)


def test_known_buffers_and_tied_copies_are_skipped(tmp_path):
  folder = changed(tmp_path, 'gpt2-policy')
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  tensors['transformer.h.0.attn.bias'] = np.ones((1, 1, 40, 40), np.float32)
  tensors['transformer.h.1.attn.masked_bias'] = np.float32([-1e4])
  tensors['lm_head.weight'] = tensors['transformer.wte.weight']
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  with_buffers = loaded(folder)[1]
  bare = {name.removeprefix('transformer.'): value for name, value in tensors.items()}
  safetensors.numpy.save_file(bare, folder / 'model.safetensors')  # as GPT-2 was published
  for found in (with_buffers, loaded(folder)[1]):
    assert jax.tree.all(jax.tree.map(
      lambda a, b: bool((a == b).all()), found, loaded(HERE / 'gpt2-policy')[1]))
  tensors['transformer.h.0.attn.extra'] = np.ones((2,), np.float32)
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  with pytest.raises(BadInput, match=r'1 parameters are left over.*attn\.extra'):
    loaded(folder)


def test_a_tied_model_with_a_table_of_its_own_is_refused(tmp_path):
  folder = changed(tmp_path, 'gpt2-policy')
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  table = tensors['transformer.wte.weight']
  for other in (table + 1, table[:-1], np.concatenate([table, table[:1]])):
    safetensors.numpy.save_file(tensors | {'lm_head.weight': other}, folder / 'model.safetensors')
    with pytest.raises(BadInput, match=r'lm_head\.weight is another table.*tie_word_embeddings'):
      loaded(folder)


def test_of_one_file_and_an_index_the_file_is_read(tmp_path):
  folder = changed(tmp_path)
  described, params = loaded(folder)
  huggingface.save(tmp_path / 'other', described.model, jax.tree.map(lambda leaf: leaf + 1, params),
                   'policy', shard_bytes=8000)
  for file in (tmp_path / 'other').glob('model*'):
    shutil.copy(file, folder)
  found = loaded(folder)[1]
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, params))


@pytest.mark.parametrize('content', ['{', '[]', '{}', '{"weight_map": 3}', '{"weight_map": [1]}'])
def test_an_index_that_is_none_is_named(content, tmp_path):
  folder = changed(tmp_path)
  (folder / 'model.safetensors').unlink()
  (folder / 'model.safetensors.index.json').write_text(content)
  with pytest.raises(BadInput, match=r"index\.json: expected an object with 'weight_map'"):
    loaded(folder)


def test_a_shape_that_no_architecture_has(tmp_path):
  model = configs.Model(layers=1, width=8, heads=2, vocabulary=9, norm='rms', positions='learned')
  params = transformer.init(model, jax.random.key(0))
  with pytest.raises(BadInput, match="llama: gated is False, not True"):
    huggingface.save(tmp_path, model, params, 'policy')


@pytest.mark.parametrize('model', [
  configs.Model(layers=2, width=16, heads=2, vocabulary=70, context=20),  # the miniature world's
  configs.Model(layers=2, width=16, heads=2, vocabulary=70, context=20, positions='learned'),
  configs.Model(layers=1, width=16, heads=4, kv_heads=2, vocabulary=70, context=20, norm='rms',
                activation='silu', gated=True, bias=False, tied=False, rope_scaling=(2.0,)),
])
def test_models_of_our_own_go_out_and_come_back(model, tmp_path):
  params = transformer.init(model, jax.random.key(1))
  huggingface.save(tmp_path, model, params, 'policy')
  described, again = loaded(tmp_path)
  tokens, valid = record.inputs()
  np.testing.assert_array_equal(logits(model, params, tokens, valid),
                                logits(described.model, again, tokens, valid))


def test_every_row_of_the_tables_is_a_parameter():
  """A name that is misspelt in a table would only be missed by a model that has it."""
  for family in families.FAMILIES:
    known = {row.ours for row in family.table}
    met = {'embed/positions', 'head/kernel', 'unembed/tokens'}  # by the kinds of model
    for name, (_, _) in record.MODELS.items():
      described = huggingface.describe(HERE / f'{name}-policy')
      if described.family.table is family.table:
        flat = jax.tree_util.tree_flatten_with_path(transformer.axes(described.model),
                                                    is_leaf=lambda x: isinstance(x, tuple))[0]
        met |= {'/'.join(key.key for key in path) for path, _ in flat}
    assert known <= met, known - met


MEMORY = """
import pathlib, resource, sys, threading, time
import jax
from rlhf_jax.model import huggingface
def resident():
  pages = int(open('/proc/self/statm').read().split()[1])
  return pages * resource.getpagesize()
folder = pathlib.Path(sys.argv[1])
described = huggingface.describe(folder)
jax.block_until_ready(jax.numpy.zeros(4))
peak, done = resident(), False
def watch():
  global peak
  while not done:
    peak = max(peak, resident())
    time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
params = huggingface.load(folder, described)
done = True; thread.join()
largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
print(peak, resident(), largest)
"""


@pytest.mark.long
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_loading_needs_little_more_memory_than_what_stays(dtype, tmp_path):
  """Beyond what stays resident at most the largest stacked tensor and a tenth (500 MB folder)."""
  if not pathlib.Path('/proc/self/statm').exists():
    pytest.skip('resident memory is read from /proc, which this system has not')
  layers, width = (9, 1024) if dtype == 'float32' else (19, 1024)
  model = configs.Model(layers=layers, width=width, heads=8, vocabulary=8192, context=64,
                        norm='rms', activation='silu', gated=True, bias=False, mlp=3 * width)
  params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), jax.eval_shape(
    lambda: transformer.init(model, jax.random.key(0))))
  huggingface.save(tmp_path, model, params, 'policy', dtype=dtype)
  assert (tmp_path / 'model.safetensors').stat().st_size > 480e6
  del params
  done = subprocess.run([sys.executable, '-c', MEMORY, str(tmp_path)], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  peak, stays, largest = map(int, done.stdout.split())
  assert peak - stays <= 1.1 * largest, (peak, stays, largest)


@pytest.mark.long
@pytest.mark.parametrize('name', FOLDERS)
def test_live_against_transformers(name, tmp_path):
  """What was recorded is what transformers says now; what we export it loads and says the same."""
  pytest.importorskip('torch', reason='parity needs torch and transformers: pip install .[parity]')
  transformers = pytest.importorskip('transformers')
  family, _, kind = name.rpartition('-')
  model = record.make(family, kind)
  expected = record.expected(model, kind)
  model.save_pretrained(tmp_path / 'in')
  described, params = loaded(tmp_path / 'in')
  tokens, valid = record.inputs()
  huggingface.save(tmp_path / 'out', described.model, params, described.kind,
                   settings={'pad_token_id': 0})
  again = getattr(transformers, record.KINDS[kind]).from_pretrained(
    tmp_path / 'out', attn_implementation='eager').eval()
  theirs = record.expected(again, kind)
  if kind == 'policy':
    found = logits(described.model, params, tokens, valid)
    np.testing.assert_allclose(found[valid], expected['logits'][valid], atol=1e-4)
    np.testing.assert_allclose(theirs['logits'][valid], expected['logits'][valid], atol=1e-4)
  else:
    found = experience.scores(described.model, params, jnp.asarray(tokens), jnp.asarray(valid))
    np.testing.assert_allclose(found, expected['scores'], atol=1e-4)
    np.testing.assert_allclose(theirs['scores'], expected['scores'], atol=1e-4)


def test_mesh_rules_are_those_of_training():
  """A folder's parameters lie where a training state's do, so that nothing moves at the start."""
  described = huggingface.describe(HERE / 'llama-policy')
  axes = {'policy': transformer.axes(described.model)}
  shapes = jax.eval_shape(lambda: transformer.init(described.model, jax.random.key(0)))
  mesh = meshes.make_mesh(configs.Mesh())
  wanted = sharding.state_shardings(mesh, shapes, axes)
  found = huggingface.load(HERE / 'llama-policy', described, mesh)
  assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding == s, found, wanted))
