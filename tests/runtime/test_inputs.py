"""What a run was begun with is what it goes on with."""

import dataclasses
import json
import pathlib

import pytest

from rlhf_jax import configs
from rlhf_jax.data.builders import Place
from rlhf_jax.runtime import inputs, loop, workdir
from rlhf_jax.runtime.experiment import Experiment

TEXT = configs.Source(files=('a.jsonl', 'b.jsonl'))


@pytest.fixture
def data(tmp_path):
  """(name, word) -> a --data folder whose text is about the word."""
  def make(name, word):
    folder = tmp_path / name
    folder.mkdir()
    for file in ('a.jsonl', 'b.jsonl'):
      (folder / file).write_text(''.join(
        json.dumps({'text': f'{word} {file} {number}'}) + '\n' for number in range(9)))
    return folder

  return make


@pytest.fixture
def begun(tmp_path):
  """The folder of a run that has done something."""
  (tmp_path / 'w' / 'gpt' / 'checkpoints').mkdir(parents=True)
  return tmp_path / 'w' / 'gpt'


def at(folder, data):
  return Place(folder.parent, data)


def test_other_content_under_the_same_names_is_refused(data, begun):
  config = configs.Language(data=(TEXT,))
  one, same, other = data('one', 'cat'), data('same', 'cat'), data('other', 'dog')
  inputs.settle(begun, config, at(begun, one))
  inputs.settle(begun, config, at(begun, same))
  with pytest.raises(configs.BadInput) as told:
    inputs.settle(begun, config, at(begun, other))
  assert 'data.0 (a.jsonl, b.jsonl)' in str(told.value)
  assert f'--data {one}, or take another --workdir' in str(told.value)
  (one / 'b.jsonl').write_text('{"text": "changed in place"}\n')
  with pytest.raises(configs.BadInput, match='give the old content back, or take'):
    inputs.settle(begun, config, at(begun, one))


def test_a_tokenizer_that_is_not_there_is_the_stages_to_tell(data, begun):
  missing = configs.Language(data=(TEXT,), tokenizer=configs.Tokenizer(file='nowhere.json'))
  inputs.settle(begun, missing, at(begun, data('one', 'cat')))
  assert list(json.loads((begun / 'inputs.json').read_text())['sha256']) == ['data.0']


def test_a_run_without_work_or_from_before_there_was_the_file_takes_any(data, begun):
  config, one, other = configs.Language(data=(TEXT,)), data('one', 'cat'), data('other', 'dog')
  inputs.settle(begun, config, at(begun, one))
  (begun / 'checkpoints').rmdir()
  inputs.settle(begun, config, at(begun, other))
  assert workdir.read_json(begun / 'inputs.json')['data'] == str(other)
  (begun / 'checkpoints').mkdir()
  (begun / 'inputs.json').unlink()
  inputs.settle(begun, config, at(begun, one))
  with pytest.raises(inputs.Changed):
    inputs.settle(begun, config, at(begun, other))


