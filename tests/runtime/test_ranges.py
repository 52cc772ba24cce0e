"""Values that make no sense by themselves are told with file, line and field before any work."""

import dataclasses

import jax
import pytest

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.runtime import experiment, grid, overrides, ranges

FILE = """from rlhf_jax.configs import *
runs = {
  'gpt': Language(data=(Source(files=('a.jsonl',)),),
                  epochs=EPOCHS),
  'ppo': PPO(policy='gpt', reward='module:function',
             updates=3),
  'measured': Evaluate(models={'sft': Sampled('gpt', best_of=BEST)}),
}
sweep = Sweep(grid=({'gae_lambda': (0.9, LAMBDA)},))
"""


@pytest.fixture
def file(tmp_path):
  def make(epochs=1.0, best=1, other=0.95):
    path = tmp_path / 'e.py'
    path.write_text(FILE.replace('EPOCHS', str(epochs)).replace('BEST', str(best)).replace(
      'LAMBDA', str(other)))
    return path

  return make


def test_every_range_is_of_a_field_and_holds_its_default():
  for kind, fields in ranges.RANGES.items():
    assert fields.keys() <= {field.name for field in dataclasses.fields(kind)}
    ranges.check(str, kind())


def test_shares_steps_and_sizes_have_a_range():
  """Lengths of rows and a model's shape are checked beside the data and in check_model."""
  elsewhere = {'prompt_length', 'response_length', 'text_length', 'length', 'seed'}
  for kind in (configs.Optimizer, configs.Mesh, configs.Language, configs.Collect, configs.Reward,
               configs.PPO, configs.Sampled, configs.Evaluate, configs.Sweep):
    numbers = {field.name for field in dataclasses.fields(kind) if field.type in (int, float)}
    assert numbers - elsewhere <= ranges.RANGES[kind].keys()


@pytest.mark.parametrize(('path', 'value', 'words'), [
  ('ppo.epochs', 0, 'at least 1'), ('ppo.clip', 0.0, r'above 0 \(1e9 does not clip\)'),
  ('ppo.gae_lambda', 2.0, 'from 0 to 1'), ('ppo.discount', -1.0, 'from 0 to 1'),
  ('ppo.ema', 1.0, 'from 0 to below 1'), ('ppo.updates', 0, 'at least 1'),
  ('ppo.ptx_ratio', -1.0, 'at least 0'), ('ppo.rollout_chunks', 0, 'at least 1'),
  ('ppo.policy_optimizer.learning_rate', -1.0, 'at least 0'),
  ('ppo.policy_optimizer.b2', 1.0, 'from 0 to below 1'), ('gpt.steps', -1, 'at least 0'),
  ('gpt.steps', 10**12, 'at least 0, at most 2147483647'),
  ('ppo.updates', 2**31, 'at least 1, at most 2147483647'),
  ('measured.response_length', 0, 'at least 1'), ('measured.prompt_length', 0, 'at least 1'),
  ('gpt.epochs', 0.0, 'above 0'), ('gpt.microbatch', -1, 'at least 0'),
  ('gpt.model.dropout', 1.5, 'from 0 to below 1'), ('gpt.optimizer.warmup', -1, 'at least 0'),
  ('gpt.mesh.data', 0, 'at least 1, or -1'), ('ppo.mesh.fsdp', -1, 'at least 1'),
  ('gpt.data.0.size', -1, 'at least 0'), ('gpt.model.heads', 0, 'at least 1'),
  ('gpt.model.layers', 0, 'at least 1'), ('gpt.model.rotary', 1.5, 'from 0 to 1'),
  ('gpt.seed', -1, 'from 0 to 2147483647'), ('gpt.seed', 10**20, 'from 0 to 2147483647'),
  ('gpt.data.0.seed', 2**31, 'from 0 to 2147483647'),
  ('gpt.optimizer.schedule', 'linear', "'cosine' or"),
  ('ppo.prompt_cut', 'tail', "'refuse' or 'head'"), ('gpt.select', 'loss', "'' or 'validation"),
  ('gpt.data.0.kind', 'prompts', "'text' or 'demonstrations'"),
  ('measured.models.sft.temperature', -1.0, 'at least 0')])
def test_an_option_out_of_its_range_is_told(file, path, value, words):
  run, field = path.split('.', 1)
  with pytest.raises(BadInput, match=rf"e\.py:\d+: runs\['{run}'\]\.{field} is {value!r}; expected "
                                     f'{words}'):
    overrides.apply(experiment.load(file()), [(path, str(value))])


@pytest.mark.parametrize('value', ['math.inf', 'math.nan'])
@pytest.mark.parametrize('field', ['kl_coef', 'no_eos_penalty'])
def test_an_infinite_number_of_a_file_is_told(tmp_path, field, value):
  path = tmp_path / 'e.py'
  path.write_text('import math\nfrom rlhf_jax.configs import *\n'
                  f"runs = {{'gpt': Language(), 'ppo': PPO(policy='gpt', {field}={value})}}\n")
  with pytest.raises(BadInput, match=rf"e\.py:3: runs\['ppo'\]\.{field} is .* and finite"):
    overrides.apply(experiment.load(path), [])


def test_every_seed_has_a_range():
  for kind in vars(configs).values():
    if dataclasses.is_dataclass(kind) and hasattr(kind, 'seed'):
      assert ranges.RANGES[kind]['seed'] is ranges.SEED
  fits, _ = ranges.SEED
  assert fits(0) and fits(2**31 - 1)
  jax.random.fold_in(jax.random.key(2**31), 2**31 + 1)  # what is made of the largest


def test_a_file_and_a_grid_are_told_too(file):
  with pytest.raises(BadInput, match=r"e\.py:4: runs\['gpt'\]\.epochs is 0; expected above 0"):
    experiment.load(file(epochs=0))
  with pytest.raises(BadInput, match=r"\['measured'\]\.models\.sft\.best_of is 0; expected at "):
    experiment.load(file(best=0))
  with pytest.raises(BadInput, match=r'--sweep\.seed is 2147483648; expected from 0 to 2147483647'):
    overrides.apply(experiment.load(file()), [('sweep.seed', str(2**31))])
  with pytest.raises(BadInput, match=r'gae_lambda is 1\.5; expected from 0 to 1'):
    grid.points(experiment.load(file(other=1.5)))
