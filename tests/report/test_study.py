"""The page of a made-up sweep: every section, nothing fetched, figures as files, a browser's
view.
"""

import csv
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from rlhf_jax import report
from rlhf_jax.evaluation import best_of_n, study
from rlhf_jax.report import figures, study_figures
from rlhf_jax.report import study as study_page
from rlhf_jax.runtime import tables

PROMPTS = 24
SECTIONS = ('overoptimization', 'coefficient', 'tax', 'training', 'samples', 'points')


def made_up(folder, judge='judge'):
  """A sweep's workdir with numbers from a hat: five β without ptx, one with it, two seeds."""
  hat = np.random.default_rng(0)
  points, names = [], {}
  for beta, ptx in [(0.0, 0.0), (0.005, 0.0), (0.02, 0.0), (0.1, 0.0), (0.5, 0.0), (0.02, 1.0)]:
    for seed in (0, 1):
      name = f'kl_coef_{beta:g}-ptx_ratio_{ptx:g}-seed_{seed}'
      names[name] = {'values': {'kl_coef': beta, 'ptx_ratio': ptx, 'seed': seed}, 'start': 's/r'}
      points.append(one(hat, folder, name, beta, ptx, seed, judge))
  n = (1, 2, 4, 8, 16)
  best = [{'n': k, 'kl': np.log(k) - (k - 1) / k} | {
    f'{measure}{end}': value + shift for measure, value in (
      ('gold', 0.1 * np.log(k)), ('proxy', 0.3 * np.log(k)), ('win_rate', 0.5))
    for end, shift in (('', 0), ('_low', -0.05), ('_high', 0.05), ('_plain', 0.01))} for k in n]
  start = {'metrics': {'gold': 0.3, 'proxy': 0.0, 'win_rate': 0.5, 'pretraining_loss': 0.8,
                       'evaluation_kl': 0.0}, 'best_of_n': best, 'fit': None, 'gold_units': 0.7,
           'baseline': {'gold': 0.3, 'proxy': 0.0}}
  told = {'base': 'ppo', 'grid': [{'kl_coef': [0.0]}], 'judge': judge,
          'settings': {'spacing': 0.25, 'stand_in': 'second'}}
  (folder / 'sweep.json').write_text(json.dumps(told | {'runs': names}))
  tables.write(folder, points, {'s/r': start}, told)
  return folder


def one(hat, folder, name, beta, ptx, seed, judge):
  """A point, and its evaluations as files."""
  config = {'kl_coef': beta, 'ptx_coef': 1.0, 'ptx_ratio': ptx, 'reward': 'reward'}
  values = {'kl_coef': beta, 'ptx_ratio': ptx, 'seed': seed}
  failed = beta == 0.5 and seed == 1
  metrics, evaluations = [], {}
  for step in range(1, 41):
    d = 2.5 * (1 - np.exp(-step / 12)) / (1 + 12 * beta)
    metrics.append({'step': step, 'kl': d * d, 'score': d + 0.05 * hat.normal(), 'ratio_first': 1.0,
                    'entropy': 1 - d / 10, 'clip_fraction': 0.01, 'eos_rate': 0.98,
                    'explained_variance': -0.4 if beta == 0.1 and seed else 0.6})
    if step == 1 or step % 8 == 0:
      evaluations[step] = [answer(hat, index, d, judge) for index in range(PROMPTS)]
      metrics[-1] |= {'gold': 0.3 + d, 'win_rate': 0.6, 'proxy': 0.9, 'evaluation_kl': d * d,
                      'pretraining_loss': 0.8 + 0.02 * d * (1 - ptx), 'distinct_2': 0.4,
                      'repetition': 0.1, 'reward_accuracy': 0.7, 'reward_ece': 0.05}
  (folder / name / 'evaluations').mkdir(parents=True)
  for step, rows in evaluations.items():
    (folder / name / 'evaluations' / f'{step}.jsonl').write_text(''.join(
      json.dumps(row) + '\n' for row in rows))
  return study.Made(name, values, config, 's/r', 'failed' if failed else 'finished',
                    'loss is nan at step 40' if failed else '', None if failed else 61.0, metrics,
                    evaluations)


