"""Collecting rankings with a made-up policy: counts, labelers, calibration, and the same bytes
after a kill."""

import collections
import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.data import builders, records
from rlhf_jax.feedback import collect
from rlhf_jax.model import responses

WORDS = ('yes', 'no', 'maybe', 'ask again later', 'it is so', 'it is not', 'who knows', 'certainly')


def response(text, ended=True):
  return responses.Response(text, tuple(range(len(text.split()))), -len(text) / 3, ended)


class Tokenizer:
  """A token a word."""

  def encode_prompt(self, text):
    return [1, *range(2, 2 + len(text.split()))]

  def encode_prompts(self, texts):
    return [self.encode_prompt(text) for text in texts]


class Judge:
  """Prefers short texts; labelers whose name ends in '-' prefer long ones. Its calibration is a
  count of words."""

  calibrations = 0

  def __init__(self, limit=None):
    self.limit = limit

  def __call__(self, prompt, texts, labeler):
    sign = -1 if labeler.endswith('-') else 1
    lengths = [sign * min(len(text.split()), self.limit or 99) for text in texts]
    order = sorted(set(lengths))
    return records.Judgement(tuple(map(float, lengths)), tuple(order.index(n) + 1 for n in lengths),
                             ({},) * len(texts))


class Calibrated(Judge):

  def calibrate(self, prompts, texts):
    type(self).calibrations += 1
    assert len(prompts) == len(texts) and all(len(set(one)) == len(one) for one in texts)
    return {'limit': 3, 'prompts': len(prompts)}

  def calibrated(self, found):
    return Judge(found['limit'])


class Policy:
  """Stands for model.responses: a word list sampled by the key; stops after `calls` calls as a kill
  would."""

  def __init__(self, calls=None):
    self.calls, self.asked = calls, []

  def __call__(self, model, params, tokenizer, prompts, key, *, temperature, prompt_length,
               response_length, batch):
    if self.calls is not None:
      if not self.calls:
        raise KeyboardInterrupt
      self.calls -= 1
    self.asked.append(list(prompts))
    hat = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    draws = hat.integers(0, len(WORDS), (len(prompts), 2))
    return [
      response(WORDS[int(a)], ended=int(b) > 0) if prompt != 'dull' else response('same')
      for (a, b), prompt in zip(draws, prompts, strict=True)
    ]


@pytest.fixture
def world(tmp_path, monkeypatch):
  """run(folder name, calls before the kill, **config) with 60 prompts, of which one is sampled with
  one answer only."""
  asked = [f'question {i}' for i in range(59)]
  asked.insert(7, 'dull')
  (tmp_path / 'prompts.jsonl').write_text(
    ''.join(
      json.dumps({'prompt': text, 'category': 'chat', 'meta': {'n': i}}) + '\n'
      for i, text in enumerate(asked)
    )
  )
  judges = {'plain': Judge(), 'calibrated': Calibrated(),
            'indifferent': lambda prompt, texts, labeler: records.Judgement(
              (0.0,) * len(texts), (1,) * len(texts), ({},) * len(texts)),
            'means': lambda prompt, texts, labeler: records.Judgement(
              (0.0,) * len(texts), tuple(1 + i / 10 for i in range(len(texts)))),
            'nan': lambda prompt, texts, labeler: records.Judgement(
              (0.0,) * len(texts), (1.0, float('nan'), *range(2, len(texts)))),
            'from 0': lambda prompt, texts, labeler: records.Judgement(
              (0.0,) * len(texts), tuple(range(len(texts))))}
  monkeypatch.setattr(records, 'load_judge', lambda name: judges[name])
  config = configs.Collect(
    prompts=(configs.Source(kind='prompts', files=(str(tmp_path / 'prompts.jsonl'),)),),
    judge='plain',
    labelers=('x', 'y-', 'z'),
    k=(4, 9),
    batch=32,
    prompt_length=8,
    seed=3,
  )
  place = builders.Place(tmp_path)
  parent = types.SimpleNamespace(model=configs.Model(), params=None, tokenizer=Tokenizer())

  def run(folder, calls=None, **changes):
    policy = Policy(calls)
    monkeypatch.setattr(collect.responses, 'respond', policy)
    try:
      summary = collect.run(dataclasses.replace(config, **changes), {'policy': parent}, place,
                            tmp_path / folder, folder)
    except KeyboardInterrupt:
      summary = None
    return summary, policy

  run.config, run.folder = config, tmp_path
  return run


def rows(folder):
  with open(folder / 'rankings.jsonl', encoding='utf-8') as file:
    return [records.from_row('rankings', json.loads(line)) for line in file]


def timeless(summary):
  return {name: value for name, value in summary.items() if not name.endswith('_seconds')}


