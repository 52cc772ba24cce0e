"""What is made of a sweep's points: by hand, and where the answer is known."""

import dataclasses

import numpy as np
import pytest

from rlhf_jax.evaluation import study

DICE = np.random.default_rng(0)
PROMPTS = 60


def row(win=1.0, gold=0.5, proxy=0.2, kl=1.0, **flags):
  return {'judgement': {'win': win, 'score': gold, 'flags': flags}, 'proxy': proxy, 'kl': kl,
          'kl_k3': kl, 'length': 9, 'ended': True}


def made(name='a', seed=0, kl_coef=0.1, ptx=0.0, status='finished', evaluations=None, last=(),
         **changes):
  """A point of four updates, evaluated after the first and the last."""
  metrics = [{'step': step, 'ratio_first': 1.0, 'clip_fraction': 0.01, 'explained_variance': 0.5,
              'eos_rate': 0.99} | changes for step in (1, 2, 3, 4)]
  metrics[-1] |= dict(last)
  return study.Made(
    name=name, values={'kl_coef': kl_coef, 'ptx_ratio': ptx, 'seed': seed},
    config={'kl_coef': kl_coef, 'ptx_coef': 2.0, 'ptx_ratio': ptx, 'reward': 'reward'},
    start='sft', status=status, reason='it was NaN' if status == 'failed' else '', seconds=1.0,
    metrics=metrics, evaluations=evaluations or {s: [row() for _ in range(PROMPTS)]
                                                 for s in (1, 4)})


START = {'metrics': {'pretraining_loss': 0.8}, 'baseline': {'gold': 0.1, 'proxy': 0.0},
         'gold_units': 2.0}


def test_two_way_is_the_mean_and_as_wide_as_theory_says():
  """Values = seed + prompt + noise: the variance of the mean is that of each over its number."""
  seeds, prompts = 12, 300
  values = DICE.normal(size=(seeds, 1)) * 0.3 + DICE.normal(size=(1, prompts)) + DICE.normal(
    size=(seeds, prompts))
  mean, (low, high) = study.two_way(values)
  assert mean == pytest.approx(values.mean())
  # Of what there is, not of what it was drawn from.
  spread = np.sqrt(values.mean(axis=1).var() / seeds + values.mean(axis=0).var() / prompts)
  assert (high - low) / (2 * 1.96) == pytest.approx(spread, rel=0.15)


def test_two_way_leaves_out_what_is_not_there():
  values = np.where(np.arange(40) < 20, np.nan, np.arange(40.0))[None]
  mean, (low, high) = study.two_way(values)
  assert mean == pytest.approx(29.5) and low < mean < high
  assert study.two_way(np.full((2, 3), np.nan)) == (None, None)


def test_two_way_of_prompts_that_all_agree_has_a_width():
  assert study.two_way(np.zeros((3, 50)), share=True)[1] == pytest.approx(
    [0, 3.8415 / (50 + 3.8415)], rel=1e-3)


@pytest.mark.parametrize('values, told', [
  ({'kl_coef': 0.02, 'ptx_ratio': 0.0}, 'β 0.02, no ptx'),
  ({'kl_coef': 0.0, 'ptx_ratio': 1.0, 'ptx_coef': 3.0}, 'β 0, ptx, γ 3'),
  ({'reward': 'reward_small', 'ptx_ratio': 8.0}, 'reward_small, ptx ratio 8'),
  ({'policy_optimizer.learning_rate': 1e-3}, 'policy_optimizer.learning_rate 0.001')])
def test_labels(values, told):
  assert study.label(values) == told


def test_a_variant_is_all_that_differs_by_seed_alone():
  points = [made('a', 0), made('b', 1), made('c', 0, kl_coef=0.5), made('d', 2, status='failed')]
  told = study.summary(points, {'sft': START})
  assert [one['points'] for one in told['variants']] == [['a', 'b', 'd'], ['c']]
  assert told['variants'][0]['finished'] == ['a', 'b']
  assert told['variants'][0]['measures']['win_rate'] | {'low': 0} == {
    'mean': 1, 'low': 0, 'high': 1, 'n': 2 * PROMPTS, 'over': 'seeds and prompts'}
  assert 'baseline' not in told['starts']['sft']
  assert told['points']['d']['status'] == 'failed'
  assert told['points']['d']['unhealthy'] == ['it was NaN']


def test_a_coefficient_of_1_is_that_of_1_point_0():
  points = [made('a', 0, kl_coef=1), made('b', 1, kl_coef=1.0)]
  one, = study.summary(points, {'sft': START})['variants']
  assert one['points'] == ['a', 'b']