def answer(hat, index, d, judge):
  """A row of an evaluation."""
  gold = 0.3 + d * (0.9 - 0.4 * np.log(max(d, 1e-9))) + 0.3 * hat.normal()
  row = {'id': f'{index:05d}', 'prompt': f'<i>Ask</i> {index} ?', 'category': 'chat',
         'response': f'It is {index} & more.', 'reference': 'A cat.', 'ended': True, 'length': 7,
         'proxy': float(d + 0.2 * hat.normal()), 'kl': float(d * d), 'kl_k3': float(d * d)}
  flags = {'refuses': index == 3, 'hallucination': index == 4} if index < 20 else {}
  return row | {'judgement': {'score': float(gold), 'win': float(index % 6 > 0), 'flags': flags,
                              'reference_score': 0.3} if judge else None}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  made = made_up(tmp_path_factory.mktemp('sweep'))
  report.write(made)
  return made


@pytest.fixture(scope='module')
def page(folder):
  return (folder / 'report.html').read_text('utf-8')


def test_every_section_and_figure_is_there(page):
  for section in SECTIONS:
    assert f'<section id="{section}">' in page
  assert page.count('<svg') == 5 == page.count('<figcaption>')
  assert 'Not there' not in page


def test_a_stopped_sweep_says_how_far_it_is(tmp_path):
  made = made_up(tmp_path)
  (tmp_path / 'summary.json').unlink()
  names = list(json.loads((tmp_path / 'sweep.json').read_text())['runs'])
  for name, file in ((names[0], 'finished'), (names[1], 'finished'), (names[2], 'failed'),
                     (names[3], 'config')):
    (made / name / f'{file}.json').write_text('{"kind": "PPO"}')
  page = report.write(made).read_text('utf-8')
  assert ('A sweep on its way: 2 of 12 points finished, 1 failed. Start the same command again to '
          'go on.') in page
  assert 'Not there yet' not in page and 'Not finished' not in page
  assert re.findall(r'<td class="(?:no)?">(\w+(?: \w+)?)</td>', page) == [
    'finished', 'finished', 'failed', 'begun', *['not begun'] * 8]


def test_nothing_is_fetched(page, folder):
  fetched = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
  assert all(name.startswith('figures/') and (folder / name).is_file() for name in fetched)
  assert 'http' not in page and '@import' not in page and 'url(http' not in page


def test_every_figure_says_n_and_what_its_band_is(page):
  for caption in re.findall(r'<figcaption>(.*?)</figcaption>', page, re.S):
    assert re.search(r'\bn\b', caption), caption
    assert re.search(r'band|Bars', caption), caption


def test_the_verdict_the_failed_and_the_unhealthy(page):
  assert re.search(r'Recommended: β = [\d.]+ \(β', page)
  assert 'Failed: kl_coef_0.5-ptx_ratio_0-seed_1.' in page
  assert 'loss is nan at step 40' in page
  assert '<b>kl_coef_0.1-ptx_ratio_0-seed_1</b>: explained variance is -0.40' in page
  assert 'Does any β alone give back what β 0.02, ptx gives back?' in page


def test_comparisons(page):
  """The best against the others of its kind, and every β against β = 0 where that was as far."""
  same = re.search(r'<h3>At the same KL</h3>.*?</table>', page, re.S)[0]
  assert same.count('<td>β 0, no ptx</td>') == 4 == same.count('<tr><td>')
  paired = re.search(r'<h3>The best against the others</h3>.*?</table>', page, re.S)[0]
  assert paired.count('<tr><td>') >= 5


def captioned(told, folder, key):
  """The comparisons of one kind on a page: table and what is said below it."""
  (folder / 'summary.json').write_text(json.dumps(told))
  title = {'same_kl': 'At the same KL', 'paired': 'The best against the others'}[key]
  return re.search(rf'<h3>{title}</h3>.*?</p>', report.write(folder).read_text('utf-8'), re.S)[0]


