"""results.json: what the Evaluate runs of a file found, put together."""

import io

import rich.console

from rlhf_jax import configs
from rlhf_jax.runtime import results, workdir


def finish(folder, name, summary):
  (folder / name).mkdir()
  workdir.write_json(folder / name / 'finished.json', {'summary': summary, 'seconds': 1})


def test_of_two_evaluations_entries_are_taken_whole(tmp_path):
  runs = {'b': configs.Evaluate(), 'a': configs.Evaluate()}
  finish(tmp_path, 'b', {'models': {'sft': {'gold': 1.0, 'by_category': {'x': {}}}, 'gpt': {}},
                         'reward_model': {'accuracy': 0.7, 'ece': 0.1}, 'labelers': {'n': 3}})
  told = results.assemble(tmp_path, runs)
  assert told['evaluation'] == 'b' and told['models']['sft']['gold'] == 1.0
  finish(tmp_path, 'a', {'models': {'sft': {'gold': 2.0}}, 'reward_model': {'accuracy': 0.6},
                         'labelers': {}})
  told = results.assemble(tmp_path, runs)
  assert told['models'] == {'sft': {'gold': 2.0}, 'gpt': {}} and told['evaluation'] == 'a'
  assert told['reward_model'] == {'accuracy': 0.6} and told['labelers'] == {'n': 3}
  assert told['seconds'] == {'b': 1, 'a': 1} == workdir.read_json(
    tmp_path / 'results.json')['seconds']


def test_a_run_does_not_outlive_what_it_was_made_from(tmp_path, caplog):
  runs = {'gpt': configs.Language(), 'sft': configs.Language(init_from='gpt'),
          'evaluation': configs.Evaluate(models={'a': configs.Sampled('sft')}, against='a')}

  def write(name, config, **parents):
    described = workdir.describe(config, parents)
    workdir.write_json(tmp_path / name / 'config.json', described)
    return described['hash']

  finish(tmp_path, 'gpt', {'loss': 1.0})
  finish(tmp_path, 'sft', {'loss': 2.0})
  finish(tmp_path, 'evaluation', {'models': {'a': {'gold': 1.0}}})
  gpt = write('gpt', runs['gpt'])
  sft = write('sft', runs['sft'], init_from=('gpt', gpt))
  write('evaluation', runs['evaluation'], **{'models.a': ('sft', sft), 'reward': ('x/y', 'z')})
  whole = results.assemble(tmp_path, runs)
  assert whole['models'] == {'a': {'gold': 1.0}}
  write('gpt', configs.Language(steps=9))
  told = results.assemble(tmp_path, runs)
  assert told == {'runs': {'gpt': {'loss': 1.0}}, 'seconds': {'gpt': 1}}
  assert 'evaluation was made from another gpt than there is now' in caplog.text
  (tmp_path / 'gpt' / 'config.json').unlink()
  assert results.assemble(tmp_path, runs) == whole


def test_names_of_models_are_shown_as_they_are():
  names = ['sft[bold]', ':cat:', '[/x]']
  rate = {'mean': 0.5, 'low': 0.4, 'high': 0.6}
  out = io.StringIO()
  rich.console.Console(file=out, width=200).print(results.table({
    'models': {name: {'win_rate_vs_sft[bold]': rate} for name in names}, 'seconds': {'a': 1}}))
  assert all(name in out.getvalue() for name in (*names, 'win rate vs sft[bold]'))
