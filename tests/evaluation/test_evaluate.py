"""A whole evaluation of tiny untrained models: keys, sanity values, samples that are independent,
resuming."""

import dataclasses
import json
import math
import types

import jax
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.data import builders, records, tokenizer
from rlhf_jax.evaluation import evaluate
from rlhf_jax.model import responses, transformer

MODELS = {
  'gpt': configs.Sampled('gpt'),
  'sft': configs.Sampled('sft'),
  'sft_t05': configs.Sampled('sft', temperature=0.5),
  'sft_best_of_4': configs.Sampled('sft', best_of=4),
  'gpt_prompted': configs.Sampled('gpt', prefix='please '),
}
LABELERS = ('x', 'y', 'u', 'v')
NAMED = (
  'gold',
  'proxy',
  'kl',
  'response_length',
  'eos_rate',
  'hallucination_rate',
  'truthful_rate',
  'rude_rate',
  'constraint_rate',
  'pretraining_loss',
  'pretraining_loss_change',
)


def judge(prompt, texts, labeler):
  """Short texts are good; the flags apply to every second prompt."""
  lengths = [len(text) for text in texts]
  order = sorted(set(lengths))
  flags = tuple(
    {'rude': 'a' in text} | ({'truthful': True} if prompt.meta['n'] % 2 else {}) for text in texts
  )
  return records.Judgement(
    tuple(-float(n) for n in lengths), tuple(order.index(n) + 1 for n in lengths), flags
  )


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(config, parents, place) of 300 prompts, ten rankings by four labelers, three models of one
  layer."""
  folder = tmp_path_factory.mktemp('evaluate')
  words = tokenizer.Tokenizer.train(['please tell us of the sea and the sun ' * 20], 280)
  shape = configs.Model(layers=1, width=16, heads=2, context=40, vocabulary=words.vocabulary)

  def parent(seed, **given):
    params = transformer.init(shape, jax.random.key(seed))
    return types.SimpleNamespace(model=shape, tokenizer=words, params=params, folder=None, **given)

  language = {name: parent(seed) for seed, name in enumerate(('gpt', 'sft'))}
  reward = parent(1, config=configs.Reward(data='rankings'))
  reward.params = transformer.with_scalar_head(shape, reward.params, jax.random.key(5))

  def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)

  prompts = write(
    folder / 'prompts.jsonl',
    [
      {'prompt': f'tell us of {i}', 'category': ('sea', 'sun')[i % 2], 'meta': {'n': i}}
      for i in range(300)
    ],
  )
  text = write(folder / 'text.jsonl', [{'text': f'the sea and the sun {i}'} for i in range(100)])
  row = lambda i, labeler: {
    'prompt': f'tell us of {i}',
    'completions': ['the sea', 'sun', 'the sun and us …'],
    'ranks': [1, 2, 3] if labeler in 'xuv' else [2, 1, 3],
    'labeler': labeler,
    'meta': {'n': i},
  }
  write(folder / 'rankings' / 'rankings.jsonl', [row(i, 'xy'[i % 2]) for i in range(10)])
  write(
    folder / 'heldout' / 'rankings.jsonl', [row(i, name) for i in range(10) for name in LABELERS]
  )
  source = lambda kind, path: (configs.Source(kind=kind, files=(path,)),)
  config = configs.Evaluate(
    models=MODELS,
    reward='reward',
    prompts=source('prompts', prompts),
    text=source('text', text),
    judge='ours',
    rankings='heldout',
    prompt_length=16,
    response_length=6,
    text_length=24,
    batch=128,
  )
  parents = {f'models.{name}': language[sampled.run] for name, sampled in MODELS.items()} | {
    'reward': reward
  }
  return config, parents, builders.Place(folder)


@pytest.fixture(scope='module')
def told(made, quick_compilation):
  config, parents, place = made
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(records, 'load_judge', lambda name: judge)
    return evaluate.run(config, parents, place, place.workdir / 'evaluation', 'evaluation')


def test_every_key_of_results_json(told):
  assert (
    set(told['models']) == set(MODELS) and told['prompts'] == 300 and told['refused_prompts'] == 0
  )
  for entry in told['models'].values():
    assert (
      set(entry['win_rate_vs_sft']) == {'mean', 'low', 'high', 'n'}
      and entry['win_rate_vs_sft']['n'] == 300
    )
    for name in NAMED:
      assert name in entry and f'{name}_ci' in entry
      if entry[name] is None:
        assert name in ('hallucination_rate', 'constraint_rate') and entry[f'{name}_ci'] is None
      else:
        assert entry[f'{name}_ci'][0] <= entry[name] <= entry[f'{name}_ci'][1]
    assert set(entry['by_category']) == {'sea', 'sun'} and entry['truthful_rate_n'] == 150
  assert {
    'agreement_training',
    'agreement_training_ci',
    'agreement_heldout',
    'agreement_heldout_ci',
  } <= set(told['labelers'])
  assert {
    'accuracy',
    'accuracy_ci',
    'accuracy_heldout_labelers',
    'pairs',
    'ece',
    'mean_sft',
    'std_sft',
    'accuracy_gold',
  } <= set(told['reward_model'])
  json.dumps(told, allow_nan=False)


def test_the_baseline_against_itself(told):
  entry = told['models']['sft']
  assert entry['win_rate_vs_sft']['low'] < .5 < entry['win_rate_vs_sft']['high']
  assert abs(entry['kl']) < 1e-4  # sampler and scorer are two programs of one model
  assert entry['win_rate_vs_sft']['mean'] != .5  # two samples, not one counted twice


def test_kl_of_other_ways_to_sample(told):
  models = told['models']
  # At temperature 1 with the baseline's own parameters only the choice is left: ln 4 − 3/4.
  assert models['sft_best_of_4']['kl'] == pytest.approx(math.log(4) - .75, abs=1e-3)
  assert models['sft_t05']['kl'] > 0 and models['gpt']['kl'] > 0
  assert models['gpt']['kl'] != models['gpt_prompted']['kl']


def test_the_best_of_four_has_the_better_proxy_and_models_of_one_run_one_loss(told):
  models = told['models']
  assert models['sft_best_of_4']['proxy_ci'][0] > models['sft']['proxy_ci'][1]
  assert (
    models['sft_t05']['pretraining_loss']
    == models['sft']['pretraining_loss']
    != models['gpt']['pretraining_loss']
  )
  # An untrained model knows nothing: ln V nats a token.
  assert models['sft']['pretraining_loss'] == pytest.approx(math.log(280), abs=.3)
  assert told['reward_model']['mean_sft'] == models['sft']['proxy']


def test_labelers_are_told_apart_by_whom_the_reward_model_learnt_from(told):
  labelers = told['labelers']
  assert (
    labelers['agreement_training'] == pytest.approx(2 / 3) and labelers['agreement_heldout'] == 1
  )
  assert {
    name: entry['training'] for name, entry in told['reward_model']['by_labeler'].items()
  } == {'x': True, 'y': True, 'u': False, 'v': False}
  assert told['reward_model']['pairs'] == 2 * 10 * 3


def test_a_reward_model_of_another_workdir_learnt_from_the_rankings_beside_it(made, tmp_path):
  config, parents, place = made
  reward = types.SimpleNamespace(**vars(parents['reward']) | {'folder': tmp_path / 'reward'})
  config = dataclasses.replace(
    config, models={'sft': MODELS['sft']}, judge='', text=(), rankings=(
      configs.Source('rankings', (str(place.workdir / 'heldout' / 'rankings.jsonl'),)),))

  def trained_on(name):
    told = evaluate.run(config, parents | {'reward': reward}, place, tmp_path / name, 'evaluation')
    return {name for name, one in told['reward_model']['by_labeler'].items() if one['training']}

  assert trained_on('unknown') == set(LABELERS)
  (tmp_path / 'rankings').mkdir()
  (tmp_path / 'rankings' / 'rankings.jsonl').write_text(json.dumps({
    'prompt': 'tell us of 1', 'completions': ['a', 'b'], 'ranks': [1, 2], 'labeler': 'u'}) + '\n')
  assert trained_on('known') == {'u'}


def test_the_rankings_of_the_training_may_be_longer_than_those_evaluated_on(made, tmp_path):
  config, parents, place = made
  reward = types.SimpleNamespace(**vars(parents['reward']) | {'folder': tmp_path / 'reward'})
  (tmp_path / 'rankings').mkdir()
  (tmp_path / 'rankings' / 'rankings.jsonl').write_text(json.dumps({
    'prompt': 'tell us of the sea ' * 9, 'completions': ['a', 'b'], 'ranks': [1, 2],
    'labeler': 'u'}) + '\n')
  config = dataclasses.replace(config, models={'sft': MODELS['sft']}, judge='', text=(), rankings=(
    configs.Source('rankings', (str(place.workdir / 'heldout' / 'rankings.jsonl'),)),))
  told = evaluate.run(config, parents | {'reward': reward}, place, tmp_path / 'e', 'evaluation')
  assert {name for name, one in told['reward_model']['by_labeler'].items() if one['training']} == {
    'u'}


def test_rankings_are_scored_on_the_tokens_that_were_trained_on(made, tmp_path, monkeypatch):
  config, parents, place = made
  path, tokenizer = tmp_path / 'ended.jsonl', parents['reward'].tokenizer
  row = {'prompt': 'tell us of 1', 'completions': ['the sun', 'sun …', 'us …', 'the sea and the'],
         'ranks': [1, 2, 3, 4]}
  path.write_text(''.join(json.dumps(row | more) + '\n' for more in (
    {'ended': [False, True, False, True], 'labeler': 'x'}, {'labeler': 'y'})))
  source = (configs.Source('rankings', (str(path),)),)
  config = dataclasses.replace(config, judge='', text=(), models={'sft': MODELS['sft']},
                               rankings=source)
  asked, score_rows = [], responses.score_rows
  monkeypatch.setattr(responses, 'score_rows', lambda model, params, tokens, valid, batch: (
    asked.append((tokens, valid)) or score_rows(model, params, tokens, valid, batch)))
  evaluate.run(config, parents, place, tmp_path, 'evaluation')
  built = builders.build(source, tokenizer, builders.Place(tmp_path), builders.Limits(16, 6, 0, 4))
  for index, which in enumerate(('tokens', 'valid')):
    np.testing.assert_array_equal(
      asked[0][index], np.concatenate([built.train[i][which] for i in (0, 1)]))


def test_rows_hold_what_was_judged(told, made):
  _, parents, place = made
  path = place.workdir / 'evaluation' / 'evaluations' / 'gpt.jsonl'
  rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  assert [row['prompt'] for row in rows] == [f'tell us of {i}' for i in range(300)]
  wins = [row['judgement']['win'] for row in rows]
  assert np.mean(wins) == pytest.approx(told['models']['gpt']['win_rate_vs_sft']['mean'])
  for row in rows[:20]:
    assert row['judgement']['score'] == -len(row['response'])
    assert row['ended'] == (not row['response'].endswith('…')) and 1 <= row['length'] <= 6
  reward = parents['reward']
  scores = responses.score_responses(
    reward.model,
    reward.params,
    reward.tokenizer,
    [row['prompt'] for row in rows[:20] if not row['ended']],
    [row['response'] for row in rows[:20] if not row['ended']],
    prompt_length=16,
    response_length=6,
    batch=128,
  )
  assert len(scores) and all(np.isfinite(scores))


def test_models_already_evaluated_are_not_sampled_again(told, made, monkeypatch):
  config, parents, place = made
  folder = place.workdir / 'evaluation'
  (folder / 'evaluations' / 'sft.json').unlink()
  rows = (folder / 'evaluations' / 'sft.jsonl').read_bytes()
  sampled, respond = [], responses.respond
  monkeypatch.setattr(records, 'load_judge', lambda name: judge)
  monkeypatch.setattr(
    responses, 'respond', lambda *given, **named: sampled.append(1) or respond(*given, **named)
  )
  assert evaluate.run(config, parents, place, folder, 'evaluation') == told
  assert len(sampled) == 2 * 3  # its own and the reference, in batches of 128
  assert (folder / 'evaluations' / 'sft.jsonl').read_bytes() == rows


def test_models_evaluated_on_other_prompts_are_evaluated_again(made, tmp_path):
  config, parents, place = made

  def won(count):
    path = tmp_path / 'few.jsonl'
    path.write_text(''.join(json.dumps({'prompt': f'tell us of {i}'}) + '\n' for i in range(count)))
    changed = dataclasses.replace(
      config, judge='', text=(), rankings='', models={k: MODELS[k] for k in ('sft', 'gpt')},
      prompts=(configs.Source('prompts', (str(path),)),))
    told = evaluate.run(changed, parents, place, tmp_path / 'evaluation', 'evaluation')
    assert all('of' not in entry for entry in told['models'].values())
    return {name: entry['win_rate_vs_sft']['n'] for name, entry in told['models'].items()}

  assert won(12) == {'sft': 12, 'gpt': 12}
  (tmp_path / 'evaluation' / 'evaluations' / 'gpt.json').unlink()  # as a kill leaves it
  assert won(7) == {'sft': 7, 'gpt': 7}


@pytest.mark.parametrize('calls', [2, 4, 17])
def test_killed_in_the_middle_of_a_model_it_samples_no_batch_twice(
    told, made, tmp_path, monkeypatch, calls):
  config, parents, place = made
  left, respond, folder = [calls], responses.respond, tmp_path / 'evaluation'
  monkeypatch.setattr(records, 'load_judge', lambda name: judge)

  def until_killed(*given, **named):
    left[0] -= 1
    if left[0] < 0:
      raise KeyboardInterrupt
    return respond(*given, **named)

  monkeypatch.setattr(responses, 'respond', until_killed)
  with pytest.raises(KeyboardInterrupt):
    evaluate.run(config, parents, place, folder, 'evaluation')
  last = max((folder / 'pieces').glob('*-*/*/*.json'), key=lambda path: path.stat().st_mtime_ns)
  last.with_name(f'{int(last.stem) + 1:06d}.json').write_bytes(b'{"answers": [{"te')
  left[0] = 3 * (1 + 4) + 10 - calls  # the reference, four models, one of 1200 samples
  scored = []
  monkeypatch.setattr(evaluate, '_reward_entry', lambda *_: scored.append(1))
  assert evaluate.run(config, parents, place, folder, 'evaluation') == told
  assert left == [0] and not scored and not (folder / 'pieces').exists()
  for path in (place.workdir / 'evaluation' / 'evaluations').iterdir():
    assert path.read_bytes() == (folder / 'evaluations' / path.name).read_bytes()


def test_without_judge_and_text(made, tmp_path):
  config, parents, place = made
  config = dataclasses.replace(
    config,
    judge='',
    text=(),
    models={k: MODELS[k] for k in ('sft', 'gpt')},
    rankings=(
      configs.Source(kind='rankings', files=(str(place.workdir / 'heldout' / 'rankings.jsonl'),)),
    ),
  )
  told = evaluate.run(config, parents, place, tmp_path, 'evaluation')
  entry = told['models']['gpt']
  assert (
    entry['gold'] is None and entry['pretraining_loss'] is None and entry['truthful_rate'] is None
  )
  assert 0 < entry['win_rate_vs_sft']['mean'] < 1 and entry['judge'] == 'reward model'
  assert told['reward_model']['accuracy_gold'] is None and told['reward_model']['pairs'] == 60


@pytest.mark.parametrize('changes, message', [
  ({'against': 'sfd'}, 'none of the models'),
  ({'reward': ''}, 'best of 4'),
  ({'models': MODELS | {'gpt': configs.Sampled('gpt', best_of=0)}}, 'best_of must be'),
  ({'models': MODELS | {'gpt': configs.Sampled('gpt', prefix='please ' * 40)}}, 'context is 40'),
  ({'rankings': 'nowhere'}, "run 'nowhere' left no"), ({}, 'another tokenizer than')])
def test_bad_input(made, tmp_path, monkeypatch, changes, message):
  config, parents, place = made
  monkeypatch.setattr(records, 'load_judge', lambda name: judge)
  if 'rankings' in changes:
    changes = changes | {'models': {'sft': MODELS['sft']}, 'text': ()}
  if not changes:  # ids of one vocabulary mean nothing to a model of another
    other = types.SimpleNamespace(json='{"model": "another"}', encode=lambda text: [])
    parents = parents | {'models.gpt': types.SimpleNamespace(
      **vars(parents['models.gpt']) | {'tokenizer': other})}
  with pytest.raises(configs.BadInput, match=message):
    evaluate.run(dataclasses.replace(config, **changes), parents, place, tmp_path, 'evaluation')
