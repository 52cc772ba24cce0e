"""The report of a made-up workdir: every section is there, nothing is fetched, half a workdir is
enough."""

import html.parser
import json
import math
import random
import re
import shutil

import pytest

from rlhf_jax import configs
from rlhf_jax.report import contents, figures, findings, report

SECTIONS = (
  'results',
  'categories',
  'samples',
  'reward',
  'labelers',
  'curves',
  'kl',
  'data',
  'runs',
)
MODELS = {'gpt': .2, 'sft': .5, 'sft_t05': .58, 'sft_best_of_4': .6, 'ppo_ptx': .71}


def made_up(folder, finished=True):
  """A workdir as the runtime leaves it, with numbers from a hat."""
  hat = random.Random(0)
  parents = {'gpt': {}, 'sft': {'init_from': 'gpt'}, 'rankings': {'policy': 'sft'},
             'reward': {'init_from': 'sft', 'data': 'rankings'},
             'ppo_ptx': {'policy': 'sft', 'reward': 'reward'},
             'evaluation': {'models.ppo_ptx': 'ppo_ptx', 'reward': 'reward'}}
  kinds = {'rankings': 'Collect', 'reward': 'Reward', 'ppo_ptx': 'PPO', 'evaluation': 'Evaluate'}
  sampled = {
    name: {
      'run': name if name in parents else 'sft',
      'temperature': 0.5 if name == 'sft_t05' else 1.0,
      'best_of': 4 if 'best' in name else 1,
      'prefix': '',
    }
    for name in MODELS
  }
  config = {
    'gpt': {'init_from': ''},
    'sft': {'init_from': 'gpt'},
    'evaluation': {'against': 'sft', 'models': sampled},
  }
  for name in parents:
    write(folder / name / 'config.json', {
      'kind': kinds.get(name, 'Language'), 'config': config.get(name, {'seed': 0}),
      'parents': {role: [run, 'abc'] for role, run in parents[name].items()}, 'hash': 'abc',
      'versions': {'python': '3.11', 'jax': '0.10.2'}, 'commit': 'deadbeef'})
  lines(
    folder / 'gpt' / 'metrics.jsonl',
    [
      {
        'step': i + 1,
        'loss': 5 * math.exp(-i / 60) + 2 + hat.gauss(0, 0.1),
        'gradient_norm': 1 + hat.random(),
      }
      | ({'validation_loss': 5 * math.exp(-i / 60) + 2.1} if i % 50 == 49 else {})
      for i in range(400)
    ],
  )
  lines(
    folder / 'reward' / 'metrics.jsonl',
    [
      {'step': i + 1, 'loss': 0.69 - i / 800, 'accuracy': 0.5 + i / 500, 'gradient_norm': None}
      for i in range(90)
    ],
  )
  lines(
    folder / 'ppo_ptx' / 'metrics.jsonl',
    [
      {
        'step': i + 1,
        'score': i / 40 + hat.gauss(0, 0.1),
        'kl': i / 15,
        'entropy': 2 - i / 100,
        'response_length': 11 + hat.random(),
        'eos_rate': 0.97,
        'ptx_loss': 2.1,
        'explained_variance': 0.5,
        'clip_fraction': 0.01,
        'kl_coef': 0.02,
      }
      | (
        {'win_rate': 0.5 + i / 300, 'gold': 0.9 + i / 100, 'evaluation_kl': i / 15}
        if i % 10 == 9
        else {}
      )
      for i in range(60)
    ],
  )
  lines(
    folder / 'ppo_ptx' / 'samples.jsonl',
    [
      {
        'step': i // 4,
        'prompt': f'Rollout prompt {i}',
        'response': f'an answer {i}',
        'score': 0.1 * i,
        'kl': 1.5,
      }
      for i in range(40)
    ],
  )
  write(
    folder / 'data' / 'text-1f2e' / 'card.json',
    {
      'kind': 'prompts',
      'sources': {
        'asked.jsonl': {'read': 1234567, 'refused': {'empty text': 3}, 'duplicates': 0, 'kept': 900}
      },
      'records': 900,
      'refused': {'prompt too long': 12},
      'cut': {'prompts': {'count': 9, 'share': 0.01}},
      'rows': {'train': 800, 'heldout': 88},
    },
  )
  if not finished:
    return folder
  for name in parents:
    write(folder / name / 'finished.json', {'seconds': 61.5, 'steps': 60, 'summary': {'loss': 2.0}})
  for name, rate in MODELS.items():
    lines(
      folder / 'evaluation' / 'evaluations' / f'{name}.jsonl',
      [
        {
          'id': f'{i:05d}',
          'prompt': f'<b>Prompt</b> {i}',
          'category': 'chat',
          'response': f'{name} says {i} & more',
          'ended': True,
          'length': 7,
          'kl': 1.0,
          'proxy': 0.25,
          'judgement': {'score': rate + 0.1 + 0.01 * (i % 3), 'win': float(i < 30 * rate),
                        'flags': {'rude': False}},
        }
        for i in range(30)
      ],
    )
  entry = lambda rate: {
    'win_rate_vs_sft': {'mean': rate, 'low': rate - 0.04, 'high': rate + 0.04, 'n': 600},
    'gold': rate + 0.3,
    'gold_ci': [rate + 0.25, rate + 0.35],
    'proxy': rate,
    'proxy_ci': [rate - 0.1, rate + 0.1],
    'kl': 5 * abs(rate - 0.5),
    'kl_ci': [5 * abs(rate - 0.5) - 0.05, 5 * abs(rate - 0.5) + 0.05],
    'response_length': 11.2,
    'eos_rate': 0.98,
    'pretraining_loss': 2.31,
    'pretraining_loss_ci': [2.2, 2.4],
    'pretraining_loss_change': 0.012,
    'pretraining_loss_change_ci': [0.01, 0.014],
    'distinct_2': 0.3,
    'rude_rate': 0.02,
    'rude_rate_ci': [0.01, 0.03],
    'rude_rate_n': 600,
    'rude_rate_by_request': {
      'respectful': {'mean': 0.0, 'low': 0.0, 'high': 0.116, 'n': 29},
      'none': {'mean': 0.021, 'low': 0.01, 'high': 0.032, 'n': 571},
      'rude': {'mean': None, 'low': None, 'high': None, 'n': 0},
    },
    'hallucination_rate': None,
    'hallucination_rate_n': 0,
    'refusal_rate': 0.05,
    'by_category': {
      category: {
        'n': n,
        'gold': rate,
        'fails_task_rate': 0.4,
        'refusal_rate': 0.1,
        'win_rate_vs_sft': {'mean': rate, 'low': rate - 0.2, 'high': rate + 0.2, 'n': n},
      }
      for category, n in (('generation', 270), ('open QA', 70), ('extraction', 9))
    },
  }
  tell(
    folder,
    {
      'labelers': {
        'agreement_training': 0.726,
        'agreement_training_ci': [0.71, 0.74],
        'pairs_training': 4000,
        'prompts_training': 300,
        'agreement_heldout': 0.773,
        'agreement_heldout_ci': [0.76, 0.785],
      },
      'reward_model': {
        'accuracy': 0.68,
        'accuracy_ci': [0.66, 0.7],
        'accuracy_heldout_labelers': 0.64,
        'pairs': 4000,
        'accuracy_heldout_labelers_ci': [0.62, 0.66],
        'ece': 0.03,
        'mean_sft': -0.1,
        'std_sft': 0.8,
        'by_labeler': {
          'anna': {'accuracy': 0.68, 'accuracy_ci': [0.66, 0.7], 'pairs': 4000, 'training': True}
        },
        'reliability': [
          {
            'low': i / 10,
            'high': (i + 1) / 10,
            'confidence': i / 10 + 0.05,
            'accuracy': i / 10 + 0.04,
            'n': 100 + i,
          }
          for i in range(10)
        ],
      },
      'models': {name: entry(rate) for name, rate in MODELS.items()},
    },
  )
  return folder