def test_rankings_and_what_is_counted(world):
  summary, policy = world('whole')
  found = rows(world.folder / 'whole')
  assert len(found) == summary['rankings'] and summary['prompts'] == 59
  assert summary['too_few_distinct'] == 1 and not any(row.prompt == 'dull' for row in found)
  for row in found:
    assert len(set(row.completions)) == len(row.completions) >= 2 and len(set(row.ranks)) > 1
    judged = Judge()(None, row.completions, row.labeler)
    assert row.ranks == judged.ranks
    assert row.ended == tuple(not text.endswith(records.UNFINISHED) for text in row.completions)
    assert row.category == 'chat' and row.meta['n'] == int(row.prompt.split()[1]) + (
      int(row.prompt.split()[1]) >= 7)
  pairs = sum(len(row.ranks) * (len(row.ranks) - 1) // 2 for row in found)
  assert summary['all_tied'] == 59 - len(found) and summary['pairs'] >= pairs
  account = collect.account(summary)
  assert account.startswith(f'{len(found)} rankings of 59 prompts, {summary["pairs"]} pairs')
  assert account.endswith('; left out: 1 prompts without two different responses')
  assert ': 3 rankings that tie all responses, 1 prompts' in collect.account(
    summary | {'all_tied': 3})
  ended = [flag for row in found for flag in row.ended]
  assert 0 < sum(ended) < len(ended)
  drawn = [collect.draw_k(world.config, i) for i in range(60)]
  assert summary['samples'] == sum(drawn) == sum(map(len, policy.asked))
  assert [text for call in policy.asked for text in call][:drawn[0] + 1] == (
    ['question 0'] * drawn[0] + ['question 1'])


def test_k_and_labelers_are_drawn_evenly():
  config = configs.Collect(k=(4, 9), labelers=('x', 'y', 'z'), labels=2, seed=1)
  k = collections.Counter(collect.draw_k(config, i) for i in range(6000))
  assert sorted(k) == [4, 5, 6, 7, 8, 9] and all(850 < count < 1150 for count in k.values())
  labelers = collections.Counter(
    name for i in range(3000) for name in collect.draw_labelers(config, i)
  )
  assert all(1850 < labelers[name] < 2150 for name in 'xyz')
  assert all(len(set(collect.draw_labelers(config, i))) == 2 for i in range(50))


def test_blocks_hold_every_prompt_once_and_no_more_than_a_batch():
  k = [4, 9, 5, 6, 9, 9, 4, 20, 4]
  blocks = collect.plan(k, 16)
  assert [n for block in blocks for n in block.k] == k
  assert [(block.start, block.stop) for block in blocks] == [
    (0, 2),
    (2, 4),
    (4, 5),
    (5, 7),
    (7, 8),
    (8, 9),
  ]
  assert all(sum(block.k) <= 16 for block in blocks if len(block.k) > 1)
  together = collect.plan(k, 16, 2)  # so that each prompt has another to borrow from
  assert [(block.start, block.stop) for block in together] == [(0, 2), (2, 4), (4, 6), (6, 9)]
  assert [n for block in together for n in block.k] == k


@pytest.mark.parametrize('calls', [0, 1, 5])
@pytest.mark.parametrize('damage', ['none', 'torn', 'joined'])
def test_interrupted_and_resumed_to_the_same_bytes(world, calls, damage):
  whole, policy = world('whole')
  assert len(policy.asked) > 6
  assert world('killed', calls)[0] is None
  folder = world.folder / 'killed'
  ranked = sorted((folder / 'pieces' / 'rankings').glob('*/*.json'))
  assert len(ranked) == calls and not (folder / 'rankings.jsonl').exists()
  lost = damage == 'torn' and calls
  if lost:
    ranked[-1].write_bytes(ranked[-1].read_bytes()[:-5])
  if damage == 'joined':  # killed between the file and what it counts
    (folder / 'rankings.jsonl').write_text('{"prompt": "quest')
  summary, again = world('killed')
  assert len(again.asked) == len(policy.asked) - calls + bool(lost)  # nothing is sampled twice
  assert timeless(summary) == timeless(whole)
  assert (folder / 'rankings.jsonl').read_bytes() == (
    world.folder / 'whole' / 'rankings.jsonl').read_bytes()
  assert not (folder / 'pieces').exists()


def test_finished_but_not_told(world):
  whole, _ = world('whole')
  before = (world.folder / 'whole' / 'rankings.jsonl').read_bytes()
  summary, policy = world('whole')
  assert policy.asked == [] and summary == whole
  assert (world.folder / 'whole' / 'rankings.jsonl').read_bytes() == before


def test_other_prompts_start_anew(world):
  world('whole', 3)
  path = world.folder / 'prompts.jsonl'
  path.write_text(path.read_text().replace('question 3"', 'another question 3"'))
  _, policy = world('whole')
  assert any('another question 3' in call for call in policy.asked)
  assert sum(row.prompt == 'another question 3' for row in rows(world.folder / 'whole')) <= 1


def test_a_judge_of_other_code_ranks_all_and_is_calibrated_again(world, monkeypatch):
  monkeypatch.setattr(collect, 'CALIBRATION_PROMPTS', 20)
  Calibrated.calibrations = 0
  code = ['old']
  monkeypatch.setattr(collect.sources, 'digest', lambda judge: f'{judge} {code}')
  assert world('killed', 6, judge='calibrated')[0] is None
  code[0] = 'new'
  summary, again = world('killed', judge='calibrated')
  whole, policy = world('whole', judge='calibrated')
  assert Calibrated.calibrations == 3 and timeless(summary) == timeless(whole)
  assert 0 < len(policy.asked) - len(again.asked) < 6  # samples of the calibration stay


def test_another_seed_gives_other_rankings(world):
  world('whole')
  world('other', seed=4)
  assert rows(world.folder / 'whole') != rows(world.folder / 'other')


def test_several_labelers_a_prompt_and_their_agreement(world):
  summary, _ = world('many', labels=3)
  found = collections.defaultdict(list)
  for row in rows(world.folder / 'many'):
    found[row.prompt].append(row)
  assert all({row.labeler for row in group} == {'x', 'y-', 'z'} for group in found.values())
  assert all(len({row.completions for row in group}) == 1 for group in found.values())
  # x and z are of one mind, y- of the opposite one: one of three pairs of labelers agrees
  assert summary['agreement'] == pytest.approx(1 / 3)
  assert summary['agreement_ci'] == pytest.approx([1 / 3, 1 / 3])


def test_calibration_is_done_once_and_can_be_taken_over(world, monkeypatch):
  monkeypatch.setattr(collect, 'CALIBRATION_PROMPTS', 20)
  Calibrated.calibrations = 0
  whole, policy = world('whole', judge='calibrated')
  found = json.loads((world.folder / 'whole' / 'judge.json').read_text())
  assert Calibrated.calibrations == 1 and 20 <= found['prompts'] < 30
  assert (
    sum(map(len, policy.asked)) == whole['samples']
  )  # its samples are ranked too, not drawn again
  assert max(max(row.ranks) for row in rows(world.folder / 'whole')) <= 3  # the limit was applied

  assert world('killed', 6, judge='calibrated')[0] is None
  summary, again = world('killed', judge='calibrated')
  assert Calibrated.calibrations == 2 and timeless(summary) == timeless(whole)
  assert len(again.asked) == len(policy.asked) - 6

  world('heldout', judge='calibrated', calibration='whole', seed=9)
  assert Calibrated.calibrations == 2
  assert json.loads((world.folder / 'heldout' / 'judge.json').read_text()) == found


@pytest.mark.parametrize('calls', [1, 3, 4])
def test_killed_while_the_judge_is_calibrated(world, monkeypatch, calls):
  """Nothing is sampled twice, neither for the calibration nor for the ranking after it."""
  monkeypatch.setattr(collect, 'CALIBRATION_PROMPTS', 30)
  whole, policy = world('whole', judge='calibrated')
  folder = world.folder / 'killed'
  assert world('killed', calls, judge='calibrated')[0] is None
  saved = lambda name: list((folder / 'pieces' / name).glob('*/*.json'))
  assert not (folder / 'judge.json').exists() and len(saved('calibration')) == calls
  # Then once more, after the calibration: its samples still wait to be ranked.
  in_all = len(policy.asked)
  assert world('killed', in_all - 1 - calls, judge='calibrated')[0] is None
  assert (folder / 'judge.json').exists()
  for path in saved('rankings'):
    path.unlink()
  calibrated = len(saved('calibration'))
  summary, again = world('killed', judge='calibrated')
  assert len(again.asked) == in_all - calibrated
  assert timeless(summary) == timeless(whole) and not (folder / 'pieces').exists()
  for name in ('rankings.jsonl', 'judge.json'):
    assert (folder / name).read_bytes() == (world.folder / 'whole' / name).read_bytes()


def test_ranks_that_are_means_keep_their_order(world):
  summary, _ = world('means', judge='means')
  assert not summary['tied_share'] and not summary['all_tied']
  found = [row.ranks for row in rows(world.folder / 'means')]
  assert found and all(ranks == tuple(range(1, len(ranks) + 1)) for ranks in found)


@pytest.mark.parametrize('changes, message', [
  ({'judge': 'indifferent'}, 'tied all responses'),
  ({'judge': 'from 0'}, r'found the ranks \(0, 1.*expected 1 for the best'),
  ({'judge': 'nan'}, r'found the ranks \(1.0, nan.*expected 1 for the best'),
  ({'k': (1, 9)}, r'2 <= fewest'),
  ({'k': (5, 4)}, r'2 <= fewest'),
  ({'prompt_length': 4000}, 'the context of its policy is'),
  ({'k': (4, 9), 'others': 4}, 'others: expected 0 to 3'),
  ({'labels': 4}, 'expected 1 to 3'),
  ({'labelers': ('x', 'x')}, 'named twice'),
  ({'calibration': 'nowhere'}, 'cannot be calibrated'),
  ({'judge': 'calibrated', 'calibration': 'nowhere'}, 'left no')])
def test_bad_input(world, changes, message):
  with pytest.raises(configs.BadInput, match=message):
    world('bad', **changes)
