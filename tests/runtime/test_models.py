"""Model folders in the place of runs, sampling and perplexity of them, and export."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from rlhf_jax import configs
from rlhf_jax.__main__ import main
from rlhf_jax.configs import BadInput
from rlhf_jax.data.builders import Place
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model import huggingface, transformer
from rlhf_jax.runtime import export, models, perplexity, sample, workdir

ROOT = pathlib.Path(__file__).parent.parent.parent
SHARED = ROOT.parent / 'shared' / 'data'
WORDS = ['a', 'big', 'cat', 'dog', 'met', 'ran', 'sat', 'the', '.', 'on', 'mat', 'and']


def tokenizer():
  """Words as tokens: ids 0 to 3 are special."""
  ids = {word: i for i, word in enumerate(['<pad>', '<s>', '</s>', '<unk>', *WORDS])}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token='<unk>'))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return Tokenizer(backend)


def folder(tmp_path, kind='policy', name='llama'):
  """A small random model of transformers with a tokenizer of words."""
  source = ROOT / 'tests' / 'model' / 'huggingface' / f'{name}-{kind}'
  made = tmp_path / f'{name}-{kind}'
  shutil.copytree(source, made)
  tokenizer().save(made / 'tokenizer.json')
  return made


def rankings(tmp_path, count=12):
  random = np.random.default_rng(0)
  file = tmp_path / 'rankings.jsonl'
  rows = [{'prompt': f'the {WORDS[i % 8]} {WORDS[(3 * i) % 7]}',
           'chosen': ' '.join(random.choice(WORDS, 4)), 'rejected': 'a a a'} for i in range(count)]
  file.write_text('\n'.join(map(json.dumps, rows)))
  return file


def test_own_model_and_preferences_in_one_line(tmp_path, capsys):
  """A folder and a file of preferences become a reward model and a policy, and folders again."""
  model, file = folder(tmp_path), rankings(tmp_path)
  command = ['run', str(ROOT / 'experiments' / 'own.py'), '--workdir', str(tmp_path / 'work'),
             '--model', str(model), '--rankings', str(file), '--prompt-length', '8',
             '--response-length', '6', '--reward.batch', '4', '--ppo.updates', '2',
             '--ppo.episodes', '8', '--ppo.minibatch', '4']
  assert main(command) == 0
  told = capsys.readouterr().out
  for words in ('SFT is skipped', 'prompts of the rankings', 'γ = 0'):
    assert words in told
  # Without demonstrations the best completions score 0 on average.
  summary = json.loads((tmp_path / 'work' / 'reward' / 'finished.json').read_text())['summary']
  assert summary['demonstrations'] == 11  # one ranking is held out
  for run, kind in (('ppo', 'policy'), ('reward', 'reward')):
    out = tmp_path / f'out-{run}'
    assert main(['export', '--workdir', str(tmp_path / 'work'), '--run', run,
                 '--out', str(out)]) == 0
    assert huggingface.describe(out).kind == kind
    card = (out / 'README.md').read_text()
    for words in ('## Recipe', str(model), 'rankings.jsonl', '## Limits', 'must not be used for'):
      assert words in card
  # In the place of a policy a reward model leaves nothing of it, and nothing of others unread.
  shutil.copytree(tmp_path / 'out-ppo', tmp_path / 'over')
  for name in ('chat_template.jinja', 'model-00002-of-00002.safetensors', 'vocab.json', 'notes'):
    (tmp_path / 'over' / name).write_text('old')
  assert main(['export', '--workdir', str(tmp_path / 'work'), '--run', 'reward',
               '--out', str(tmp_path / 'over')]) == 0
  assert sorted(path.name for path in (tmp_path / 'over').iterdir()) == sorted(
    ['notes', *(path.name for path in (tmp_path / 'out-reward').iterdir())])
  ours = sample.load(tmp_path / 'work', 'ppo')
  again = models.load(tmp_path / 'out-ppo')
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), ours.params, again.params))
  texts = ['the cat sat on the mat .', 'a dog ran']
  assert perplexity.perplexity(ours, texts) == perplexity.perplexity(again, texts)


def test_with_everything_given(tmp_path, capsys):
  model, file = folder(tmp_path, name='gpt_neox'), rankings(tmp_path)
  demonstrations = tmp_path / 'demonstrations.jsonl'
  demonstrations.write_text('\n'.join(
    json.dumps({'prompt': f'the {word}', 'response': 'sat on the mat .'}) for word in WORDS))
  text = tmp_path / 'text.txt'
  text.write_text('\n\n'.join(['the cat sat on the big mat .'] * 40))
  assert main(['run', str(ROOT / 'experiments' / 'own.py'), '--workdir', str(tmp_path / 'work'),
               '--model', str(model), '--rankings', str(file), '--demonstrations',
               str(demonstrations), '--prompts', str(demonstrations), '--text', str(text),
               '--prompt-length', '8', '--response-length', '8', '--sft.batch', '4',
                   '--sft.pretraining_share', '0.25',
               '--reward.batch', '4', '--ppo_ptx.updates', '1', '--ppo_ptx.episodes', '8',
               '--ppo_ptx.minibatch', '4']) == 0
  assert 'skipped' not in capsys.readouterr().out
  row = json.loads((tmp_path / 'work' / 'ppo_ptx' / 'metrics.jsonl').read_text())
  assert row['ptx_loss'] > 0


def test_own_says_what_it_needs(tmp_path, capsys):
  assert main(['run', str(ROOT / 'experiments' / 'own.py'), '--workdir', str(tmp_path)]) == 2
  assert '--model MODEL and --rankings RANKINGS' in capsys.readouterr().err
  assert main(['list', str(ROOT / 'experiments' / 'own.py')]) == 0
  assert main(['run', str(ROOT / 'experiments' / 'own.py'), '--help']) == 0
  assert '--demonstrations' in capsys.readouterr().out


def test_value_and_reward_from_folders(tmp_path):
  """A folder may be policy, reward model and value model of a PPO run; kinds are checked first."""
  policy, reward = folder(tmp_path), folder(tmp_path, 'reward')
  prompts = tmp_path / 'prompts.jsonl'
  prompts.write_text('\n'.join(json.dumps({'prompt': f'the {word}'}) for word in WORDS))
  file = tmp_path / 'experiment.py'
  code = """
