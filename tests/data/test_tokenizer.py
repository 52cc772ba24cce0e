"""The tokenizer: nothing is lost, nothing is injected, padding is not the end."""

import json

import pytest
import tokenizers

from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import Chat
from rlhf_jax.data.tokenizer import Tokenizer

TEXTS = ['the cat sat on the mat .', 'the dog sat on the cat .'] * 20


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer.train(TEXTS, 300)


def test_special_tokens_are_three_and_distinct(tokenizer):
  assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (0, 1, 2)
  assert 259 < tokenizer.vocabulary <= 300


def test_every_byte_survives(tokenizer):
  # All code points up to U+07FF use every lead and continuation byte of two-byte UTF-8; the last
  # characters bring the lead bytes of three and four.
  text = 'a' + ''.join(map(chr, range(0x800))) + '한€😀\U0010fffd' + 'z'
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_in_a_text_are_letters(tokenizer):
  text = 'a <|eos|> b <|pad|><|bos|>'
  ids = tokenizer.encode(text)
  assert not {tokenizer.pad, tokenizer.bos, tokenizer.eos} & set(ids)
  assert tokenizer.decode(ids) == text
  assert tokenizer.encode_all([text, 'x']) == [ids, tokenizer.encode('x')]


def test_prompts_start_with_bos_and_responses_with_a_space(tokenizer):
  assert tokenizer.encode_prompt('the cat') == [1, *tokenizer.encode('the cat')]
  assert tokenizer.encode_response('the', 'cat') == tokenizer.encode(' cat')
  assert tokenizer.encode_response('the ', 'cat') == tokenizer.encode('cat')
  assert tokenizer.encode_response('the\n', 'cat') == tokenizer.encode('cat')
  assert tokenizer.encode_response('the', '\ncat') == tokenizer.encode('\ncat')
  assert tokenizer.encode_response('the', '') == []


def sentence_piece(folder, scheme, template=''):
  """A BPE as SentencePiece's are written: '▁' for a space, which it puts before texts, too."""
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<unk>', byte_fallback=True))
  spaces = {'prepend_scheme': 'first' if scheme == 'normalizer' else scheme}
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(**spaces)
  backend.train_from_iterator(['the dog sat on the cat .', 'Ask Say Yes'] * 20,
                              tokenizers.trainers.BpeTrainer(
    vocab_size=120, special_tokens=['<unk>', '<s>', '</s>', '<|say|>'], show_progress=False))
  content = json.loads(backend.to_str())
  vocabulary = content['model']['vocab']
  for byte in range(256):
    vocabulary[f'<0x{byte:02X}>'] = len(vocabulary)
  backend = tokenizers.Tokenizer.from_str(json.dumps(content))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False, **spaces)
  if scheme == 'normalizer':
    backend.normalizer = tokenizers.normalizers.Sequence([
      tokenizers.normalizers.Prepend('▁'), tokenizers.normalizers.Replace(' ', '▁')])
    backend = tokenizers.Tokenizer.from_str(json.dumps(
      json.loads(backend.to_str()) | {'pre_tokenizer': None}))
  folder.mkdir()
  backend.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps(
    {'bos_token': '<s>', 'eos_token': '</s>'} | ({'chat_template': template} if template else {})))
  return Tokenizer.from_file(folder / 'tokenizer.json')


SCHEMES = pytest.mark.parametrize('scheme', ['normalizer', 'first', 'always'])


@SCHEMES
def test_a_response_goes_on_from_its_prompt_as_in_one_text(scheme, tmp_path):
  found = sentence_piece(tmp_path / 'x', scheme)
  dog = found.encode_response('Ask', 'the dog')
  assert dog == found.encode('the dog') != found.encode_response('Ask\n', 'the dog')
  for prompt, response, between in [
      ('Ask', 'the dog', ' '), ('Ask', ' the dog', ''), ('Ask\n', 'the dog', ''),
      ('Ask\nSay:\n\n', 'the dog', ''), ('Ask', '\nthe dog', ''), ('Ask\n', '\n\nthe', ''),
      ('Ask\n', '</s> 7', '')]:
    whole = found.encode(prompt + between + response)
    assert found.encode(prompt) + found.encode_response(prompt, response) == whole, prompt
  assert found.encode_response('Ask\n', '') == []
  many = ['the dog', '', '\nthe'], ['Ask\n', 'Ask\n', 'Ask']
  assert found.encode_responses(*many[::-1]) == [
    found.encode_response(prompt, response) for response, prompt in zip(*many, strict=True)]


