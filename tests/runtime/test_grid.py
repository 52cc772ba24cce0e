"""Sweep files: which points they name, and what is refused."""

import pytest

from rlhf_jax.__main__ import main
from rlhf_jax.configs import BadInput
from rlhf_jax.runtime import experiment, grid, overrides

FILE = """
from rlhf_jax.configs import *
runs = {
  'gpt': Language(steps=3),
  'sft': Language(init_from='gpt'),
  'reward': Reward(init_from='sft', data=(Source('rankings', ('r.jsonl',)),)),
  'small': Reward(init_from='sft', data=(Source('rankings', ('r.jsonl',)),)),
  'ppo': PPO(policy='sft', reward='reward', ptx_coef=3.0),
}
sweep = Sweep(SWEEP)
"""
GRID = "base='ppo', grid=({'kl_coef': (0.0, 0.02), 'seed': (0, 1)},)"


@pytest.fixture
def read(tmp_path):
  def load(sweep):
    file = tmp_path / 'mine.py'
    file.write_text(FILE.replace('SWEEP', sweep))
    return experiment.load(file)
  return load


def test_all_combinations_in_order(read):
  found = grid.points(read(GRID))
  assert list(found) == ['kl_coef_0-seed_0', 'kl_coef_0-seed_1', 'kl_coef_0.02-seed_0',
                         'kl_coef_0.02-seed_1']
  point = found['kl_coef_0.02-seed_1']
  assert (point.config.kl_coef, point.config.seed, point.config.ptx_coef) == (0.02, 1, 3.0)
  assert point.values == {'kl_coef': 0.02, 'seed': 1}


def test_several_grids_are_joined_and_equal_points_are_one(read):
  """A field that one grid leaves alone has the base run's value there."""
  found = grid.points(read("""base='ppo', grid=(
    {'kl_coef': (0.0, 0.1)}, {'kl_coef': (0.1,), 'ptx_coef': (3.0, 9.0)},
    {'policy_optimizer.learning_rate': (1e-3,), 'reward': ('small',)})"""))
  assert list(found) == ['kl_coef_0', 'kl_coef_0.1', 'kl_coef_0.1-ptx_coef_9',
                         'policy_optimizer.learning_rate_0.001-reward_small']
  assert found['kl_coef_0'].values == {
    'kl_coef': 0.0, 'ptx_coef': 3.0, 'policy_optimizer.learning_rate': 9e-6, 'reward': 'reward'}
  last = found['policy_optimizer.learning_rate_0.001-reward_small'].config
  assert last.policy_optimizer.learning_rate == 1e-3 and last.policy_optimizer.warmup == 10
  assert last.reward == 'small'


@pytest.mark.parametrize('sweep, said', [
  ("base='ppoo', grid=({'seed': (0,)},)", "sweep.base is 'ppoo', no PPO run of the file; did you"),
  ("base='sft', grid=({'seed': (0,)},)", "sweep.base is 'sft', no PPO run"),
  ("base='ppo'", 'sweep.grid is empty'),
  ("base='ppo', grid=({1: (0,)},)", "sweep.grid has the key 1; expected a field of 'ppo' in quote"),
  ("base='ppo', grid=({}, {'seed': (0,)})", 'sweep.grid holds a grid without a field'),
  ("base='ppo', grid=({'kl_cef': (0.1,)},)", "PPO has no field 'kl_cef'; did you mean kl_coef"),
  ("base='ppo', grid=({'policy_optimizer.rate': (0.1,)},)", "Optimizer has no field 'rate'"),
  ("base='ppo', grid=({'seed.x': (0.1,)},)", 'seed has no fields'),
  ("base='ppo', grid=({'kl_coef': 0.1},)", 'sweep.grid.0.kl_coef is 0.1 (float); expected tuple'),
  ("base='ppo', grid=({'kl_coef': ()},)", "'kl_coef' has no values"),
  ("base='ppo', grid=({'mesh': ((1, 1, 1),)},)", "'mesh' takes tuple values; expected numbers or"),
  ("base='ppo', grid=({'kl_coef': ('x',)},)", "runs['ppo'].kl_coef is 'x' (str); expected float"),
  ("base='ppo', grid=({'seed': (0.5,)},)", "runs['ppo'].seed is 0.5"),
  ("base='ppo', grid=({'reward': ('sft',)},)", "names 'sft', a Language; expected Reward"),
  ("base='ppo', grid={'seed': (0,)}", 'sweep.grid is'),
  ("base='ppo', grid=({'seed': (0,)},), spacing=0.0", 'sweep.spacing is 0.0'),
  ("base='ppo', grid=({'seed': (0,)},), samples=0", 'sweep.samples is 0'),
  ("base='ppo', grid=({'seed': (0,)},), stand_in='sft'", "sweep.stand_in is 'sft', no Reward run"),
  ("base='ppo', grid=({'seed': (0,)},), draw_of={'smal': 'reward'}",
   "sweep.draw_of names 'smal', no Reward run of the file; did you mean small"),
  ("base='ppo', grid=({'seed': (0,)},), draw_of={'small': 'sft'}",
   "sweep.draw_of names 'sft', no Reward run of the file"),
  ("base='ppo', grid=({'seed': (0,)},), draw_of={'small': 'reward', 'reward': 'small'}",
   "'small' is a draw of 'reward', which is a draw itself"),
  ("base='ppo', grid=({'reward': ('reward', 'small')},), draw_of={'small': 'reward'}",
   "'reward_reward' and 'reward_small' are draws of one thing with one seed"),
  ("base='ppo', grid=({'reward': ('reward',), 'kl_coef': (1,)}, {'reward': ('small',), "
   "'kl_coef': (1.0,)}), draw_of={'small': 'reward'}", 'are draws of one thing with one seed'),
  ("base='ppo', grid=({'kl_coef': (0.1, 0.10000001)},)", 'two points named'),
  ("base='ppo', grids=()", "Sweep has no field 'grids'; did you mean grid"),
])
def test_what_is_refused(read, sweep, said):
  with pytest.raises(BadInput) as error:
    grid.points(read(sweep))
  assert said in str(error.value) and 'mine.py' in str(error.value)