def test_what_else_a_run_reads(data, begun, tmp_path, monkeypatch):
  """A tokenizer's file, a reader's code, what a function makes, what a parent has left."""
  monkeypatch.chdir(tmp_path)
  one = data('one', 'cat')
  (one / 'tokenizer.json').write_text('{}')
  reader, maker = (tmp_path / name for name in ('reader.py', 'maker.py'))
  reader.write_text('def read(path, kind, split):\n  yield {"text": "a"}\n')
  maker.write_text('from rlhf_jax.data.records import Text\n'
                   'def make(split, size, seed):\n  yield Text("a")\n')
  rankings = begun.parent / 'collected' / 'rankings.jsonl'
  rankings.parent.mkdir()
  rankings.write_text('{}')
  language = configs.Language(
    tokenizer=configs.Tokenizer(file='tokenizer.json'),
    data=(dataclasses.replace(TEXT, reader='reader.py:read'), configs.Source(make='maker.py:make')))
  reward = configs.Reward(data='collected', init_from='gpt')
  changes = [
    (language, one / 'tokenizer.json', r'tokenizer\.file \(tokenizer\.json\)'),
    (language, reader, r'data\.0 \(a\.jsonl, b\.jsonl, read by reader\.py:read\)'),
    (language, maker, r'data\.1 \(maker\.py:make\)'),
    (reward, rankings, r'data: rankings\.jsonl \(collected/rankings\.jsonl\)')]
  for config, file, named in changes:
    (begun / 'inputs.json').unlink(missing_ok=True)
    inputs.settle(begun, config, at(begun, one))
    before = file.read_text()
    file.write_text(before.replace('"a"', '"b"') if '"a"' in before else before + ' ')
    inputs.functions._module_of_file.cache_clear()
    with pytest.raises(inputs.Changed, match=f'the content of {named} differs'):
      inputs.settle(begun, config, at(begun, one))
    file.write_text(before)
  (begun / 'inputs.json').unlink()
  inputs.settle(begun, language, at(begun, one))
  maker.write_text(maker.read_text() + '# other code, the same records\n')
  inputs.settle(begun, language, at(begun, one))


def test_a_stopped_run_refuses_other_data_before_its_next_step(faults, data, tmp_path):
  """And builds none of it."""
  one, other = data('one', 'cat'), data('other', 'dog')
  read = Experiment(pathlib.Path('e.py'), {'gpt': configs.Language(
    data=(TEXT,), steps=6, evaluate_every=3)}, {})
  run = lambda where: loop.run_file(read, [], Place(tmp_path / 'w', where),
                                    loop.Options(checkpoint_seconds=0.0))
  faults.batch = {4: KeyboardInterrupt('killed')}
  with pytest.raises(KeyboardInterrupt):
    run(one)
  faults.batch = {}
  metrics = (tmp_path / 'w' / 'gpt' / 'metrics.jsonl').read_bytes()
  with pytest.raises(configs.BadInput, match=r'gpt was begun with other data'):
    run(other)
  assert (tmp_path / 'w' / 'gpt' / 'metrics.jsonl').read_bytes() == metrics
  assert run(one)['runs']['gpt']['loss'] > 0
  assert run(other)['runs']['gpt']['loss'] > 0  # it is finished


def demonstrations_of(folder, word):
  (folder / 'd.jsonl').write_text(json.dumps({'prompt': word, 'response': 'yes'}) + '\n')


def test_a_reward_model_reads_the_demonstrations_of_its_parent(data, begun):
  """Its own config does not name them."""
  one = data('one', 'cat')
  demonstrations_of(one, 'may cat run ?')
  source = configs.Source(kind='demonstrations', files=('d.jsonl',))
  sft = configs.Language(data=(source,), init_from='gpt')
  folder = begun.parent / 'sft'
  rankings = configs.Reward(data=(configs.Source(kind='rankings', files=('a.jsonl',)),),
                            init_from='sft')
  inputs.check({'rankings': rankings}, at(begun, one))  # no such run yet: nothing is known
  stale = dataclasses.replace(sft, data=(dataclasses.replace(source, files=('gone.jsonl',)),))
  workdir.write_json(folder / 'config.json', workdir.describe(stale, {}))
  inputs.check({'rankings': rankings}, at(begun, one))  # it will be made with another config
  workdir.write_json(folder / 'config.json', workdir.describe(sft, {}))
  workdir.write_json(folder / 'finished.json', {})
  inputs.settle(begun, rankings, at(begun, one))
  demonstrations_of(one, 'may dog run ?')
  with pytest.raises(inputs.Changed, match=r'init_from: data\.0 \(d\.jsonl\)'):
    inputs.settle(begun, rankings, at(begun, one))
  named = dataclasses.replace(rankings, init_from='gpt', demonstrations='sft')
  (begun / 'inputs.json').unlink()
  inputs.settle(begun, named, at(begun, one))
  assert 'demonstrations: data.0' in workdir.read_json(begun / 'inputs.json')['sha256']
  (one / 'd.jsonl').unlink()
  with pytest.raises(configs.BadInput, match=r'd\.jsonl'):
    inputs.check({'named': named}, at(begun, one))