def test_a_reward_that_is_no_number_keeps_no_summary_from_being_made():
  rows = [row(), row(proxy=None), *[row() for _ in range(8)]]
  points = [made(f'{beta}-{seed}', seed, kl_coef=beta, evaluations={1: rows, 4: rows})
            for beta in (0.0, 0.1) for seed in (0, 1)]
  told = study.summary(points, {'sft': START})
  assert told['variants'][0]['measures']['proxy']['n'] == 2 * 9
  assert told['same_kl'][0]['gap']['n'] == 2 * 9


def test_one_seed_is_not_recommended_over_two():
  """Its interval, over prompts alone, is the narrower."""
  alone, both = ({'label': name, 'family': name, 'beta': 0.1, 'finished': ['x'] * seeds,
                  'measures': {'win_rate': {'low': low}}}
                 for name, seeds, low in (('alone', 1, 0.6), ('both', 2, 0.4)))
  found = study.recommended([alone, both])
  assert found['label'] == 'both' and list(found['by_family']) == ['alone', 'both']


def test_rates_are_over_the_prompts_to_which_they_apply():
  rows = [row(hallucination=index < 3) if index < 12 else row() for index in range(PROMPTS)]
  told = study.variant([made(evaluations={4: rows}), made('b', 1, evaluations={4: rows})],
                       {'sft': START})
  rate = told['measures']['hallucination_rate']
  assert rate['mean'] == pytest.approx(0.25) and rate['n'] == 24


def test_curves_are_recentred_and_in_gold_units():
  points = [made(seed=seed, evaluations={
    step: [row(gold=0.1 + d + seed, proxy=3 * d, kl=d * d) for _ in range(PROMPTS)]
    for step, d in ((1, 0.5), (4, 1.0 + seed))}) for seed in (0, 1)]
  told = study.variant(points, {'sft': START})
  curves = told['curves']
  assert curves['d'][0] == 0 and curves['d'][-1] == pytest.approx(1.0)  # as far as both went
  assert curves['gold']['low'][-1] == pytest.approx(1.0)
  assert curves['gold']['high'][-1] == pytest.approx(2.0)
  assert curves['gold']['mean'][-1] == pytest.approx(1.5)
  assert curves['proxy']['mean'][-1] == pytest.approx(6.0)
  assert told['paths'][1]['d'] == pytest.approx([0, 0.5, 2.0])


def test_the_fit_of_a_variant_finds_what_made_it():
  def rows(d):
    return [row(gold=0.1 + d * (0.9 - 0.4 * np.log(d)), kl=d * d) for _ in range(PROMPTS)]
  told = study.variant([made(seed=seed, evaluations={
    step: rows(0.5 * step) for step in range(1, 12)}) for seed in (0, 1)], {'sft': START})
  assert (told['fit']['alpha'], told['fit']['beta']) == pytest.approx((0.9, 0.4))
  assert told['fit']['peak']['reached'] and told['fit']['seeds'] == 2
  assert told['fit']['curve']['d'][-1] == pytest.approx(5.5)


def test_the_recommended_variant_has_the_highest_lower_bound():
  """Not the highest mean: few prompts that all win say less than many of which most do."""
  sure = [row(win=float(index % 10 > 1)) for index in range(400)]
  lucky = [row(win=float(index > 0)) for index in range(8)]
  told = study.summary([made('a', kl_coef=0.1, evaluations={4: sure}),
                        made('b', kl_coef=0.2, evaluations={4: lucky})], {'sft': START})
  means = [one['measures']['win_rate']['mean'] for one in told['variants']]
  assert means[1] > means[0]
  assert told['recommended']['beta'] == 0.1
  assert told['recommended']['by_family']['no ptx']['label'] == 'β 0.1, no ptx'


def curve(beta, seed, farthest):
  """A point that walks along one curve, gold = d − d²/4 and proxy = d, as far as `farthest`."""
  told = {}
  for step, d in enumerate(np.linspace(0, farthest, 9)):
    told[step + 1] = [row(win=0.5 + d / 10, gold=d - d * d / 4 + 0.1 * (i % 2), proxy=d / 2,
                          kl=d * d) for i in range(PROMPTS)]
  return made(f'{beta}-{seed}', seed, kl_coef=beta, evaluations=told)


def test_a_penalty_that_only_stops_early_has_nothing_more_at_the_same_kl():
  points = [curve(beta, seed, far) for beta, far in ((0.0, 4.0), (0.1, 2.0)) for seed in (0, 1)]
  told = study.summary(points, {'sft': START})
  one, = told['same_kl']
  assert (one['label'], one['against']) == ('β 0.1, no ptx', 'β 0, no ptx')
  assert one['gold'] | {'low': 0, 'high': 0} == pytest.approx(
    {'mean': 0, 'low': 0, 'high': 0, 'n': 2 * PROMPTS, 'seeds': 2, 'd': 2}, abs=1e-9)
  assert one['gap']['mean'] == pytest.approx(0, abs=1e-9)