def tell(folder, results):
  """As the runtime leaves what an Evaluate run found."""
  write(folder / 'evaluation' / 'finished.json', {'summary': results, 'seconds': 61.5})
  write(folder / 'results.json', results | {'evaluation': 'evaluation', 'seconds': {'gpt': 61.5}})


def found_in(folder):
  return json.loads((folder / 'evaluation' / 'finished.json').read_text())['summary']


def write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value), encoding='utf-8')


def lines(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


class Page(html.parser.HTMLParser):
  """Sections, ids and whether tags are closed in order."""

  VOID = frozenset({'meta', 'br', 'path', 'use', 'link', 'img', 'input', 'hr'})

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.sections, self.images = [], [], [], 0
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    found = dict(attrs)
    self.ids += [found['id']] if 'id' in found else []
    self.sections += [found['id']] if tag == 'section' else []
    self.images += tag == 'svg'
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.ids += [value for name, value in attrs if name == 'id']

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag, tag


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return made_up(tmp_path_factory.mktemp('workdir'))


@pytest.fixture(scope='module')
def whole(folder):
  path = report.write(folder)
  assert path == folder / 'report.html'
  return path.read_text(encoding='utf-8')


def test_every_section_is_there_and_none_is_empty(whole):
  page = Page(whole)
  assert tuple(page.sections) == SECTIONS and not page.open
  assert 'Not there yet' not in whole
  assert page.images == 7  # win rates, three runs' curves, path, gold over KL, reliability
  assert len(page.ids) == len(set(page.ids))


def test_nothing_comes_from_elsewhere(whole):
  assert 'http' not in whole and '//' not in re.sub(
    r'<script>.*</script>', '', whole, flags=re.S
  ).replace('</', '')
  assert not re.search(r'<(link|img|iframe|script)[^>]*(src|href)=', whole)
  assert 'url(#' in whole and 'font-family: "' not in whole.split('</style>')[1]


def test_figures_take_the_colour_of_the_page(whole):
  assert 'currentColor' in whole and figures.INK not in whole
  assert 'prefers-color-scheme: dark' in whole and 'fill: #ffffff' not in whole


def test_twenty_samples_in_order_with_both_scores_and_markup_as_text(whole):
  asked = re.findall(r'<p class="ask">(.*?)</p>', whole)
  assert asked == [f'&lt;b&gt;Prompt&lt;/b&gt; {i}' for i in range(20)]
  assert (
    'sft says 3 &amp; more' in whole
    and 'ppo_ptx says 19 &amp; more' in whole
    and 'says 20 ' not in whole
  )
  assert '<b>ppo_ptx · judge 0.81 · reward model 0.25 · wins</b>' in whole
  assert 'gpt beside sft beside ppo_ptx' in whole and 'gpt says 0 &amp; more' in whole
  assert 'sft_t05 says' not in whole  # another way to sample is no other model


def test_a_model_folder_is_what_was_pretrained(tmp_path):
  folder = made_up(tmp_path)
  for name, fields in (('sft', {'init_from': 'gpt2/'}), ('evaluation', None)):
    there = json.loads((folder / name / 'config.json').read_text())
    there['config'] |= fields or {}
    if name == 'evaluation':
      there['config']['models']['base'] = there['config']['models'].pop('gpt') | {'run': 'gpt2/'}
    write(folder / name / 'config.json', there)
  told = findings.roles(contents.read(folder))
  assert told.pretrained == 'base' and told.against == 'sft' and told.best == 'ppo_ptx'


def test_what_was_measured_of_a_model_that_is_another_now_is_not_shown(tmp_path):
  folder = made_up(tmp_path)
  assert 'than there is now' not in report.write(folder).read_text(encoding='utf-8')
  there = json.loads((folder / 'sft' / 'config.json').read_text())
  write(folder / 'sft' / 'config.json', there | {'hash': 'another'})
  page = report.write(folder).read_text(encoding='utf-8')
  assert 'evaluation was made from another sft than there is now: what it measured' in page
  assert 'reward was made from another' in page and 'gpt was made' not in page
  assert 'sft says 3' not in page and contents.read(folder).measured == {}


def test_the_aligned_model_spoken_of_first_is_told_by_its_settings(tmp_path):
  folder = made_up(tmp_path)
  described = json.loads((folder / 'ppo_ptx' / 'config.json').read_text())
  for name, ratio in (('no_ptx', 0.0), ('mixed', 1.0)):
    write(folder / name / 'config.json', described | {
      'config': {'ptx_coef': 1.0, 'ptx_ratio': ratio}})
  evaluation = json.loads((folder / 'evaluation' / 'config.json').read_text())
  plain = evaluation['config']['models']['sft']
  evaluation['config']['models'] = {name: plain | {'run': name}
                                    for name in ('sft', 'no_ptx', 'mixed')}
  write(folder / 'evaluation' / 'config.json', evaluation)
  told = findings.roles(contents.read(folder))
  assert told.aligned == ('no_ptx', 'mixed') and told.best == 'mixed'


def test_change_of_the_loss_with_its_interval(whole):
  assert '1.2 % <small>[1.0, 1.4]</small>' in whole


def test_rows_of_every_source_are_accounted_for(whole):
  table = re.search(r'<section id="data">(.*?)</table>', whole, flags=re.S)[1]
  text = ' '.join(re.sub('<[^>]*>', ' ', table).split())
  assert 'asked.jsonl 1 234 567 900 empty text: 3 –' in text
  assert 'all together 900 888 prompt too long: 12 prompts 1.0 %' in text


def test_rudeness_by_what_was_asked_for(whole):
  table = re.search(r'asked: respectful.*?</table>', whole, flags=re.S)[0]
  text = ' '.join(re.sub('<[^>]*>', ' ', table).split())
  assert 'sft 0.0 % [0.0, 11.6] n = 29 2.1 % [1.0, 3.2] n = 571 – n = 0' in text


def test_verdict_and_claims(tmp_path, whole):
  assert 'ppo_ptx is preferred to sft: it wins 71.0 % of 600 held-out prompts' in whole
  told = {
    claim.text.split(':')[0]: claim.holds
    for claim in findings.claims(contents.read(made_up(tmp_path)))
  }
  assert told == {
    'gpt is worse than sft, intervals apart': True,
    'ppo_ptx is better than sft, intervals apart': True,
    'ppo_ptx wins at least 60% against sft': True,
    'ppo_ptx wins more than sft_t05': True,
    'ppo_ptx wins more than sft_best_of_4': True,
    'sft_best_of_4 gains in the judge’s score': True,
    'the reward model predicts held-out labelers above 60%': True,
    'the pretraining loss of ppo_ptx is within 3% of sft’s': True,
    'sft does every category at least sometimes': True,
  }


def test_of_two_evaluations_the_page_tells_the_one_that_results_name(tmp_path):
  folder = made_up(tmp_path)
  results = found_in(folder)
  first = json.loads((folder / 'evaluation' / 'config.json').read_text())
  write(folder / 'afterwards' / 'config.json', first)  # before the other one by the alphabet
  shutil.copytree(folder / 'evaluation' / 'evaluations', folder / 'afterwards' / 'evaluations')
  lines(folder / 'evaluation' / 'evaluations' / 'ppo_ptx.jsonl', [])
  rate = {'mean': 0.123, 'low': 0.1, 'high': 0.2, 'n': 600}
  other = {'models': {name: entry | {'win_rate_vs_sft': rate}
                      for name, entry in results['models'].items()}}
  write(folder / 'afterwards' / 'finished.json', {'summary': other, 'seconds': 1})
  write(folder / 'evaluation' / 'finished.json', {'summary': results, 'seconds': 1})
  write(folder / 'results.json', results | {'evaluation': 'afterwards'})
  page = report.page(contents.read(folder))
  assert 'told of afterwards; the numbers of evaluation stand below' in page
  better = next(claim for claim in findings.claims(contents.read(folder))
                if claim.text.startswith('ppo_ptx wins more than sft_t05'))
  assert better.numbers.startswith('12.3 %') and 'prompt by prompt' in better.numbers
  assert 'not there prompt by prompt' not in better.numbers


def test_results_of_an_older_model_are_no_verdict(tmp_path):
  folder = made_up(tmp_path)
  for name in ('ppo_ptx', 'evaluation'):  # begun anew
    (folder / name / 'finished.json').unlink()
  page = report.page(contents.read(folder))
  assert 'Not finished: ppo_ptx, evaluation.' in page and '71.0 %' not in page
  assert 'Not there yet: what an Evaluate run finds' in page


def test_a_finished_evaluation_needs_no_results_file(tmp_path, whole):
  folder = made_up(tmp_path / 'workdir')
  (folder / 'results.json').unlink()
  page = report.page(contents.read(folder))
  assert 'ppo_ptx is preferred to sft: it wins 71.0 %' in page and 'Not there yet' not in page


@pytest.mark.parametrize('named', [True, False])
def test_an_evaluation_that_was_only_begun_hides_no_finished_one(tmp_path, named):
  folder = made_up(tmp_path)
  begun = json.loads((folder / 'evaluation' / 'config.json').read_text())
  write(folder / 'later' / 'config.json', begun)
  if named:
    write(folder / 'results.json', found_in(folder) | {'evaluation': 'later'})
  page = report.page(contents.read(folder))
  assert 'ppo_ptx is preferred to sft: it wins 71.0 %' in page
  assert 'told of evaluation; not finished yet: later.' in page


def test_claims_fail_where_numbers_do(tmp_path):
  folder = made_up(tmp_path)
  results = found_in(folder)
  results['models']['ppo_ptx'] |= {
    'win_rate_vs_sft': {'mean': 0.56, 'low': 0.53, 'high': 0.59, 'n': 600},
    'pretraining_loss': 2.31 * 1.04, 'pretraining_loss_change_ci': [0.031, 0.05],
  }
  results['models']['sft']['by_category']['extraction']['fails_task_rate'] = 1.0
  tell(folder, results)
  path = folder / 'evaluation' / 'evaluations' / 'ppo_ptx.jsonl'
  rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  for i, row in enumerate(rows):
    row['judgement']['win'] = float(i < 10)
  lines(path, rows)
  told = [claim.holds for claim in findings.claims(contents.read(folder))]
  assert told == [True, None, False, False, False, True, True, False, False]


def test_what_intervals_leave_open_is_neither_true_nor_false(tmp_path):
  folder = made_up(tmp_path)
  results = found_in(folder)
  results['models']['ppo_ptx']['win_rate_vs_sft'] |= {'mean': 0.62, 'low': 0.59, 'high': 0.65}
  results['reward_model'] |= {'accuracy_heldout_labelers_ci': [0.58, 0.66]}
  tell(folder, results)
  path = folder / 'evaluation' / 'evaluations' / 'ppo_ptx.jsonl'
  rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  for i, row in enumerate(rows):  # on one prompt more than best-of-4, which has 18
    row['judgement']['win'] = float(i % 30 < 19)
  lines(path, rows)
  told = {claim.text.split(':')[0]: claim for claim in findings.claims(contents.read(folder))}
  assert told['ppo_ptx wins at least 60% against sft'].holds is None
  assert told['the reward model predicts held-out labelers above 60%'].holds is None
  better = told['ppo_ptx wins more than sft_best_of_4']
  assert better.holds is None and 'prompt by prompt 3.3 more [0.0, 10.0]' in better.numbers
  page = report.write(folder).read_text('utf-8')
  assert page.count('the intervals leave it open') == 4  # at temperature 0.5 too


@pytest.mark.parametrize(('ends', 'holds'), [
  ([0.02, 0.029], True), ([-0.01, 0.05], None), ([0.031, 0.05], False), (None, None)])
def test_the_loss_is_judged_by_its_interval(tmp_path, ends, holds):
  folder = made_up(tmp_path)
  results = found_in(folder)
  results['models']['ppo_ptx'] |= {'pretraining_loss': 2.26, 'pretraining_loss_change_ci': ends}
  tell(folder, results)
  claim = next(claim for claim in findings.claims(contents.read(folder)) if 'loss' in claim.text)
  assert claim.holds is holds and '(−2.2 %' in claim.numbers
  assert ends is None or holds is not None or '[−1.0, +5.0]' in claim.numbers


@pytest.mark.parametrize(('low', 'high', 'holds'), [
  (0.55, 0.65, True), (0.5, 0.6, None), (0.4, 0.5, None), (0.3, 0.4, False)])
def test_better_is_left_open_where_intervals_touch(tmp_path, low, high, holds):
  folder = made_up(tmp_path)
  results = found_in(folder)  # sft against itself: 0.46 to 0.54
  results['models']['ppo_ptx']['win_rate_vs_sft'] |= {'low': low, 'high': high}
  tell(folder, results)
  told = {claim.text: claim.holds for claim in findings.claims(contents.read(folder))}
  assert told['ppo_ptx is better than sft, intervals apart'] is holds


def test_ends_below_zero_have_a_true_minus():
  assert [findings.bare(value) for value in (-0.034, -0.0001, 0.5)] == ['−3.4', '0.0', '50.0']


def test_rows_without_ids_decide_nothing(tmp_path):
  folder = made_up(tmp_path)
  for path in (folder / 'evaluation' / 'evaluations').glob('*.jsonl'):
    rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
    lines(path, [{key: value for key, value in row.items() if key != 'id'} for row in rows])
  told = {claim.text.split(':')[0]: claim for claim in findings.claims(contents.read(folder))}
  assert told['ppo_ptx wins more than sft_best_of_4'].holds is None


def test_without_a_judge_nobody_is_called_better(tmp_path):
  """The reward model's own view of what was trained to please it is no preference."""
  folder = made_up(tmp_path)
  results = found_in(folder)
  for entry in results['models'].values():
    entry |= {'judge': 'reward model', 'gold': None, 'gold_ci': None}
  tell(folder, results)
  page = report.write(folder).read_text('utf-8')
  assert 'Nobody judged: on 71.0 % of 600 held-out prompts' in page
  assert 'preferred' not in page and 'is judged better' not in page
  assert 'is better than sft' not in page and 'wins more than' not in page
  assert 'the pretraining loss of ppo_ptx is within' in page  # needs no judge


def test_more_runs_than_colours(tmp_path):
  runs = {f'run {i}': ([0.0, 1.0, 2.0], [0.0, 0.5, 0.7]) for i in range(10)}
  drawn = figures.reward_over_kl(runs)
  assert all(f'run {i}' in drawn for i in range(10))


def test_names_of_models_stand_in_figures_as_they_are():
  names = ['_hidden', 'cost $5 or $x_$', 'sft<b>&"x"']
  drawn = figures.gold_over_kl({name: {'kl': 1.0, 'gold': 0.5, 'proxy': 0.2} for name in names})
  rates = figures.win_rates({name: {'mean': .5, 'low': .4, 'high': .6, 'n': 9} for name in names},
                            '_hidden')
  for svg in (drawn, rates):
    texts = [html.unescape(text) for text in re.findall(r'<text[^>]*>([^<]*)</text>', svg)]
    assert set(names) <= set(texts)


def test_half_a_workdir(tmp_path):
  page = report.write(made_up(tmp_path, finished=False)).read_text(encoding='utf-8')
  assert tuple(Page(page).sections) == SECTIONS
  assert page.count('Not there yet') == 4  # results, categories, reward model, labelers
  assert 'Not finished: gpt, sft, rankings, reward, ppo_ptx, evaluation.' in page
  assert 'Rollout prompt 39' in page and 'Rollout prompt 19<' not in page


def test_one_run_without_a_step(tmp_path):
  write(tmp_path / 'gpt' / 'config.json', {'kind': 'Language', 'config': {}})
  page = report.write(tmp_path).read_text(encoding='utf-8')
  assert tuple(Page(page).sections) == SECTIONS and page.count('Not there yet') >= 8


def test_torn_files_do_not_stop_it(tmp_path):
  folder = made_up(tmp_path)
  (folder / 'results.json').write_text('{"models": {"gp', encoding='utf-8')
  with open(folder / 'gpt' / 'metrics.jsonl', 'a', encoding='utf-8') as file:
    file.write('{"step": 401, "lo')
  found = contents.read(folder)
  assert len(found.run('gpt').metrics) == 400  # a line in the making is not damage
  assert len(found.left_out) == 1 and found.left_out[0].startswith('results.json: is not JSON')
  page = report.write(folder).read_text(encoding='utf-8')
  assert 'ppo_ptx is preferred to sft' in page  # finished.json says so
  assert 'Left out, because it could not be read: results.json: is not JSON' in page


def test_what_cannot_be_read_is_named_on_the_page(tmp_path, whole):
  assert 'Left out, because' not in whole
  folder = made_up(tmp_path)
  metrics = (folder / 'gpt' / 'metrics.jsonl').read_bytes()
  (folder / 'gpt' / 'metrics.jsonl').write_bytes(b'{"lo\n[1]\n\xff\n' + metrics)
  (folder / 'sft' / 'finished.json').write_text('[1]')
  (folder / 'reward' / 'metrics.jsonl').unlink()
  (folder / 'reward' / 'metrics.jsonl').mkdir()
  found = contents.read(folder)
  assert len(found.run('gpt').metrics) == 400 and not found.run('sft').finished
  assert found.left_out == ['gpt/metrics.jsonl: 3 of 403 lines are no JSON objects',
                            'reward/metrics.jsonl: Is a directory',
                            'sft/finished.json: holds list, expected an object']
  page = report.write(folder).read_text(encoding='utf-8')
  assert all(text in page for text in found.left_out) and not Page(page).open


def test_a_folder_without_runs_is_refused(tmp_path):
  with pytest.raises(configs.BadInput, match='no run is in there'):
    report.write(tmp_path)


def test_the_same_files_give_the_same_page(folder, whole):
  assert report.page(contents.read(folder)) == whole


def test_runs_come_after_what_they_rest_on(tmp_path):
  names = [run.name for run in contents.read(made_up(tmp_path)).runs]
  assert names.index('gpt') < names.index('sft') < names.index('reward') < names.index('ppo_ptx')


def test_curves_are_binned_means_with_their_range():
  step, mean, low, high = figures.binned(range(4), [1.0, None, 3.0, 5.0])
  assert step.tolist() == [0, 2, 3] and mean.tolist() == low.tolist() == high.tolist() == [1, 3, 5]
  step, mean, low, high = figures.binned(range(200), [float(i % 3) for i in range(200)])
  assert len(step) == 67 and step[0] == 1 and mean[0] == 1 and (low[0], high[0]) == (0, 2)


def test_wilson_interval():
  # 7 of 10: 0.397 and 0.892, worked by hand from Wilson's formula with z = 1.96
  assert figures.wilson(.7, 10) == pytest.approx((.3968, .8922), abs=2e-4)


@pytest.mark.parametrize('value, text', [
  (None, '–'), (0.12345, '0.123'), (-1.5, '-1.50'), (1234567, '1\u202f234\u202f567'), (0.0, '0.0'),
  (1.2e-9, '1.20e-09'), (123.456, '123'), ('x', 'x'), (True, 'True')])
def test_numbers_for_people(value, text):
  assert report.number(value) == text


@pytest.mark.parametrize(
  'value, digits, text',
  [
    (None, 2, '–'),
    (-1.234, 2, '−1.23'),
    (4.37e-7, 2, '0.00'),
    (-0.001, 2, '0.00'),
    (11.25, 1, '11.2'),
  ],
)
def test_numbers_of_a_column(value, digits, text):
  assert report.fixed(value, digits) == text