def test_rows_of_one_seed_are_not_said_to_hold_for_others(tmp_path):
  told = json.loads((made_up(tmp_path) / 'summary.json').read_text())
  several = 'for other seeds and other prompts (Student’s t; seeds are few'
  for row in told['same_kl']:
    row['gold']['seeds'] = 2
  assert f'{several}).' in captioned(told, tmp_path, 'same_kl')
  told['same_kl'][0]['gold']['seeds'] = 1
  assert (f'{several}; where n · seeds says one seed, for other prompts alone).'
          in captioned(told, tmp_path, 'same_kl'))
  for row in told['same_kl']:
    row['gold']['seeds'] = 1
  assert several not in captioned(told, tmp_path, 'same_kl')


def test_points_more_are_points(tmp_path):
  told = json.loads((made_up(tmp_path) / 'summary.json').read_text())
  told['paired'][0]['win_rate'] |= {'mean': -0.034, 'low': -0.07, 'high': 0.002}
  assert '>−3.4 <small>[−7.0, 0.2]</small>' in captioned(told, tmp_path, 'paired')


def test_what_is_not_there_is_not_spoken_of(tmp_path, page):
  assert 'Dashed: the fits below' in page and 'The recommended variant against all' in page
  folder = made_up(tmp_path)
  told = json.loads((folder / 'summary.json').read_text())
  told['recommended']['win_rate']['low'] = 0.4
  for one in (*told['variants'], *told['starts'].values()):
    one['fit'] = None
  assert 'The best variant against all others' in captioned(told, folder, 'paired')
  text = (folder / 'report.html').read_text('utf-8')
  assert 'Dashed: the fits' not in text and not re.search('[Tt]he recommended', text)


def test_one_prompt_and_one_seed(tmp_path, monkeypatch):
  """A mean of one number is told without an interval, in figures too."""
  monkeypatch.setattr(sys.modules[__name__], 'PROMPTS', 1)
  hat = np.random.default_rng(0)
  points = [one(hat, tmp_path, f'kl_coef_{beta:g}', beta, 0.0, 0, 'judge') for beta in (0.0, 0.1)]
  start = {'metrics': {'gold': 0.3}, 'baseline': {'gold': 0.3, 'proxy': 0.0}, 'fit': None,
           'gold_units': 1.0, 'best_of_n': best_of_n.table(
             {'gold': hat.normal(size=(1, 4)), 'proxy': hat.normal(size=(1, 4))},
             hat.normal(size=(1, 4)))}
  tables.write(tmp_path, points, {'s/r': start}, {
    'base': 'ppo', 'grid': [], 'judge': 'judge', 'settings': {'spacing': 0.25, 'stand_in': ''}})
  measures = json.loads((tmp_path / 'summary.json').read_text())['variants'][0]['measures']
  assert measures['kl']['low'] is None and measures['win_rate']['low'] is not None
  stale = tmp_path / 'figures' / 'gamma.svg'
  stale.parent.mkdir()
  stale.write_text('of a grid of before')
  text = report.write(tmp_path).read_text('utf-8')
  assert not stale.exists()
  assert f'>{measures["kl"]["mean"]:.2f} <small>n = 1</small>' in text and '[–, –]' not in text


def test_what_was_not_sampled_is_not_spoken_of(tmp_path, page):
  """Best-of-n without samples, units without two samples to order, the spread of a single seed."""
  folder = made_up(tmp_path)
  told = json.loads((folder / 'summary.json').read_text())
  start = told['starts']['s/r']
  start |= {'gold_units': None, 'best_of_n': start['best_of_n'][:1]}
  for one in told['variants']:
    one['measures']['distinct_2'] |= {'n': 1}
  (folder / 'summary.json').write_text(json.dumps(told))
  text = report.write(folder).read_text('utf-8')
  assert 'own units' not in text and 'best-of-n of the start' in text
  assert '40.0 % <small>[' in page and '40.0 % <small>[' not in text
  start['best_of_n'] = []
  (folder / 'summary.json').write_text(json.dumps(told))
  assert 'best-of-n of the start' not in report.write(folder).read_text('utf-8')