from rlhf_jax.configs import PPO, Evaluate, Sampled, Source
prompts = (Source('prompts', ({prompts!r},)),)
sizes = dict(prompt_length=6, response_length=5)
runs = {{
  'ppo': PPO(policy={policy!r}, reward={reward!r}, value={value!r}, prompts=prompts, ptx_ratio=0.0,
             episodes=8, minibatch=4, updates=1, **sizes),
  'evaluation': Evaluate(models={{'base': Sampled({policy!r}), 'ppo': Sampled('ppo')}},
                         against='base', reward={reward!r}, prompts=prompts, batch=4, **sizes)}}
"""
  for value in (reward, policy):
    file.write_text(code.format(prompts=str(prompts), policy=str(policy), reward=str(reward),
                                value=str(value)))
    work = tmp_path / value.name
    assert main(['run', str(file), '--workdir', str(work)]) == 0
    results = json.loads((work / 'results.json').read_text())
    assert abs(results['models']['base']['kl']) < 1e-4
    for kept in (True, False):  # results.json stays behind
      if not kept:
        shutil.rmtree(work / 'evaluation')
      out = tmp_path / f'{value.name}-{kept}'
      assert main(['export', '--workdir', str(work), '--run', 'ppo', '--out', str(out)]) == 0
      assert ('evaluation of ppo: kl' in (out / 'README.md').read_text()) == kept
  file.write_text(code.format(prompts=str(prompts), policy=str(policy), reward=str(policy),
                              value=str(reward)))
  assert main(['run', str(file), '--workdir', str(tmp_path / 'wrong')]) == 2


def test_another_model_in_the_folder_is_another_configuration(tmp_path):
  model = folder(tmp_path)
  before = models.fingerprint(model)
  assert models.fingerprint(model) == before
  described, params = huggingface.describe(model), models.load(model).params
  params['norm']['scale'] = params['norm']['scale'] + 1
  huggingface.save(model, described.model, params, 'policy')
  assert models.fingerprint(model) != before


@pytest.mark.parametrize('share', [0, 0.2, 0.5, 0.9, 1])
def test_weights_anywhere_in_a_large_file_count(share, tmp_path):
  model, weights = folder(tmp_path), np.zeros(1 << 20, np.float32)
  safetensors.numpy.save_file({'a': weights}, model / 'model.safetensors')
  before = models.fingerprint(model)
  place = int(share * (len(weights) - (1 << 18)))
  weights[place:place + (1 << 18)] = 1  # a tensor of 1 MiB
  safetensors.numpy.save_file({'a': weights}, model / 'model.safetensors')
  assert models.fingerprint(model) != before


def test_refusals(tmp_path):
  with pytest.raises(BadInput, match='found nothing there'):
    models.load(tmp_path / 'nowhere')
  with pytest.raises(BadInput, match=r'expected config\.json of a model'):
    models.load(tmp_path)
  model = folder(tmp_path)
  words = {f'w{i}': i for i in range(60)} | {'</s>': 60}
  many = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w0'))
  Tokenizer(many).save(model / 'tokenizer.json')
  with pytest.raises(BadInput, match=r'61 ids, the embedding of config\.json 50'):
    models.load(model)
  with pytest.raises(BadInput, match='is a reward model'):
    sample.load(None, str(folder(tmp_path, 'reward')))


def test_a_command_names_one_model(tmp_path, capsys):
  for words in ([], ['--model', str(tmp_path), '--run', 'sft'], ['--run', 'sft']):
    assert main(['sample', *words, '--prompt', 'the']) == 2
    assert 'either --model FOLDER, or --workdir DIR and --run RUN' in capsys.readouterr().err


def test_export_refuses(tmp_path):
  with pytest.raises(BadInput, match="has no run 'sft'"):
    export.export(tmp_path, 'sft', tmp_path / 'out')
  for name in ('sft', 'other'):
    workdir.write_json(tmp_path / name / 'config.json', workdir.describe(configs.Language(), {}))
  before = (tmp_path / 'other' / 'config.json').read_bytes()
  with pytest.raises(BadInput, match=r'--out .*other: is the folder of a run'):
    export.export(tmp_path, 'sft', tmp_path / 'other')
  assert (tmp_path / 'other' / 'config.json').read_bytes() == before


def test_perplexity_is_over_every_text_even_twice(tmp_path):
  file = tmp_path / 'a.jsonl'
  same = 'the cat sat ' * 40
  texts = ['a', 'a', same, same + 'b']
  file.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts) + '{"txt": 1}\n')
  found, refused = perplexity.texts_of([file, file], Place(tmp_path, None, True))
  assert found == texts * 2 and refused == 2
  with pytest.raises(BadInput, match='nowhere'):
    perplexity.texts_of([tmp_path / 'nowhere.txt'], Place(tmp_path))


def test_perplexity_by_hand(tmp_path, capsys):
  """Mean over tokens, not over texts; each text begins with bos and is cut at the context."""
  parent = models.load(folder(tmp_path))
  texts = ['the cat sat', ' '.join(['dog'] * 60)]
  found = perplexity.perplexity(parent, texts)
  total = count = 0
  for text in texts:
    ids = [1, *parent.tokenizer.encode(text)][:parent.model.context]
    tokens = np.array([ids])
    hidden = transformer.hidden(parent.model, parent.params, tokens, np.ones_like(tokens, bool))
    logits = np.asarray(hidden @ transformer.unembedding(parent.params).T)[0, :, :50]
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total -= logs[np.arange(len(ids) - 1), ids[1:]].sum()
    count += len(ids) - 1
  assert (found.tokens, found.texts, found.cut) == (count, 2, 1)
  alone = perplexity.perplexity(parent, texts[:1])
  perplexity.show(alone)
  assert alone.interval is None and 'interval' not in capsys.readouterr().out
  np.testing.assert_allclose(found.nats, total / count, rtol=1e-5)


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='../shared/data is not here')


@needs_shared
def test_a_real_model_predicts_as_published(capsys):
  assert main(['perplexity', '--model', str(SHARED / 'stories260K'), '--text',
               str(SHARED / 'tinystories_sample' / 'tinystories_1000.json'), '--limit', '40']) == 0
  last = capsys.readouterr().out.splitlines()[-1].split()
  assert last[:2] == ['nats_per_token', '1.307'] and last[2] == 'tokens' and int(last[3]) > 10000


@needs_shared
def test_a_real_model_tells_its_story(capsys):
  assert main(['sample', '--model', str(SHARED / 'stories260K'), '--prompt', '',
               '--temperature', '0']) == 0
  assert capsys.readouterr().out.startswith(
    'Once upon a time, there was a little girl named Lily. She loved to play outside in the park. '
    'One day, she saw a big, red ball. She wanted to play with it, but it was too high')


def test_a_mesh_that_does_not_divide_a_parent_is_told_before_it_is_read(tmp_path, capsys):
  if len(jax.devices()) < 8:
    pytest.skip('wants more devices')
  model, file = folder(tmp_path), rankings(tmp_path)
  command = ['run', str(ROOT / 'experiments' / 'own.py'), '--workdir', str(tmp_path / 'work'),
             '--model', str(model), '--rankings', str(file), '--prompt-length', '8',
             '--response-length', '6', '--reward.batch', '4', '--reward.mesh.tensor', '8']
  assert main([*command, 'reward']) == 2
  assert (f'{model}: model.heads (heads) = 4 is not divided by mesh axis tensor of 8 devices'
          in capsys.readouterr().err.strip().splitlines()[-1])