def test_what_the_first_evaluation_was_beyond_is_between_it_and_the_start():
  """By hand: 0.1 at the start, 3.1 at d = 2, so 1.6 at d = 1, where the other has 2."""
  rows = lambda gold, d: [row(gold=gold, proxy=0.0, kl=d * d) for _ in range(PROMPTS)]
  points = [made(f'{beta}-{seed}', seed, kl_coef=beta, evaluations={1: rows(gold, d)})
            for beta, gold, d in ((0.0, 3.1, 2.0), (0.1, 2.0, 1.0)) for seed in (0, 1)]
  one, = study.summary(points, {'sft': START})['same_kl']
  assert one['gold']['mean'] == pytest.approx(2 - 1.6) and one['gold']['d'] == 1


def test_the_recommended_is_paired_with_the_others():
  points = [curve(beta, seed, far) for beta, far in ((0.0, 4.0), (0.1, 2.0)) for seed in (0, 1)]
  told = study.summary(points, {'sft': START})
  assert told['recommended']['beta'] == 0.0  # in this world wins grow for ever
  other, = told['paired']
  assert (other['label'], other['against']) == ('β 0, no ptx', 'β 0.1, no ptx')
  assert other['gold']['mean'] == pytest.approx(-1) and other['gold']['low'] == pytest.approx(-1)
  assert other['win_rate']['mean'] == pytest.approx(0.2)
  wins = (1, 1, 1), (1, 0, 0.5), (0, 0, 0), (1, 0, 0)  # of both seeds of both
  few = [dataclasses.replace(point, evaluations={9: [row(win=win) for win in some]})
         for point, some in zip(points, wins, strict=True)]
  other, = study.summary(few, {'sft': START})['paired']
  assert other['win_rate'] == {'mean': pytest.approx(3.5 / 6), 'low': -1, 'high': 1, 'n': 6,
                               'seeds': 2}


def test_families_are_compared_at_one_distance():
  """By hand: gold = d − d²/4, less 1 for the second; proxy = d/2, in units of 2 and 4."""
  points = []
  for reward, far, less in (('a', 4.0, 0.0), ('b', 2.0, 1.0)):
    for seed in (0, 1):
      point = curve(0.0, seed, far)
      told = {step: [some | {'judgement': some['judgement'] | {
        'score': some['judgement']['score'] - less}} for some in rows]
              for step, rows in point.evaluations.items()}
      points.append(dataclasses.replace(
        point, name=f'{reward}{seed}', start=reward, evaluations=told,
        values={'reward': reward, **point.values}, config=point.config | {'reward': reward}))
  starts = {'a': START | {'metrics': {'reward_accuracy': 0.7}}, 'b': START | {'gold_units': 4.0}}
  found = study.summary(points, starts)['same_distance']
  assert [(one['label'][0], one['d']) for one in found] == [('a', 1), ('b', 1), ('a', 2), ('b', 2)]
  mean = lambda name: [one[name] and pytest.approx(one[name]['mean']) for one in found]
  start = 0.1 - 0.05  # less that of the start; half the prompts have 0.1 more
  assert mean('gold') == [0.75 - start, -0.25 - start, 1 - start, -start]
  assert mean('proxy') == [1, 2, 2, 4]
  assert mean('more') == [None, -1, None, -1]
  assert mean('gap') == [1 - 0.7, 2 + 0.3, 2 - 0.95, 4 + 0.05]
  assert mean('wider') == [None, 2, None, 3]
  assert [one['accuracy'] for one in found] == [0.7, None, 0.7, None]
  apart = [point if point.start == 'a' else dataclasses.replace(point, evaluations={
    step: [some | {'id': index} for index, some in enumerate(rows)]
    for step, rows in point.evaluations.items()}) for point in points]
  assert all(one['gold'] and one['more'] is None for one in study.summary(
    apart, starts)['same_distance'])
  moved = lambda point, beta: dataclasses.replace(
    point, values=point.values | {'kl_coef': beta}, config=point.config | {'kl_coef': beta})
  # At the least coefficient that all have, and not where they have none in common.
  assert study.summary([moved(points[0], 0.5), *points], starts)['same_distance'] == found
  assert study.summary([moved(points[2], 0.5), *points[:2]], starts)['same_distance'] == []
  assert study.summary(points[:2], starts)['same_distance'] == []