def test_samples_stand_side_by_side_and_are_escaped(page):
  assert '&lt;i&gt;Ask&lt;/i&gt; 0 ?' in page and 'It is 0 &amp; more.' in page
  assert '<i>Ask' not in page
  assert 'β 0, no ptx, β ' in page  # the smallest, the recommended, the largest
  assert 'What the reward model likes best' in page


def test_tables_sort_by_numbers(page):
  assert page.count('<table class="sortable">') >= 3 and 'data-v="' in page


def test_figures_are_files_too(folder):
  names = {path.stem for path in (folder / 'figures').glob('*.svg')}
  assert names <= set(study_page.FIGURES)
  assert names == {'overoptimization', 'beta', 'tax_beta', 'tax', 'training'}
  for name in names:
    text = (folder / 'figures' / f'{name}.svg').read_text('utf-8')
    assert text.startswith('<svg xmlns=') and 'background: white' in text
    with (folder / 'figures' / f'{name}.csv').open(newline='') as file:
      assert len(list(csv.DictReader(file))) > 4, name
  with (folder / 'figures' / 'overoptimization.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert {row['curve'] for row in rows} == {
    'β 0, no ptx', 'β 0.005, no ptx', 'β 0.02, no ptx', 'β 0.1, no ptx', 'β 0.5, no ptx',
    'β 0.02, ptx', 'best-of-n'}


def test_the_runs_that_points_rest_on_have_a_page_of_their_own(tmp_path):
  folder = made_up(tmp_path)
  for name, kind in (('sft', 'Language'), ('kl_coef_0-ptx_ratio_0-seed_0', 'PPO')):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / 'config.json').write_text(json.dumps({'kind': kind}))
  assert 'href="runs.html"' in report.write(folder).read_text('utf-8')
  runs = (folder / 'runs.html').read_text('utf-8')
  assert '<td>sft</td>' in runs and 'kl_coef_0' not in runs


def test_points_that_the_sweep_has_no_longer_are_no_runs_that_others_rest_on(tmp_path):
  """Nor are those of another sweep in the same workdir, which serves its models."""
  folder = made_up(tmp_path)
  for name, parents in (('sft', {}), ('ptx_coef_3-seed_0', {'measured': ['a way', 'hash']})):
    (folder / name).mkdir()
    (folder / name / 'config.json').write_text(json.dumps({'kind': 'PPO', 'parents': parents}))
  report.write(folder)
  runs = (folder / 'runs.html').read_text('utf-8')
  assert '<td>sft</td>' in runs and 'ptx_coef_3' not in runs


def test_points_that_are_new_since_the_tables_were_made_are_named(tmp_path, page):
  folder = made_up(tmp_path)
  told = json.loads((folder / 'sweep.json').read_text())
  told['runs']['kl_coef_<2>'] = {'values': {}, 'start': 's/r'}
  (folder / 'sweep.json').write_text(json.dumps(told))
  text = report.write(folder).read_text('utf-8')
  assert 'Not on this page: 1 point that the sweep has got since (kl_coef_&lt;2&gt;).' in text
  assert 'Not on this page' not in page


@pytest.mark.parametrize('file, said', [
  ('summary.json', 'A sweep on its way'), ('sweep.parquet', 'sweep.parquet: is not Parquet')])
def test_a_damaged_file_keeps_nobody_from_a_page(tmp_path, file, said):
  folder = made_up(tmp_path)
  (folder / file).write_bytes((folder / file).read_bytes()[:99])
  assert said in report.write(folder).read_text('utf-8')


def test_a_second_reward_model_is_told(tmp_path):
  text = report.write(made_up(tmp_path, judge='second reward model')).read_text('utf-8')
  assert 'There is no gold labeler here. A second reward model, second,' in text