def test_another_reward_function_is_another_run(data, begun, tmp_path):
  code = tmp_path / 'reward.py'
  code.write_text('def score(tokens, valid, mask):\n  return mask.sum(1)\n')
  place = at(begun, data('one', 'cat'))
  ppo = configs.PPO(reward=f'{code}:score', prompts=(configs.Source('prompts', ('a.jsonl',)),))
  inputs.settle(begun, ppo, place)
  inputs.settle(begun, ppo, place)
  code.write_text('def score(tokens, valid, mask):\n  return -mask.sum(1)\n')
  with pytest.raises(inputs.Changed, match=r'the content of reward \(.*reward\.py:score\)'):
    inputs.settle(begun, ppo, place)


def test_a_parent_that_was_made_of_other_data_is_another(data, begun):
  place = at(begun, data('one', 'cat'))
  ppo = configs.PPO(policy='sft', prompts=(configs.Source('prompts', ('a.jsonl',)),))
  made = lambda **read: workdir.write_json(place.workdir / 'sft' / 'inputs.json', {'sha256': read})
  made(data='1', judge='1')
  inputs.settle(begun, ppo, place)
  made(data='1', judge='2')  # which only measured it
  inputs.settle(begun, ppo, place)
  made(data='2', judge='2')
  with pytest.raises(inputs.Changed, match=r'policy: inputs\.json \(what sft was made of\)'):
    inputs.settle(begun, ppo, place)


def test_a_run_of_another_workdir_that_was_made_of_other_data_is_another(data, begun, tmp_path):
  one, far = data('one', 'cat'), tmp_path / 'far' / 'sft'
  far.mkdir(parents=True)
  config = configs.PPO(policy=str(far), reward='', prompts=())
  workdir.write_json(far / 'inputs.json', {'data': '', 'sha256': {'data.0': 'a', 'judge': 'c'}})
  inputs.settle(begun, config, at(begun, one))
  workdir.write_json(far / 'inputs.json', {'data': '', 'sha256': {'data.0': 'a', 'judge': 'd'}})
  inputs.settle(begun, config, at(begun, one))
  workdir.write_json(far / 'inputs.json', {'data': '', 'sha256': {'data.0': 'b'}})
  with pytest.raises(inputs.Changed, match=f'policy: inputs.json .what {far} was made of. differs'):
    inputs.settle(begun, config, at(begun, one))


def test_what_trains_nothing_begins_anew_with_other_data(data, begun, tmp_path, caplog):
  code = tmp_path / 'judge.py'
  code.write_text('def gold(prompt, responses):\n  return 1\n')
  one, other = data('one', 'cat'), data('other', 'dog')
  collect = configs.Collect(judge=f'{code}:gold',
                            prompts=(configs.Source('prompts', ('a.jsonl',)),))
  (begun / 'judge.json').write_text('{}')
  workdir.write_json(begun / 'config.json', {})
  inputs.settle_pieces(begun, collect, at(begun, one))  # nothing was known: it stays
  code.write_text('def gold(prompt, responses):\n  return 2\n')
  inputs.settle_pieces(begun, collect, at(begun, one))  # the rankings know their judge
  assert (begun / 'checkpoints').exists() and (begun / 'judge.json').exists()
  assert 'anew' not in caplog.text
  inputs.settle_pieces(begun, collect, at(begun, other))
  assert {path.name for path in begun.iterdir()} == {'config.json', 'inputs.json'}
  assert 'gpt begins anew: the content of prompts.0 (a.jsonl) differs' in caplog.text
  caplog.clear()
  inputs.settle_pieces(begun, collect, at(begun, other))
  assert not caplog.text
  code.write_text('def gold(prompt, responses):\n  return 3\n')
  inputs.warn('gpt', collect, at(begun, one))
  assert ('made of other data: the content of prompts.0 (a.jsonl), judge '
          f'({code}:gold) differs') in caplog.text


