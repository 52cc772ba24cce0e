"""Experiment files: what is refused, and that the message says where and what to do."""

import pytest

from rlhf_jax.configs import BadInput
from rlhf_jax.runtime import experiment

GOOD = """
from rlhf_jax.configs import *
runs = {
  'gpt': Language(steps=3),
  'sft': Language(init_from='gpt'),
  'rankings': Collect(policy='sft'),
  'reward': Reward(init_from='sft', data='rankings', heldout_data=(Source(kind='rankings'),)),
  'ppo': PPO(policy='sft', reward='reward'),
  'own': PPO(policy='sft', reward='my_rewards.py:score'),
  'evaluation': Evaluate(models={'a': Sampled('ppo'), 'b': Sampled('sft', best_of=4)},
                         against='b', reward='reward', rankings='rankings'),
}
"""


@pytest.fixture
def written(tmp_path):
  """Writes an experiment file and reads it."""
  def load(text):
    file = tmp_path / 'mine.py'
    file.write_text(text) if isinstance(text, str) else file.write_bytes(text)
    return experiment.load(file)
  return load


def test_order_is_parents_first_and_only_what_is_needed(written):
  read = written(GOOD)
  assert list(read.runs) == [
    'gpt', 'sft', 'rankings', 'reward', 'ppo', 'own', 'evaluation']
  assert experiment.order(read, ['reward']) == ['gpt', 'sft', 'rankings', 'reward']
  assert experiment.order(read, ['own']) == ['gpt', 'sft', 'own']
  assert experiment.order(read, ['ppo', 'gpt']) == [
    'gpt', 'sft', 'rankings', 'reward', 'ppo']
  assert experiment.references(read.runs['evaluation']) == {
    'reward': 'reward', 'rankings': 'rankings', 'models.a': 'ppo', 'models.b': 'sft'}


@pytest.mark.parametrize('before, after, said', [
  ("'sft': Language(init_from='gpt')", "'sft': Language(init_from='gtp')",
   r"mine.py:5: runs\['sft'\].init_from names the run 'gtp'.*did you mean gpt"),
  ('steps=3', 'steps=3.5', r"mine.py:4: runs\['gpt'\].steps is 3.5 \(float\); expected int"),
  ('steps=3', 'steps=True', r'steps is True \(bool\); expected int'),
  ('steps=3', "seed='0'", r"seed is '0' \(str\); expected int"),
  ('steps=3', 'model=Model(bias=1)', r"\['gpt'\].model.bias is 1 \(int\); expected true\|false"),
  ('steps=3', "data=('a.txt',)", r"gpt'\].data.0 is 'a.txt' \(str\); expected Source"),
  ('steps=3', 'data=Source()', r"gpt'\].data is Source"),
  ('steps=3', 'stepz=3', r"mine.py:4: Language has no field 'stepz'; did you mean steps"),
  ('steps=3', 'model=Model(heads=3)', r"mine.py:4: runs\['gpt'\]: model.heads = 3 does not divide"),
  ('steps=3', 'batch=8, microbatch=3',
   r"mine.py:4: runs\['gpt'\]: batch: microbatch 3 does not divide 8"),
  ("policy='sft', reward='reward'", "policy='sft', reward='reward', episodes=8, minibatch=3",
   r"runs\['ppo'\]: minibatch 3 does not divide episodes 8"),
  ('steps=3', "init_from='sft'", r'needs itself: gpt → sft → gpt'),
  ("policy='sft', reward='reward'", "policy='reward', reward='reward'",
   r"ppo'\].policy names 'reward', a Reward; expected Language or PPO"),
  ("{'a': Sampled('ppo')", "{'x/a': Sampled('ppo')", r"has the entry 'x/a'; expected a name"),
  ("{'a': Sampled('ppo')", "{'..': Sampled('ppo')", r"has the entry '..'; expected a name"),
  ("against='b'", "against='sft'", r"against is 'sft', not an entry of its models"),
  ("Sampled('ppo')", 'Sampled()', r'models.a names no run'),
  ("'gpt': Language(steps=3)", "'gpt': 7", r"runs\['gpt'\] is 7 \(int\); expected Language, "),
  ('runs = {', "class Mine(Language): pass\nruns = {'x': Mine(), ",
   r"runs\['x'\] is .* \(Mine\); expected Language, "),
  ("'gpt': ", "'data': ", r"'data' cannot name a run"),
  ("'gpt': ", "'../gpt': ", r"'../gpt' cannot name a run"),
  ("'gpt': ", "1: ", r"mine.py: 1 cannot name a run"),
  ('runs = {', 'raise SystemExit\nruns = {', r'mine.py:3: SystemExit'),  # exit code 0
  ('runs = {', 'def runs():\n  return\nx = {', r'runs\(\) returns None .*; expected'),
  ('steps=3', "data=Source('text')", r"data is .*; expected Source,…, a tuple; of one it is"),
  ('steps=3', "data=(Source('text', 'a.txt'),)", r"files is 'a.txt' .*; of one it is \(…,\)"),
  ("'gpt': Language(steps=3)", "'gpt': Language(steps=3", r'mine.py:\d+: closing parenthesis'),
  ('runs = {', 'rums = {', r'mine.py: sets no `runs`'),
  ('runs = {', 'x = 1 / 0\nruns = {', r'mine.py:3: ZeroDivisionError: division by zero'),
  ('runs = {', 'import nosuchmodule\nruns = {', r'mine.py:3: ModuleNotFoundError.*nosuchmodule'),
])
def test_refused(written, before, after, said):
  assert before in GOOD
  with pytest.raises(BadInput, match=said):
    written(GOOD.replace(before, after))