def test_reward_models_are_told_apart(tmp_path):
  """A sweep over reward models alone: their table, and a column of samples for each."""
  hat, points = np.random.default_rng(1), []
  for reward in ('reward', 'reward_small'):
    point = one(hat, tmp_path, f'reward_{reward}-seed_0', 0.0, 0.0, 0, 'judge')
    points.append(dataclasses.replace(
      point, start=f's/{reward}', config=point.config | {'reward': reward},
      values={'kl_coef': 0.0, 'reward': reward, 'seed': 0}))
  best = [{'n': k, 'kl': np.log(k) - (k - 1) / k} | {
    f'{name}{end}': np.log(k) for name in ('gold', 'proxy', 'win_rate')
    for end in ('', '_low', '_high', '_plain')} for k in (1, 2)]
  start = {'metrics': {'reward_accuracy': 0.725}, 'baseline': {'gold': 0.3, 'proxy': 0.0},
           'gold_units': 0.7, 'best_of_n': best, 'fit': None}
  tables.write(tmp_path, points, {point.start: start for point in points}, {
    'base': 'ppo', 'grid': [], 'judge': 'judge', 'settings': {'spacing': 0.25, 'stand_in': ''}})
  report.write(tmp_path)
  text = (tmp_path / 'report.html').read_text('utf-8')
  table = text[text.index('At the same distance'):]
  table = table[:table.index('</table>')]
  assert table.count('<tr>') == 5 and table.count('72.5') == 4  # two distances of both
  assert 'β 0, reward, β 0, reward_small, the first seed of each' in text
  wins = json.loads((tmp_path / 'summary.json').read_text())['recommended']['win_rate']
  assert ('Recommended: β = 0' in text) == (wins['low'] > 0.5)
  for point in points:  # all of them lose
    for rows in point.evaluations.values():
      for row in rows:
        row['judgement']['win'] = 0.0
  tables.write(tmp_path, points, {point.start: start for point in points}, {
    'base': 'ppo', 'grid': [], 'judge': 'judge', 'settings': {'spacing': 0.25, 'stand_in': ''}})
  report.write(tmp_path)
  text = (tmp_path / 'report.html').read_text('utf-8')
  assert 'Nothing is recommended: no variant surely wins' in text and '>best</b>' in text
  with (tmp_path / 'figures' / 'overoptimization.csv').open(newline='') as file:
    curves = {row['curve'] for row in csv.DictReader(file)}
  assert {'best-of-n, reward', 'best-of-n, reward_small'} < curves


def test_draws_of_a_reward_model_are_told(tmp_path):
  hat, points = np.random.default_rng(1), []
  for seed, reward in enumerate(('reward', 'reward_1')):
    point = one(hat, tmp_path, f'reward_{reward}-seed_{seed}', 0.0, 0.0, seed, 'judge')
    points.append(dataclasses.replace(
      point, start=f's/{reward}', config=point.config | {'reward': reward},
      values={'kl_coef': 0.0, 'reward': reward, 'seed': seed}))
  start = {'metrics': {'proxy': 0.5}, 'baseline': {'gold': 0.3, 'proxy': 0.0}, 'fit': None}
  starts = {point.start: start | {'gold_units': 0.5 + index, 'best_of_n': []}
            for index, point in enumerate(points)}
  tables.write(tmp_path, points, starts, {
    'base': 'ppo', 'grid': [], 'judge': 'judge', 'settings': {
      'spacing': 0.25, 'stand_in': '', 'draw_of': {'reward': 'reward', 'reward_1': 'reward'}}})
  report.write(tmp_path)
  text = (tmp_path / 'report.html').read_text('utf-8')
  assert 'reward_1 counts as reward.' in text and 'reward counts as' not in text
  assert 'a number each (reward 0.50, reward_1 1.50)' in text
  told = json.loads((tmp_path / 'summary.json').read_text())['variants']
  assert len(told) == 1 and len(told[0]['finished']) == 2
  assert 'proxy' not in told[0]['measures'] and 'proxy' in told[0]['curves']  # no common unit