def test_another_judge_is_told_once_and_refuses_nothing(data, begun, tmp_path, caplog):
  code = tmp_path / 'judge.py'
  code.write_text('def gold(prompt, responses):\n  return 1\n')
  place = at(begun, data('one', 'cat'))
  ppo = configs.PPO(judge=f'{code}:gold', prompts=(configs.Source('prompts', ('a.jsonl',)),))
  inputs.settle(begun, ppo, place)
  inputs.settle(begun, ppo, place)
  assert not caplog.text
  code.write_text('def gold(prompt, responses):\n  return 2\n')
  inputs.warn('gpt', ppo, place)  # a finished run: what is made from it does not rest on its judge
  with pytest.raises(inputs.Changed, match=r'the content of prompts\.0 \(a\.jsonl\) differs'):
    inputs.settle(begun, ppo, at(begun, data('other', 'dog')))
  assert not caplog.text
  inputs.settle(begun, ppo, place)
  assert 'judge.py:gold, is another than before' in caplog.text
  caplog.clear()
  inputs.settle(begun, ppo, place)
  assert not caplog.text


@pytest.mark.parametrize(('config', 'said'), [
  (configs.PPO(ptx_ratio=0.0), r"runs\['a'\]\.prompts: names no data"),
  (configs.Language(), r"runs\['a'\]\.data: names no data"),
  (configs.Language(data=(TEXT,), pretraining_share=0.1),
   r"runs\['a'\]\.pretraining: names no data, expected a Source, since pretraining_share is 0\.1"),
  (configs.Collect(prompts=(TEXT,), judge='mine.judge'), r"\['a'\]\.judge 'mine\.judge': expec"),
  (configs.Evaluate(prompts=(TEXT,), judge='mine'), r"runs\['a'\]\.judge 'mine': expected module")])
def test_what_names_nothing_is_told_before_the_first_run(data, begun, config, said):
  with pytest.raises(configs.BadInput, match=said):
    inputs.check({'a': config}, at(begun, data('one', 'cat')))


def test_a_finished_run_on_other_data_is_told_beside_a_new_one(data, tmp_path, caplog):
  one, other = data('one', 'cat'), data('other', 'dog')
  first = configs.Language(data=(TEXT,), steps=2, evaluate_every=2)
  second = dataclasses.replace(first, init_from='gpt')
  read = Experiment(pathlib.Path('e.py'), {'gpt': first, 'more': second}, {})
  run = lambda name, where: loop.run_file(read, [name], Place(tmp_path / 'w', where),
                                          loop.Options())
  run('gpt', one)
  run('gpt', other)
  assert 'other data' not in caplog.text  # nothing is made from it
  run('more', other)
  assert ('gpt is finished, and was made of other data: the content of data.0 (a.jsonl, b.jsonl)'
          ' differs. What is made from it now rests on the old; for the new, delete '
          f'{tmp_path / "w" / "gpt"}') in caplog.text


def test_nothing_is_said_of_a_finished_run_whose_data_is_gone_or_is_made(data, begun, tmp_path,
                                                                        monkeypatch, caplog):
  monkeypatch.chdir(tmp_path)
  maker = tmp_path / 'maker.py'
  maker.write_text('from rlhf_jax.data.records import Text\n'
                   'def make(split, size, seed):\n  yield Text("a")\n')
  config = configs.Language(data=(configs.Source(make='maker.py:make'), TEXT))
  one = data('one', 'cat')
  inputs.settle(begun, config, at(begun, one))
  maker.write_text('def make(split, size, seed):\n  raise AssertionError("for a warning")\n')
  inputs.warn('gpt', config, at(begun, one))
  (one / 'a.jsonl').unlink()
  inputs.warn('gpt', config, at(begun, one))
  assert 'differs' not in caplog.text
  (one / 'a.jsonl').write_text('')
  inputs.warn('gpt', config, at(begun, one))
  assert 'the content of data.1 (a.jsonl, b.jsonl) differs' in caplog.text
