"""The files of experiments/, run from outside as a user runs them, so that they never rot."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
REAL = ROOT.parent / 'shared' / 'data'


def rlhf_jax(*words, check=True, **options):
  """Runs `python -m rlhf_jax …` from the repository root on one CPU device; output as text."""
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-m', 'rlhf_jax', *map(str, words)], cwd=ROOT, text=True,
                        capture_output=True, env=environment, stdin=subprocess.DEVNULL, **options)
  assert not check or done.returncode == 0, done.stderr[-3000:]
  return done


def numbers(tree):
  """Every number in a JSON tree."""
  if isinstance(tree, dict):
    tree = list(tree.values())
  if isinstance(tree, list):
    return [n for item in tree for n in numbers(item)]
  return [tree] if isinstance(tree, int | float) and not isinstance(tree, bool) else []


@pytest.mark.parametrize('name', ['quickstart', 'real_text', 'own_reward', 'kl_sweep'])
def test_list_names_the_runs(name):
  lines = rlhf_jax('list', f'experiments/{name}.py').stdout.split()
  assert {'gpt', 'sft'} <= set(lines)


@pytest.mark.long
def test_quickstart_shows_what_it_promises(tmp_path):
  rlhf_jax('run', 'experiments/quickstart.py', '--workdir', tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert all(math.isfinite(n) for n in numbers(results))
  models = results['models']
  win = {name: models[name]['win_rate_vs_sft'] for name in models}
  assert {'gpt', 'sft', 'ppo_ptx', 'sft_t05', 'sft_best_of_4'} <= set(models)
  assert all(rate['n'] >= 500 for rate in win.values())
  # GPT < SFT < PPO-ptx, intervals apart; a half is SFT against itself.
  assert win['gpt']['high'] < 0.5 < win['ppo_ptx']['low']
  assert win['gpt']['high'] < win['sft']['low'] and win['sft']['high'] < win['ppo_ptx']['low']
  assert win['ppo_ptx']['mean'] >= 0.6
  assert models['sft_best_of_4']['gold'] > models['sft']['gold']
  done = models['sft']['by_category']
  assert len(done) == 10 and all(c['fails_task_rate'] < 1 for c in done.values())
  assert models['ppo_ptx']['pretraining_loss'] < 1.03 * models['sft']['pretraining_loss']
  assert results['reward_model']['accuracy_heldout_labelers'] > 0.6
  assert abs(results['labelers']['agreement_training'] - 0.726) < 0.015
  assert abs(results['labelers']['agreement_heldout'] - 0.773) < 0.013
  assert (tmp_path / 'report.html').stat().st_size > 50_000

  said = rlhf_jax('sample', '--workdir', tmp_path, '--run', 'ppo_ptx', '-n', 3).stdout
  assert len(said.strip().splitlines()) >= 3  # a response may hold a line break
  # Everything is finished: a second start does nothing and says the same.
  before = (tmp_path / 'results.json').read_bytes()
  rlhf_jax('run', 'experiments/quickstart.py', '--workdir', tmp_path, timeout=60)
  assert (tmp_path / 'results.json').read_bytes() == before


@pytest.mark.long
def test_the_other_recipe_of_sft(tmp_path):
  """Paper C.1: 16 epochs, residual dropout 0.2, the checkpoint that the reward model likes best."""
  file = tmp_path / 'recipe.py'
  file.write_text('''
import dataclasses, runpy
from rlhf_jax import miniature as world
from rlhf_jax.configs import Model
runs = runpy.run_path('experiments/quickstart.py')['runs']
runs = {name: runs[name] for name in ('gpt', 'sft', 'rankings', 'reward')}
runs['sft16'] = dataclasses.replace(
  runs['sft'], epochs=16, model=Model(dropout=0.2), select='reward', reward='reward',
  prompts=(world.prompts_source('validation', 24),), evaluate_every=20)
''')
  rlhf_jax('run', file, '--workdir', tmp_path / 'w', '--gpt.steps', 40, '--gpt.data.0.size', 600,
           '--gpt.model.layers', 1, '--sft.data.0.size', 100, '--sft16.data.0.size', 100,
           '--sft.pretraining.0.size', 600, '--sft16.pretraining.0.size', 600,
           '--rankings.prompts.0.size', 40)
  metrics = (tmp_path / 'w' / 'sft16' / 'metrics.jsonl').read_text()
  scores = [row['reward'] for row in map(json.loads, metrics.splitlines()) if 'reward' in row]
  finished = json.loads((tmp_path / 'w' / 'sft16' / 'finished.json').read_text())
  assert finished['steps'] >= 40 and len(scores) >= 2
  assert finished['summary']['best_reward'] == pytest.approx(max(scores), rel=1e-5)


@pytest.mark.long
def test_a_reward_of_ones_own_is_learnt(tmp_path):
  rlhf_jax('run', 'experiments/own_reward.py', '--workdir', tmp_path, '--gpt.steps', 60,
           '--gpt.data.0.size', 4000, '--sft.data.0.size', 600,
           '--sft.steps', 20, '--ppo.updates', 15, '--ppo.kl_coef', 0.0, '--gpt.model.layers', 1)
  metrics = (tmp_path / 'ppo' / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in metrics.splitlines()]
  assert rows[-1]['score'] > rows[0]['score'] + 0.3


@pytest.mark.long
def test_real_text_accounts_for_every_row(tmp_path):
  if not REAL.is_dir():
    pytest.skip('the real data is not beside the repository')
  rlhf_jax('run', 'experiments/real_text.py', '--workdir', tmp_path, '--data', REAL,
           '--gpt.model.layers', 1, '--gpt.steps', 20, '--sft.epochs', 0.2,
           '--ppo_ptx.updates', 2, '--evaluation.prompts.0.size', 40,
           '--evaluation.prompts.1.size', 40, '--evaluation.text.0.size', 40)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert 0 < results['reward_model']['accuracy'] < 1
  low, high = results['reward_model']['accuracy_ci']
  assert low < results['reward_model']['accuracy'] < high
  cards = [json.loads(path.read_text()) for path in (tmp_path / 'data').glob('*/card.json')]
  assert {card['kind'] for card in cards} == {'text', 'demonstrations', 'rankings', 'prompts'}


def test_without_data_the_error_says_where_it_is_published(tmp_path):
  done = rlhf_jax('run', 'experiments/real_text.py', '--workdir', tmp_path, check=False)
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  assert '--data' in last and 'github.com' in last


def test_tinystories_lists_its_runs():
  lines = rlhf_jax('list', 'experiments/tinystories.py').stdout.split()
  assert {'sft', 'rankings', 'reward', 'ppo', 'ppo_ptx', 'evaluation'} <= set(lines)


@pytest.fixture(scope='module')
def tinystories(tmp_path_factory):
  """Its workdir with half the rankings and prompts and fewer updates; the whole, of which its file
  tells, takes nine minutes by itself.
  """
  if not REAL.is_dir():
    pytest.skip('the real data is not beside the repository')
  folder = tmp_path_factory.mktemp('tinystories')
  rlhf_jax('run', 'experiments/tinystories.py', '--workdir', folder, '--data', REAL,
           '--rankings.prompts.0.size', 600, '--ppo.updates', 14, '--ppo_ptx.updates', 26,
           '--evaluation.prompts.0.size', 250)
  return folder


@pytest.mark.long
def test_tinystories_makes_a_real_model_better(tinystories):
  results = json.loads((tinystories / 'results.json').read_text())
  models = results['models']
  win = {name: models[name]['win_rate_vs_sft'] for name in models}
  assert set(models) == {'base', 'sft', 'ppo', 'ppo_ptx'}
  assert win['base']['high'] < win['sft']['low'] < win['ppo_ptx']['low']
  assert win['ppo_ptx']['low'] > 0.5
  tax = {name: models[name]['pretraining_loss_change'] for name in models}
  low, high = models['ppo_ptx']['pretraining_loss_change_ci']
  assert tax['sft'] == 0 and low <= tax['ppo_ptx'] <= high
  assert tax['ppo_ptx'] <= 0.05
  # Without the pretraining gradient more is lost, intervals apart.
  assert models['ppo']['pretraining_loss_change_ci'][0] > high
  assert results['reward_model']['accuracy'] > 0.6
  page = (tinystories / 'report.html').read_text(encoding='utf-8')
  assert 'base beside sft beside ppo beside ppo_ptx' in page and page.count('class="ask"') >= 10


@pytest.mark.long
def test_the_policy_of_tinystories_is_read_by_transformers(request, tmp_path):
  """Exported, it goes on from a prompt there as here."""
  pytest.importorskip('torch', reason='parity needs torch and transformers: pip install .[parity]')
  transformers = pytest.importorskip('transformers')
  tinystories = request.getfixturevalue('tinystories')
  folder, prompt = tmp_path / 'exported', 'Write a story about a dog and a ball.'
  rlhf_jax('export', '--workdir', tinystories, '--run', 'ppo_ptx', '--out', folder)
  ours = rlhf_jax('sample', '--workdir', tinystories, '--run', 'ppo_ptx', '--prompt', prompt,
                  '--temperature', 0, '--max-tokens', 60).stdout
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  asked = tokenizer(prompt, return_tensors='pt').input_ids
  theirs = model.generate(asked, do_sample=False, max_new_tokens=60)[0, asked.shape[1]:]
  assert ours.strip() == tokenizer.decode(theirs, skip_special_tokens=True).strip()