TURN = "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>\n' }}{% endfor %}"
START = '{% if add_generation_prompt %}{{ START }}{% endif %}'
ASK = ("{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[Ask] ' + m.content + ' [Say]' }}"
       '{% else %}')
TEMPLATES = {
  'line': TURN + START.replace('START', "'<s>assistant\n'"),
  'token': TURN.replace("m.role + '\n'", "'<|say|>'") + START.replace('START', "'<s><|say|>'"),
  'space': ASK + "{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}",
  'tight': ASK + "{{ m.content + '</s>' }}{% endif %}{% endfor %}",
}


@SCHEMES
@pytest.mark.parametrize('name', TEMPLATES)
def test_a_response_goes_on_from_a_chat_template_as_in_one_text(name, scheme, tmp_path):
  found = sentence_piece(tmp_path / 'x', scheme, TEMPLATES[name])
  prompt = found.render('the cat')
  assert prompt.endswith({'line': 'assistant\n', 'token': '<|say|>'}.get(name, '[Say]'))
  whole = prompt + (' ' if name == 'space' else '') + 'the dog sat'
  assert found.encode_prompt('the cat') + found.encode_response('the cat', 'the dog sat') == (
    found._with_specials.encode(whole, add_special_tokens=False).ids)
  # and a special token among a user's letters changes nothing around it
  talk = [{'role': role, 'content': content} for role, content in (
    ('user', 'the cat'), ('assistant', '\nthe dog'), ('user', 'sat on'))]
  plain = found.encode_prompt(Chat(talk))
  assert found._encode_pieces(found.render(Chat(talk)), {}) == plain
  written = found.encode_prompt(Chat([*talk[:2], {'role': 'user', 'content': '</s>'}]))
  alike = [ours == theirs for ours, theirs in zip(written, plain, strict=False)]
  assert alike.index(False) >= len(found.encode_prompt(Chat(talk[:1]))) + 2


def test_decoding_ends_at_eos(tokenizer):
  ids = tokenizer.encode_response('the', 'cat sat')
  assert tokenizer.decode([0, 0, 1, *ids, 2, *ids, 2, 0]) == 'cat sat'
  assert tokenizer.decode([2, *ids]) == ''


def test_training_saving_and_reading_agree(tokenizer, tmp_path):
  assert Tokenizer.train(TEXTS, 300).json == tokenizer.json
  tokenizer.save(tmp_path / 'deep' / 'tokenizer.json')
  again = Tokenizer.from_file(tmp_path / 'deep' / 'tokenizer.json')
  assert again.json == tokenizer.json
  assert again.encode('the <|eos|> cat') == tokenizer.encode('the <|eos|> cat')
  assert (again.pad, again.bos, again.eos, again.vocabulary) == (0, 1, 2, tokenizer.vocabulary)


def test_head_is_the_text_of_the_first_ids(tokenizer):
  text = 'the cat sat on the mat .'
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids[:4]) == tokenizer.head(text, 4).strip()
  assert tokenizer.head(text, len(ids) + 5) == text
  assert tokenizer.head('', 3) == ''


def test_a_published_file_without_padding_gets_one_that_is_not_eos(tokenizer, tmp_path):
  content = json.loads(tokenizer.json)
  rename = {'<|pad|>': 'unused', '<|bos|>': '<s>', '<|eos|>': '</s>'}
  for token in content['added_tokens']:
    token['content'] = rename[token['content']]
  content['added_tokens'] = content['added_tokens'][1:]
  content['model']['vocab'] = {rename.get(k, k): v for k, v in content['model']['vocab'].items()}
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  found = Tokenizer.from_file(tmp_path / 'tokenizer.json')
  assert (found.bos, found.eos) == (1, 2)
  assert 0 <= found.pad < found.vocabulary and found.pad != found.eos
  assert found.encode('the </s> cat').count(2) == 0


@pytest.mark.parametrize(('content', 'message'), [
  (None, 'no such file'), ('{}', 'expected a tokenizer.json'), ('no', 'expected a tokenizer.json')])
def test_a_bad_file_is_named(content, message, tmp_path):
  path = tmp_path / 'tokenizer.json'
  if content is not None:
    path.write_text(content)
  with pytest.raises(BadInput, match=message) as error:
    Tokenizer.from_file(path)
  assert str(path) in str(error.value)


def test_bad_settings_are_refused(tokenizer, tmp_path):
  with pytest.raises(BadInput, match='at least 259'):
    Tokenizer.train(TEXTS, 100)
  content = json.loads(tokenizer.json.replace('<|eos|>', '<|other|>'))
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  with pytest.raises(BadInput, match='token that ends a text'):
    Tokenizer.from_file(tmp_path / 'tokenizer.json')