def test_names_of_many_fields_are_no_longer_than_a_folder_may_be(read):
  fields = ', '.join(f"'{role}_optimizer.{field}': (0.5, 0.25)" for role in ('policy', 'value')
                     for field in ('learning_rate', 'warmup_from', 'weight_decay', 'epsilon'))
  found = [*grid.points(read(f"base='ppo', grid=({{{fields}}},)"))]
  assert len(set(found)) == 2**8 and {len(name) for name in found} == {255}
  assert found == [*grid.points(read(f"base='ppo', grid=({{{fields}}},)"))]


def test_draws_with_seeds_of_their_own(read):
  found = grid.points(read("""base='ppo', draw_of={'reward': 'reward', 'small': 'reward'}, grid=(
    {'reward': ('reward',), 'kl_coef': (0.0, 0.1), 'seed': (0,)},
    {'reward': ('small',), 'kl_coef': (0.0, 0.1), 'seed': (1,)})"""))
  assert [point.values['reward'] for point in found.values()] == ['reward'] * 2 + ['small'] * 2


def test_a_file_without_a_sweep(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text("from rlhf_jax.configs import *\nruns = {'gpt': Language()}\n")
  with pytest.raises(BadInput, match='sets no `sweep`'):
    grid.points(experiment.load(file))


def test_a_run_may_not_have_a_name_that_a_sweep_keeps(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(FILE.replace("'small'", "'start'").replace('SWEEP', GRID))
  with pytest.raises(BadInput, match=r"runs\['start'\].*keeps this name"):
    grid.points(experiment.load(file))


def test_fields_of_runs_and_of_the_sweep_can_be_overridden(read):
  changed = overrides.apply(read(GRID), [('ppo.updates', '7'), ('sweep.spacing', '0.5')])
  assert changed.sweep.spacing == 0.5
  assert {point.config.updates for point in grid.points(changed).values()} == {7}


@pytest.mark.parametrize('words, said', [
  (['--ppo.kl_coef', '9'], 'sets kl_coef at every point'),
  (['--sweep.spacin', '9'], "--sweep (Sweep) has no field 'spacin'; did you mean spacing?"),
  (['--sweep.grid', '9'], 'set it in the experiment file'),
  (['--workdir'], 'expected one argument'),
])
def test_options_that_would_do_nothing_are_refused(read, words, said, capsys):
  grids = "base='ppo', grid=({'kl_coef': (0.0, 0.1), 'seed': (0, 1)}, {'kl_coef': (0.2,)})"
  try:
    assert main(['sweep', str(read(grids).file), '--list', *words]) == 2
  except SystemExit as stopped:
    assert stopped.code == 2
  assert said in capsys.readouterr().err
  # The second grid leaves the seed alone.
  assert main(['sweep', str(read(grids).file), '--list', '--ppo.seed', '5']) == 0


def test_help_with_a_file_lists_the_fields_of_the_sweep(read, capsys):
  assert main(['sweep', str(read(GRID).file), '--help']) == 0
  told = capsys.readouterr().out
  assert '--point NAME' in told and '--ppo.kl_coef' in told
  assert '--sweep.best_of' in told and '--sweep.grid' not in told
  assert main(['sweep', '--help']) == 0
  assert '--point NAME' in capsys.readouterr().out


def test_list_names_the_points(read, capsys):
  assert main(['sweep', str(read(GRID).file), '--list']) == 0
  assert capsys.readouterr().out.split() == list(grid.points(read(GRID)))
  one = ['sweep', str(read(GRID).file), '--list', '--point']
  assert main([*one, 'kl_coef_0-seed_1']) == 0
  assert capsys.readouterr().out.split() == ['kl_coef_0-seed_1']
  assert main([*one, 'kl_coef_1-seed_1']) == 2
  assert 'the sweep has no point' in capsys.readouterr().err
