"""`--RUN.field value`: typed by the annotations, refused with near misses, documented from the
source.
"""

import pathlib

import pytest

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.runtime import overrides
from rlhf_jax.runtime.experiment import Experiment

RUNS = {
  'gpt': configs.Language(data=(configs.Source(size=5), configs.Source(size=6))),
  'rankings': configs.Collect(policy='gpt', labelers=('a', 'b')),
  'reward': configs.Reward(init_from='gpt'),
  'evaluation': configs.Evaluate(models={'gpt': configs.Sampled('gpt')}, against='gpt'),
}
FILE = Experiment(pathlib.Path('mine.py'), RUNS, {})


def changed(*words, seed=None):
  left, found = overrides.split(words)
  assert not left
  return overrides.apply(FILE, found, seed).runs


@pytest.mark.parametrize('words, value, of', [
  (['--gpt.steps', '12'], 12, lambda r: r['gpt'].steps),
  (['--gpt.steps=1e3'], 1000, lambda r: r['gpt'].steps),
  (['--gpt.optimizer.learning_rate', '1e-3'], 1e-3, lambda r: r['gpt'].optimizer.learning_rate),
  (['--gpt.heldout', '0'], 0.0, lambda r: r['gpt'].heldout),
  (['--gpt.mesh.data', '-1'], -1, lambda r: r['gpt'].mesh.data),
  (['--gpt.model.layers', '2'], 2, lambda r: r['gpt'].model.layers),
  (['--gpt.model.bias', 'false'], False, lambda r: r['gpt'].model.bias),
  (['--gpt.model.gated', 'True'], True, lambda r: r['gpt'].model.gated),
  (['--gpt.select', 'validation_loss'], 'validation_loss', lambda r: r['gpt'].select),
  (['--gpt.data.1.size', '9'], 9, lambda r: r['gpt'].data[1].size),
  (['--gpt.data.0.files', 'a.jsonl,b.jsonl'], ('a.jsonl', 'b.jsonl'),
   lambda r: r['gpt'].data[0].files),
  (['--gpt.data.0.files', '(old)/a.jsonl'], ('(old)/a.jsonl',), lambda r: r['gpt'].data[0].files),
  (['--gpt.data.0.files', '[a.jsonl]'], ('a.jsonl',), lambda r: r['gpt'].data[0].files),
  (['--rankings.k', '2,5'], (2, 5), lambda r: r['rankings'].k),
  (['--rankings.k', '(2, 5)'], (2, 5), lambda r: r['rankings'].k),
  (['--rankings.labelers', 'c'], ('c',), lambda r: r['rankings'].labelers),
  (['--reward.data', 'rankings'], 'rankings', lambda r: r['reward'].data),
  (['--evaluation.models.gpt.temperature', '0.5'], 0.5,
   lambda r: r['evaluation'].models['gpt'].temperature),
])
def test_a_value_is_read_as_its_field_says(words, value, of):
  found = of(changed(*words))
  assert found == value and type(found) is type(value)
  assert of(RUNS) != value or words == ['--reward.data', 'rankings']


@pytest.mark.parametrize('words, said', [
  (['--gpt.stps', '3'], r"--gpt.stps: --gpt \(Language\) has no field 'stps'; did you mean steps"),
  (['--gtp.steps', '3'], r"mine.py has no run 'gtp'; did you mean gpt"),
  (['--gpt.optimizer.lerning_rate', '3'], r'did you mean learning_rate'),
  (['--gpt.steps', 'many'], r"--gpt.steps: 'many' is not int"),
  (['--gpt.steps', '4.5'], r'is not int'),
  (['--gpt.steps', 'inf'], r'is not int'),
  (['--gpt.heldout', 'nan'], r'is not float'),
  (['--gpt.model.bias', '2'], r"'2' is not true\|false"),
  (['--rankings.k', '4'], r"'4' is not int,int"),
  (['--rankings.k', '4,x'], r'is not int,int'),
  (['--gpt.model', '4'], r'name a field inside it, such as --gpt.model.layers'),
  (['--gpt.data', 'a.txt'], r'name a field inside it, such as --gpt.data.0.kind'),
  (['--gpt.data.2.size', '9'], r"--gpt.data has no field '2'; there are: 0, 1"),
  (['--gpt.steps.x', '9'], r"has no field 'x'"),
  (['--evaluation.models.sft.run', 'gpt'], r"--evaluation.models has no field 'sft'"),
  (['--reward.init_from', 'gtp'], r"names the run 'gtp'.*did you mean gpt"),
  (['--gpt.steps'], r'--gpt.steps needs a value'),
  (['--gpt.steps', '--gpt.batch', '3'], r'--gpt.steps needs a value'),
])
def test_refused(words, said):
  with pytest.raises(BadInput, match=said):
    changed(*words)


def test_a_mesh_of_two_numbers_is_told_what_is_wanted():
  with pytest.raises(BadInput, match=r"--mesh: '2,1' is not D,F,T: three numbers, such as 2,1,1"):
    overrides.apply(FILE, [], mesh='2,1')


def test_the_rest_of_the_line_is_left_alone():
  words = ['run', 'a.b.py', 'gpt', '--gpt.steps', '5', '--workdir', 'x.y/z', '--seed=3']
  assert overrides.split(words) == (
    ['run', 'a.b.py', 'gpt', '--workdir', 'x.y/z', '--seed=3'], [('gpt.steps', '5')])


@pytest.mark.parametrize('name', ['GPT, prompted', 'v1', 'v1.5', 'a.b c'])
def test_an_entry_of_models_has_any_name(name):
  models = dict.fromkeys(('GPT, prompted', 'v1', 'v1.5', 'a.b c'), configs.Sampled('gpt'))
  runs = {'gpt': RUNS['gpt'], 'evaluation': configs.Evaluate(models=models, against='v1')}
  for words in ([f'--evaluation.models.{name}.temperature', '0'],
                [f'--evaluation.models.{name}.temperature=0']):
    _, found = overrides.split(words)
    read = overrides.apply(Experiment(pathlib.Path('mine.py'), runs, {}), found).runs
    assert read['evaluation'].models == models | {name: configs.Sampled('gpt', 0.0)}


def test_seed_is_every_runs_and_an_override_wins():
  runs = changed('--reward.seed', '9', seed=4)
  assert {name: run.seed for name, run in runs.items()} == {
    'gpt': 4, 'rankings': 4, 'reward': 9, 'evaluation': 4}


def test_help_lists_every_field_with_type_value_and_doc():
  text = overrides.explain(FILE)
  for line in ('--gpt.steps ', '--gpt.optimizer.b2 ', '--gpt.data.1.size ', '--rankings.k ',
               '--reward.data ', '--evaluation.models.gpt.best_of '):
    assert line in text
  steps = next(line for line in text.splitlines() if '--gpt.steps ' in line)
  assert steps.split(maxsplit=1)[1].startswith('int = 0  # optimizer steps')
  # What the help shows can be given back.
  for run, config in RUNS.items():
    for path, kind, value, _ in overrides.fields(config):
      if value != '' and value != ():
        assert changed(f'--{run}.{path}', overrides._written(value)) == RUNS, (path, kind)