def test_a_reward_model_whose_order_is_the_judges_reversed(tmp_path):
  """There is no common unit, also in a sweep of before, which took a negative one."""
  folder = made_up(tmp_path)
  told = json.loads((folder / 'summary.json').read_text())
  for units in (-0.2, None):
    told['starts']['s/r']['gold_units'] = units
    (folder / 'summary.json').write_text(json.dumps(told))
    text = report.write(folder).read_text('utf-8')
    assert 'Gain over the start' in text
  assert 'in their own units: no positive number' in text


def test_what_differs_besides_gamma_has_a_line_of_its_own():
  variants = [{'values': {'reward': reward, 'ptx_coef': gamma}, 'beta': 0.02, 'gamma': gamma}
              for reward in ('small', 'large') for gamma in (0.0, 1.0)]
  assert {name: [one['gamma'] for one in some]
          for name, some in study_figures._lines(variants, 'gamma').items()} == {
    'β 0.02, reward small': [0.0, 1.0], 'β 0.02, reward large': [0.0, 1.0]}
  assert list(study_figures._lines(variants[:2], 'gamma')) == ['β 0.02']


def test_without_a_judge_the_page_says_what_is_missing(tmp_path):
  text = report.write(made_up(tmp_path, judge='')).read_text('utf-8')
  assert 'There is no judge here' in text and 'Nothing is recommended' in text
  assert 'Not there: a fit' in text


def test_a_sweep_of_which_nothing_is_finished(tmp_path):
  tables.write(tmp_path, [study.Made('a', {'kl_coef': 0.1}, {
    'kl_coef': 0.1, 'ptx_coef': 1.0, 'ptx_ratio': 0.0, 'reward': 'r'}, 's', 'failed', 'a reason',
    None, [], {})], {'s': {'metrics': {}, 'baseline': {}}}, {
      'base': 'ppo', 'grid': [], 'judge': 'judge', 'settings': {'spacing': 0.25}})
  text = report.write(tmp_path).read_text('utf-8')
  assert 'a reason' in text and text.count('Not there') >= 4


def test_colours_run_from_the_smallest_to_the_largest():
  variants = [{'label': str(beta), 'beta': beta} for beta in (0.5, 0.0, 0.02)]
  found = study_figures.colours(variants)
  assert [found[name] for name in ('0.0', '0.02', '0.5')] == study_figures.ramp(3)
  assert len(set(study_figures.ramp(20))) == 20
  same = [{'label': name, 'beta': 0.0} for name in 'abc']
  assert len(set(study_figures.colours(same).values())) == 3


def legend_is_whole(figure):
  """Whether no part of a figure's legend is beyond its edge."""
  figure.draw_without_rendering()
  (legend,), edge = figure.legends, figure.bbox
  there = legend.get_window_extent()
  return edge.x0 <= there.x0 < there.x1 <= edge.x1 and edge.y0 <= there.y0 < there.y1 <= edge.y1


@pytest.mark.parametrize('count, name', [(26, 'β {}, no ptx'), (6, 'a field of an optimizer {}')])
def test_legends_are_whole_however_many_and_long_the_names_are(count, name):
  variants = [{'label': name.format(i), 'beta': 0.1 * i, 'gamma': 0.0, 'measures': {
    key: {'mean': 0.5, 'low': 0.4, 'high': 0.6} for key in ('tax', 'win_rate')}}
              for i in range(count)]
  assert legend_is_whole(study_figures.tax.__wrapped__(variants)[0])
  entries = {one['label']: {'kl': i, 'gold': i, 'proxy': i} for i, one in enumerate(variants)}
  assert legend_is_whole(figures.gold_over_kl.__wrapped__(entries)[0])


