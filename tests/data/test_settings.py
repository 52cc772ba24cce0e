"""What lies beside a tokenizer.json: it wins over names, is checked, and is kept when saved."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from rlhf_jax.configs import BadInput
from rlhf_jax.data import rows, settings
from rlhf_jax.data.tokenizer import Tokenizer

DATA = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'
NAMES = ('<|start|>', '<|end|>', '<|turn|>', '<|fill|>')


@pytest.fixture
def folder(tmp_path):
  """A tokenizer.json whose special tokens no list of names knows: ids 0 to 3."""
  content = Tokenizer.train(['the cat sat'] * 9, 290).json
  renamed = {'<|pad|>': NAMES[0], '<|bos|>': NAMES[1], '<|eos|>': NAMES[2]}
  for old, new in renamed.items():
    content = content.replace(json.dumps(old), json.dumps(new))
  backend = tokenizers.Tokenizer.from_str(content)
  backend.add_special_tokens([NAMES[3]])
  backend.save(str(tmp_path / 'tokenizer.json'))
  return tmp_path


def beside(folder, **files):
  for name, content in files.items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  return Tokenizer.from_file(folder / 'tokenizer.json')


def post_processed(folder, single):
  backend = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  backend.post_processor = processors.TemplateProcessing(
    single=single, special_tokens=[(name, backend.token_to_id(name)) for name in NAMES])
  backend.save(str(folder / 'tokenizer.json'))


CONFIG = {'bos_token': NAMES[0], 'eos_token': {'content': NAMES[1], 'special': True},
          'pad_token': NAMES[3]}


def test_the_names_are_those_of_the_config(folder):
  with pytest.raises(BadInput, match=r'name it as eos_token in tokenizer_config\.json'):
    Tokenizer.from_file(folder / 'tokenizer.json')
  found = beside(folder, tokenizer_config=CONFIG)
  fill = found.vocabulary - 1
  assert (found.bos, found.eos, found.pad, found.ends) == (0, 1, fill, (1,))
  assert found.start == [0] and found.encode_prompt('the') == [0, *found.encode('the')]


def test_any_end_token_ends_a_response(folder):
  found = beside(folder, tokenizer_config=CONFIG, generation_config={'eos_token_id': [2, 1, 99999]})
  assert found.ends == (1, 2)  # eos first; an id beyond the vocabulary is never sampled
  cat = found.encode('cat')
  for end in (1, 2):
    assert found.decode([0, *cat, end, *cat]) == 'cat'
  assert found.decode_prompt([0, *cat, 2, *cat, 1]) == 'catcat'


def test_the_end_tokens_of_the_model_serve_where_no_eos_is_named(folder):
  assert beside(folder, config={'eos_token_id': 2}).ends == (2,)
  assert beside(folder, generation_config={'eos_token_id': [1, 2]}).ends == (1, 2)
  named = beside(folder, generation_config={'eos_token_id': [1]}, tokenizer_config=CONFIG)
  assert named.ends == (1,)


def test_padding_is_no_end_token_even_where_the_config_says_so(folder):
  found = beside(folder, tokenizer_config=CONFIG | {'pad_token': NAMES[2]},
                 generation_config={'eos_token_id': [1, 2, 0]})
  assert found.ends == (1, 2, 0) and found.pad == 3
  assert found.config()['pad_token'] == NAMES[2]


@pytest.mark.parametrize(('said', 'single', 'expected'), [
  ({}, None, True),
  ({}, '$A', False),
  ({}, f'{NAMES[0]} $A', True),
  ({}, f'{NAMES[2]} $A', False),
  ({'add_bos_token': True}, '$A', True),
  ({'add_bos_token': False}, f'{NAMES[0]} $A', False),
  ({'bos_token': None}, None, False),
  ({'bos_token': NAMES[1]}, None, False),  # the same as eos: it only parts documents
  ({'bos_token': NAMES[1], 'add_bos_token': True}, None, True),
])
def test_when_texts_start_with_bos(said, single, expected, folder):
  if single:
    post_processed(folder, single)
  found = beside(folder, tokenizer_config=CONFIG | said)
  assert found.start == ([found.bos] if expected else [])
  assert found.encode_prompt('cat') == found.start + found.encode('cat')
  assert found.encode_prompt('') == [found.eos if found.bos is None else found.bos]
  documents = [found.encode('cat'), found.encode('sat')]
  packed = rows._packed(documents, found, 4)['tokens'].reshape(-1)
  expected = [index for ids in documents for index in (*found.start, *ids, found.eos)]
  np.testing.assert_array_equal(packed[:len(expected)], expected)


def test_all_of_it_is_kept_when_saved(folder, tmp_path):
  first = beside(folder, tokenizer_config=CONFIG | {'chat_template': '{{ messages }}',
                                                    'add_bos_token': False},
                 generation_config={'eos_token_id': [1, 2]})
  first.save(tmp_path / 'run' / 'model' / 'tokenizer.json')
  again = Tokenizer.from_file(tmp_path / 'run' / 'model' / 'tokenizer.json')
  for name in ('pad', 'bos', 'eos', 'ends', 'start', 'template', 'json', 'identity'):
    assert getattr(again, name) == getattr(first, name), name
  assert again.config() == first.config() and again.generation() == first.generation()


def test_identity_tells_apart_what_encodes_otherwise(folder):
  found = {beside(folder, tokenizer_config=CONFIG | change,
                  generation_config={'eos_token_id': ends}).identity
           for change, ends in (({}, 1), ({'add_bos_token': False}, 1), ({'chat_template': 'x'}, 1),
                                ({}, [1, 2]), ({'pad_token': NAMES[2]}, 1))}
  assert len(found) == 5


def test_a_tokenizer_of_our_own_is_one_file_and_says_its_names(tmp_path):
  tokenizer = Tokenizer.train(['the cat sat'], 270)
  tokenizer.save(tmp_path / 'tokenizer.json')
  assert [path.name for path in tmp_path.iterdir()] == ['tokenizer.json']
  assert tokenizer.config() == {
    'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<|bos|>', 'eos_token': '<|eos|>',
    'pad_token': '<|pad|>', 'add_bos_token': True, 'clean_up_tokenization_spaces': False}
  assert tokenizer.generation() == {'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 0}
  # What others read puts bos first by itself, and reads back as the same tokenizer.
  backend = tokenizers.Tokenizer.from_str(tokenizer.published())
  assert backend.encode('cat').ids == tokenizer.encode_prompt('cat')
  (tmp_path / 'tokenizer.json').write_text(tokenizer.published())
  assert Tokenizer.from_file(tmp_path / 'tokenizer.json').start == tokenizer.start == [1]


@pytest.mark.parametrize(('content', 'jinja', 'expected'), [
  ({}, None, ''),
  ({'chat_template': None}, None, ''),
  ({'chat_template': 'one'}, None, 'one'),
  ({'chat_template': 'one'}, 'two', 'two'),
  ({'chat_template': [{'name': 'tools', 'template': 't'}, {'name': 'default', 'template': 'd'}]},
   None, 'd'),
  ({'chat_template': [{'name': 'any', 'template': 't'}]}, None, 't'),
])
def test_the_chat_template_is_found(content, jinja, expected, tmp_path):
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(content))
  if jinja:
    (tmp_path / 'chat_template.jinja').write_text(jinja)
  assert settings.read(tmp_path).template == expected


@pytest.mark.parametrize(('name', 'content', 'message'), [
  ('tokenizer_config', '{', 'expected a JSON object'),
  ('tokenizer_config', '[]', 'expected a JSON object, found list'),
  ('tokenizer_config', '{"eos_token": 5}', "'eos_token': expected a text, found 5"),
  ('tokenizer_config', '{"eos_token": "<none>"}', "'eos_token': expected a token of the vocabular"),
  ('tokenizer_config', '{"add_bos_token": "yes"}', "'add_bos_token': expected true or false"),
  ('tokenizer_config', '{"eos_token": "<|end|>", "bos_token": "", "add_bos_token": true}',
   "'add_bos_token' is true, expected a bos_token"),
  ('tokenizer_config', '{"chat_template": 5}', "'chat_template': expected a text"),
  ('tokenizer_config', '{"chat_template": [{"name": "a", "template": "b"}, {"name": "c"}]}',
   "'chat_template': expected a text, or a list"),
  ('generation_config', '{"eos_token_id": "2"}', "'eos_token_id': expected an id"),
  ('generation_config', '{"eos_token_id": [true]}', "'eos_token_id': expected an id"),
])
def test_bad_settings_name_file_and_field(name, content, message, folder):
  (folder / f'{name}.json').write_text(content)
  with pytest.raises(BadInput, match=message) as error:
    Tokenizer.from_file(folder / 'tokenizer.json')
  assert str(folder) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.skipif(not DATA.is_dir(), reason='no folder ../shared/data')
def test_a_real_llama_tokenizer_starts_with_bos():
  found = Tokenizer.from_file(DATA / 'stories260K' / 'tokenizer.json')
  assert (found.bos, found.eos, found.pad, found.ends, found.start) == (1, 2, 0, (2,), [1])
  assert found.template == ''
  ids = found.encode_prompt('Once upon a time')
  assert ids[0] == 1 and found.decode_prompt(ids) == 'Once upon a time'


@pytest.mark.skipif(not DATA.is_dir(), reason='no folder ../shared/data')
def test_gpt2_parts_documents_and_starts_none(tmp_path):
  symbols = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  lines = (DATA / 'gpt2_bpe' / 'vocab.bpe').read_text(encoding='utf-8').splitlines()[1:]
  merges = [tuple(line.split(' ')) for line in lines]
  # GPT-2's order: printable bytes, then the others, then one token a merge.
  order = [*range(33, 127), *range(161, 173), *range(174, 256)]
  shown = [chr(byte) for byte in order]
  shown += [symbol for symbol in symbols if symbol not in shown]
  names = [*shown, *(left + right for left, right in merges), '<|endoftext|>']
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(
    vocab={name: index for index, name in enumerate(names)}, merges=merges))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(['<|endoftext|>'])
  for processor in (None, processors.ByteLevel(trim_offsets=False)):
    if processor:
      backend.post_processor = processor
    backend.save(str(tmp_path / 'tokenizer.json'))
    found = Tokenizer.from_file(tmp_path / 'tokenizer.json')
    assert (found.vocabulary, found.bos, found.eos, found.start) == (50257, 50256, 50256, [])
    assert found.encode_prompt('Hello world') == [15496, 995]
    assert found.pad == 0 and found.decode([15496, 995, 50256, 995]) == 'Hello world'