def test_not_a_text_file_and_no_file(written, tmp_path):
  with pytest.raises(BadInput, match=r'mine.py'):
    written(b'runs = "\xff\xfe"')
  with pytest.raises(BadInput, match=r'mime.py: no such experiment file; did you mean .*mine.py'):
    experiment.load(tmp_path / 'mime.py')


def test_a_run_nobody_wrote_has_near_misses(written):
  with pytest.raises(BadInput, match=r"has no run 'rewrad'; did you mean reward"):
    experiment.order(written(GOOD), ['rewrad'])


def test_a_mark_of_the_byte_order_and_a_default_that_is_a_name(tmp_path):
  file = tmp_path / 'mine.py'
  body = "STEPS = 5\ndef runs(\n  text: str,  # a file\n  steps: int = STEPS,  # how many\n):\n"
  file.write_text('from rlhf_jax.configs import *\n' + body +
                  "  return {'gpt': Language(data=(Source(files=(text,)),), steps=steps)}\n",
                  encoding='utf-8-sig')
  assert [(one.option, one.required, one.doc) for one in experiment.parameters(file)] == [
    ('--text', True, 'a file'), ('--steps', False, 'how many')]
  assert experiment.load(file, {'text': 'a.txt'}).runs['gpt'].steps == 5


@pytest.mark.parametrize('parameter, kind', [
  ('rows: int', int), ('rows: int | None = None', int), ("rows: 'float' = 1.0", float),
  ('rows=3', int), ('rows', str), ('rows=None', str), ('rows=str(3)', str)])
def test_an_option_is_of_the_type_of_its_parameter(tmp_path, parameter, kind):
  file = tmp_path / 'mine.py'
  file.write_text('from rlhf_jax.configs import *\n'
                  f"def runs({parameter}):\n  return {{'gpt': Language()}}\n")
  assert [one.kind for one in experiment.parameters(file)] == [kind]


@pytest.mark.parametrize('parameter', ['new: bool = False', 'new=False', 'new: tuple[int, ...]'])
def test_an_option_that_no_word_gives_is_refused(tmp_path, parameter):
  file = tmp_path / 'mine.py'
  file.write_text(f'def runs(\n  {parameter},\n):\n  return {{}}\n')
  with pytest.raises(BadInput, match=r'mine.py:2: parameter new of runs\(\) is (bool|tuple)'):
    experiment.parameters(file)


def test_a_number_that_is_required_has_a_stand_in(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text('from rlhf_jax.configs import *\n'
                  "def runs(rows: int):\n  return {'gpt': Language(batch=8 * rows)}\n")
  assert experiment.load(file, placeholders=True).runs['gpt'].batch == 8
  with pytest.raises(BadInput, match='needs --rows ROWS'):
    experiment.load(file)


def test_a_run_named_as_an_entry_of_models_keeps_its_line(written):
  read = written(GOOD.replace("'a': Sampled('ppo')", "'sft': Sampled('sft')"))
  assert read.where('sft', 'batch') == f"{read.file}:5: runs['sft'].batch"


def test_experiment_files_import_each_other(tmp_path, written):
  (tmp_path / 'sizes_of_mine.py').write_text('STEPS = 5\n')
  read = written('from sizes_of_mine import STEPS\n' + GOOD.replace('steps=3', 'steps=STEPS'))
  assert read.runs['gpt'].steps == 5
