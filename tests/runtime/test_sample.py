"""`sample` on exported models that were never trained."""

import io
import json

import jax
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.data.builders import Place
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model import responses, transformer
from rlhf_jax.runtime import checkpoint, sample, workdir

PROMPTS = ['one two', 'three', 'two two two']


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A workdir of sft, a reward model from it, a PPO run that equals sft, one that does not."""
  folder = tmp_path_factory.mktemp('sample')
  (folder / 'prompts.jsonl').write_text(''.join(json.dumps({'prompt': p}) + '\n' for p in PROMPTS))
  (folder / 'long.jsonl').write_text(json.dumps({'prompt': 'One. Two. ' + 'three ' * 20}) + '\n')
  tokenizer = Tokenizer.train(['one two three'], 300)
  model = configs.Model(layers=1, width=16, heads=2, context=24, vocabulary=tokenizer.vocabulary)
  sizes = {'prompt_length': 12, 'response_length': 6}
  source = (configs.Source(kind='prompts', files=('prompts.jsonl',)),)
  runs = {
    'sft': configs.Language(model=model, **sizes),
    'reward': configs.Reward(init_from='sft', **sizes),
    'same': configs.PPO(prompts=source, **sizes),
    'other': configs.PPO(prompts=source, reward='mine.py:f', **sizes),
    'cut': configs.PPO(prompts=(configs.Source(kind='prompts', files=('long.jsonl',)),),
                       prompt_cut='head', **sizes),
  }
  for name, config in runs.items():
    key = jax.random.key(1 if name == 'other' else 0)
    params = transformer.init(model, key, name == 'reward')
    workdir.write_json(folder / name / 'config.json', workdir.describe(config, {}))
    checkpoint.export(folder / name, 'policy', model, tokenizer, {'params': params})
    workdir.write_json(folder / name / 'finished.json', {'seconds': 1.0})
  return Place(folder, folder, False)


def test_a_prompt_given_n_times(place):
  found = sample.sample(place, 'same', 'one two', 5, seed=2)
  assert len(found) == 5 and len({one.response.text for one in found}) > 1
  assert all(one.prompt == 'one two' and one.response.length <= 6 for one in found)
  assert [one.response for one in sample.sample(place, 'same', 'one two', 5, seed=2)] == [
    one.response for one in found]


def test_reward_and_kl_where_those_models_exist(place):
  same, other = (sample.sample(place, run, 'one two', 3) for run in ('same', 'other'))
  assert all(abs(one.kl) < 1e-4 for one in same)
  assert any(abs(one.kl) > 1e-2 for one in other)
  assert all(one.reward is None for one in other)  # a reward of the user's own
  reward = sample.checkpoint.load_parent(place.workdir / 'reward')
  scores = responses.score_responses(
    reward.model, reward.params, reward.tokenizer, ['one two'] * 3, [one.response for one in same],
    prompt_length=12, response_length=6, batch=3)
  np.testing.assert_allclose([one.reward for one in same], scores, rtol=1e-5)
  sft, = sample.sample(place, 'sft', 'one two')
  assert sft.kl is None and sft.reward is not None


def test_the_kl_is_of_the_temperature_it_was_drawn_with(place):
  found = sample.sample(place, 'other', 'one two', 3, temperature=0.5)
  sizes = {'prompt_length': 12, 'response_length': 6, 'batch': 3}
  sums = []
  for run in ('other', 'sft'):
    one = sample.checkpoint.load_parent(place.workdir / run)
    logprobs, mask = responses.logprob_responses(
      one.model, one.params, one.tokenizer, ['one two'] * 3, [each.response for each in found],
      temperature=0.5, **sizes)
    sums.append(np.where(mask, logprobs, 0.0).sum(axis=1))
  np.testing.assert_allclose([one.kl for one in found], sums[0] - sums[1], atol=1e-4)
  greedy = sample.sample(place, 'other', 'one two', temperature=0.0)
  assert np.isfinite(greedy[0].kl)


def test_a_foreign_folder_in_the_workdir_is_no_hindrance(place):
  """As `export --out DIR/exported` leaves one."""
  foreign = place.workdir / 'exported' / 'config.json'
  foreign.parent.mkdir()
  foreign.write_text(json.dumps({'architectures': ['LlamaForCausalLM'], 'model_type': 'llama'}))
  try:
    sft, = sample.sample(place, 'sft', 'one two')
    assert sft.reward is not None
  finally:
    foreign.unlink()
    foreign.parent.rmdir()


def test_bytes_that_are_no_text_are_refused(place, monkeypatch):
  with pytest.raises(configs.BadInput, match=r"--prompt: is not UTF-8 text \(character 5 of"):
    sample.sample(place, 'sft', 'one \udcff')
  for errors, said in (('surrogateescape', 'character 2'), ('strict', 'at byte 1')):
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(b'a\xff\n'), 'utf-8', errors))
    with pytest.raises(configs.BadInput, match=f'stdin: is not UTF-8 text .*{said}'):
      sample.sample(place, 'sft')


def test_without_a_prompt_the_runs_own_or_stdin(place, monkeypatch):
  assert [one.prompt for one in sample.sample(place, 'same', count=2)] == PROMPTS[:2]
  assert [one.prompt for one in sample.sample(place, 'cut')] == [
    'One. Two. three three three three']
  monkeypatch.setattr('sys.stdin', io.StringIO('three\ntwo\n'))
  assert [one.prompt for one in sample.sample(place, 'sft')] == ['three', 'two']
  monkeypatch.setattr('sys.stdin', io.StringIO('three\ntwo\n'))
  assert [one.prompt for one in sample.sample(place, 'sft', count=1)] == ['three']
  with pytest.raises(configs.BadInput, match='give --prompt TEXT'):
    sample.sample(place, 'sft')


def test_limits(place):
  one, = sample.sample(place, 'sft', 'one two', max_tokens=3, temperature=0.0)
  assert one.response.length <= 3
  long = 'one two three ' * 9
  with pytest.raises(configs.BadInput, match=r"do not fit sft's context of 24"):
    sample.sample(place, 'sft', long)
  with pytest.raises(configs.BadInput, match='must not be negative'):
    sample.sample(place, 'sft', 'one', max_tokens=-1)


@pytest.mark.parametrize('temperature', [-1.0, float('nan'), float('inf')])
def test_a_temperature_that_is_none(place, temperature):
  with pytest.raises(configs.BadInput, match=f'--temperature is {temperature}; expected a number '):
    sample.sample(place, 'sft', 'one', temperature=temperature)


@pytest.mark.parametrize('seed', [-1, 2**31, 99999999999999999999])
def test_a_seed_that_no_key_can_hold(place, seed):
  with pytest.raises(configs.BadInput, match=f'--seed is {seed}; expected from 0 to 2147483647'):
    sample.sample(place, 'sft', 'one', seed=seed)


@pytest.mark.parametrize('run, said', [
  ('sfd', "no run 'sfd'; did you mean sft"), ('reward', 'only Language and PPO runs')])
def test_runs_that_cannot_be_sampled(place, run, said):
  with pytest.raises(configs.BadInput, match=said):
    sample.sample(place, run, 'one')


def test_an_average_that_was_not_kept(place):
  with pytest.raises(configs.BadInput, match=r'sft: kept no average of its weights \(ema is 0\)'):
    checkpoint.load_parent(place.workdir / 'sft', 'ema')


def test_a_run_that_is_not_finished(place):
  (place.workdir / 'half').mkdir(exist_ok=True)
  workdir.write_json(place.workdir / 'half' / 'config.json',
                     workdir.describe(configs.Language(), {}))
  with pytest.raises(configs.BadInput, match='is not finished; start the same'):
    sample.sample(place, 'half', 'one')