def test_a_long_name_leaves_room_for_the_bars():
  rate = {'mean': 0.5, 'low': 0.4, 'high': 0.6, 'n': 9}
  figure, _ = figures.win_rates.__wrapped__({'a long name of a model ' * 3: rate}, 'sft')
  figure.draw_without_rendering()
  assert figure.axes[0].get_window_extent().width > 350


def test_csv_has_a_column_for_whatever_a_row_has():
  assert study_page.as_csv([{'a': 1}, {'a': 2, 'b': 'x,y'}]) == 'a,b\n1,\n2,"x,y"\n'


# ------------------------------------------------------------------------------------ a browser


SORTED = """const fs = require('fs');
const cell = text => ({dataset: {}, textContent: text, classList: {contains: name => name === 'n'},
                       setAttribute() {}, removeAttribute() {}, getAttribute() {}});
const rows = [['n'], ['800'], ['1\u202f200'], ['–'], ['−3'], ['96 · 2']].map(texts => ({
  cells: texts.map(cell), parentNode: {append: row => order.push(row.cells[0].textContent)}}));
const order = [], document = {querySelectorAll: () => [{rows}]};
eval(fs.readFileSync(process.argv[1], 'utf8'));
rows[0].cells[0].onclick();
console.log(JSON.stringify(order));"""


@pytest.mark.skipif(shutil.which('node') is None, reason='no Node.js')
def test_numbers_sort_as_they_are_written_for_people():
  script = pathlib.Path(study_page.__file__).parent / 'sort.js'
  done = subprocess.run(['node', '-e', SORTED, str(script)], capture_output=True, text=True,
                        check=True, timeout=60)
  assert json.loads(done.stdout) == ['1\u202f200', '800', '96 · 2', '−3', '–']


def browser(*words):
  """Headless Chromium's output; skips where there is none."""
  found = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
               None)
  if found is None:
    pytest.skip('no Chromium: apt install chromium')
  done = subprocess.run([found, '--headless', '--no-sandbox', '--disable-gpu', *words],
                        capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


ASK = """<script>
window.onerror = text => { document.title = 'error: ' + text; };
const table = document.querySelector('#points table');
const first = () => table.rows[1].cells[0].textContent;
const before = first(); table.rows[0].cells[8].click(); const high = first();
table.rows[0].cells[8].click(); const low = first();
document.title = JSON.stringify({before, high, low, wide: document.documentElement.scrollWidth,
  window: window.innerWidth, ink: getComputedStyle(document.body).color,
  figures: [...document.querySelectorAll('figure svg')].map(x => x.clientHeight)});
</script>"""


@pytest.mark.long
@pytest.mark.parametrize('width', [1200, 500])
def test_a_browser_opens_and_sorts_it(folder, tmp_path, width):
  asking = tmp_path / 'asking.html'
  asking.write_text((folder / 'report.html').read_text('utf-8').replace('</body>', ASK + '</body>'))
  dom = browser(f'--window-size={width},900', '--dump-dom', asking.as_uri())
  told = json.loads(re.search(r'<title>(.*?)</title>', dom, re.S)[1].replace('&quot;', '"'))
  assert told['wide'] <= told['window']  # wide tables scroll by themselves
  assert told['high'] != told['low'] and 'kl_coef_0-' in told['high'] and '0.5' in told['low']
  assert len(told['figures']) == 5 and min(told['figures']) > 80


@pytest.mark.long
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_reads_well_in_light_and_dark(folder, tmp_path, scheme):
  """Paper and ink are far apart, in the text and in the figures, whose ink is the page's."""
  picture = tmp_path / 'page.png'
  flag = {'light': 1, 'dark': 0}[scheme]
  browser(f'--blink-settings=preferredColorScheme={flag}', '--window-size=1200,2400',
          f'--screenshot={picture}', (folder / 'report.html').as_uri())
  grey = matplotlib.image.imread(picture)[:, :, :3].mean(axis=2)
  paper = np.median(grey)
  assert paper > 0.9 if scheme == 'light' else paper < 0.2
  for part in (grey[:300], grey[400:1200]):
    assert np.abs(part - paper).max() > 0.6