def test_the_gap_of_draws_is_in_the_units_of_each():
  """By hand: at d = 2 raw proxies are 1; units 2 and 4 make them 2 and 4, and gold is 1.05."""
  points, starts = [], {}
  for beta, far in ((0.0, 4.0), (0.1, 2.0)):
    for seed, (reward, units) in enumerate((('a', 2.0), ('a_1', 4.0))):
      point = curve(beta, seed, far)
      if beta:  # twice the proxy of the other
        point = dataclasses.replace(point, evaluations={
          step: [some | {'proxy': 2 * some['proxy']} for some in rows]
          for step, rows in point.evaluations.items()})
      points.append(dataclasses.replace(
        point, start=reward, values={'reward': reward, **point.values},
        config=point.config | {'reward': reward}))
      starts[reward] = START | {'gold_units': units}
  told, = study.summary(points, starts, {'a_1': 'a'})['same_kl']
  assert told['gap']['mean'] == pytest.approx((2 + 4) / 2) and told['gap']['seeds'] == 2


def test_draws_of_one_reward_model_are_one_variant():
  """Each seed has a draw of its own, with a start of its own: gains and units are of that."""
  points, starts = [], {}
  for seed, (start, gold, units) in enumerate((('a', 0.1, 2.0), ('a_1', 0.3, 4.0))):
    point = curve(0.0, seed, 4.0)
    points.append(dataclasses.replace(point, start=start, values={'reward': start, **point.values},
                                      config=point.config | {'reward': start}))
    starts[start] = START | {'baseline': {'gold': gold, 'proxy': 0.0}, 'gold_units': units}
  apart = study.summary(points, starts)
  assert [one['reward'] for one in apart['variants']] == ['a', 'a_1']
  told = study.summary(points, starts, {'a_1': 'a'})
  one, = told['variants']
  assert one['reward'] == 'a' and one['label'] == 'a, β 0, no ptx'
  assert one['finished'] == [points[0].name, points[1].name]
  for path, gold, units in zip(one['paths'], (0.1, 0.3), (2.0, 4.0), strict=True):
    assert path['d'][-1] == 4 and path['gold'][-1] == pytest.approx(0.05 - gold)
    assert path['proxy'][-1] == pytest.approx(2 * units)
  assert told['points'][points[1].name]['values']['reward'] == 'a_1'  # as it is, not as it is told


def test_nobody_judged():
  rows = [row() | {'judgement': None} for _ in range(PROMPTS)]
  told = study.summary([made(evaluations={4: rows})], {'sft': START})
  assert told['recommended'] is None
  variant, = told['variants']
  assert variant['fit'] is None and set(variant['curves']) == {'d', 'proxy'}
  assert 'win_rate' not in variant['measures'] and variant['measures'][
    'proxy']['mean'] == pytest.approx(0.2)


def test_what_no_coefficient_gives_back():
  losses = {('a', 0.1, 0.0): 0.9, ('b', 0.5, 0.0): 0.84, ('c', 0.1, 1.0): 0.8,
            ('d', 2.0, 0.0): 0.81}
  points = [made(name, seed, beta, ptx, last={'pretraining_loss': loss + 0.02 * seed})
            for (name, beta, ptx), loss in losses.items() for seed in (0, 1)]
  (entry,) = study.summary(points, {'sft': START})['alone']
  assert entry['label'] == 'β 0.1, ptx'
  assert entry['tax'] | {'n': 2} == pytest.approx(
    {'mean': 0.01, 'low': 0.0, 'high': 0.02, 'n': 2, 'over': 'seeds'})
  assert [(one['beta'], one['gives_back']) for one in entry['without']] == [
    (0.1, False), (0.5, False), (2.0, True)]


@pytest.mark.parametrize('changes, said', [
  ({}, []), ({'ratio_first': 1.004}, []), ({'ratio_first': 1.3}, ['ratio is 1.300']),
  ({'ratio_first': 0.5, 'clip_fraction': 0.4}, ['ratio is 0.500', '40% of the tokens']),
  ({'explained_variance': -0.3}, ['explained variance is -0.30'])])
def test_health(changes, said):
  found = study.unhealthy(made(**changes))
  assert len(found) == len(said)
  assert all(words in text for words, text in zip(said, found, strict=True))


def test_responses_that_no_longer_end():
  point = made()
  rows = [dict(one, eos_rate=rate) for one, rate in zip(point.metrics, (0.95, 0.9, 0.7, 0.6),
                                                        strict=True)]
  found, = study.unhealthy(dataclasses.replace(point, metrics=rows))
  assert found == 'responses that end fell from 95% to 60%'
