"""experiments/tinystories.py: its judge ranks as people would, its splits share nothing, its
demonstrations follow their instructions.
"""

import json
import pathlib
import runpy

import pytest

from rlhf_jax.data.records import UNFINISHED, Prompt

ROOT = pathlib.Path(__file__).resolve().parent.parent
REAL = ROOT.parent / 'shared' / 'data'
STORIES = REAL / 'tinystories_sample' / 'tinystories_1000.json'
tinystories = runpy.run_path(str(ROOT / 'experiments' / 'tinystories.py'))
rows, words, forms = (tinystories[name] for name in ('rows', 'words', 'forms'))
needs_stories = pytest.mark.skipif(
  not STORIES.is_file(), reason='the real data is not beside the repository')

PROMPT = 'Write a story about a dog and a ball.'
GOOD = ('Once there was a dog named Max. Max had a big red ball. One day, the ball rolled into '
        'the pond. The dog jumped into the cold water. He swam and got his ball. Max was wet but '
        'very happy.')
# From best to worst.
RANKED = {
  'both things, short sentences, an end': GOOD,
  'each thing only once':
    'Once there was a dog named Max. Max had a big red ball. One day, it rolled into the pond. Max '
    'jumped into the cold water. He swam and got it back. Max was wet but very happy.',
  'long sentences':
    'Once there was a dog named Max who had a big red ball that rolled into the pond one day. The '
    'dog jumped into the cold water and swam until he got his ball and was wet but very happy.',
  'it does not end': GOOD + UNFINISHED,
  'only one of the things': GOOD.replace('dog', 'cat'),
  'neither': GOOD.replace('dog', 'cat').replace('ball', 'hat'),
  'too little': 'The dog has a big red ball.',
  'the things listed': 'Dog and ball. A dog, a ball. Dog! Ball! The dog. The ball. A dog and ball.',
  'the instruction again': PROMPT,
  'single words': 'Dog. Ball. Fun. End.',
  'one sentence again and again': 'The dog likes the big red ball. ' * 6,
  'two words': 'The end.',
  'nothing': '',
}


def judge(*responses, prompt=PROMPT):
  return tinystories['judge'](Prompt(prompt), responses, '')


def test_the_judge_ranks_as_people_would():
  told = judge(*RANKED.values())
  assert list(told.scores) == sorted(told.scores, reverse=True), dict(
    zip(RANKED, told.scores, strict=True))
  assert list(told.ranks[:9]) == list(range(1, 10))  # no ties but at the worthless end
  assert told.scores[0] > 0.95 and told.scores[6] < 0.25


def test_flags_say_what_is_missing():
  flags = dict(zip(RANKED, judge(*RANKED.values()).flags, strict=True))
  assert flags['each thing only once'] == {'things_named': True, 'ended': True}
  assert flags['it does not end'] == {'things_named': True, 'ended': False}
  assert not flags['only one of the things']['things_named']
  assert not flags['the things listed']['things_named']


@pytest.mark.parametrize('change', [
  lambda text: text + ' The dog saw the ball.' * 5,
  lambda text: text + ' Dog. Ball.' * 10,
  lambda text: text + ' ' + PROMPT,
  lambda text: text.replace('. ', '! Wow! '),
  lambda text: text.replace('.', ''),
])
def test_no_padding_makes_a_good_story_better(change):
  good, padded = judge(GOOD, change(GOOD)).scores
  assert padded < good


def test_equal_scores_share_a_rank():
  assert judge(GOOD, '', GOOD, '').ranks == (1, 3, 1, 3)


@pytest.mark.parametrize('thing, plural', [
  ('dog', 'dogs'), ('box', 'boxes'), ('beach', 'beaches'), ('pony', 'ponies'), ('key', 'keys'),
  ('mouse', 'mice'), ('leaf', 'leaves'), ('sheep', 'sheep'), ('bus', 'buses')])
def test_plurals(thing, plural):
  assert forms(thing) == {thing, plural}


@pytest.mark.parametrize('thing, plural', [('dog', 'dogs'), ('box', 'boxes'), ('mouse', 'mice')])
def test_a_plural_names_the_thing(thing, plural):
  told = f'We saw two {plural} near the old house.'
  assert judge(told, prompt=f'Write a story about a {thing} and a car.').scores[0] > judge(
    told, prompt='Write a story about a kite and a car.').scores[0]


def test_retold_stories_keep_their_grammar():
  text, things = 'An owl saw a dog. Dogs like an apple. The dog ran.', ('owl', 'dog', 'apple')
  assert tinystories['retold'](text, things, ('key', 'mouse', 'umbrella')) == (
    'A key saw a mouse. Mice like an umbrella. The mouse ran.')


def test_things_are_swapped_for_others_of_their_sort():
  swapped, sorts = tinystories['swapped'], tinystories['SORTS']
  others = swapped('A dog saw a zebra in the park.', ('dog', 'zebra', 'park'), 1)
  assert others[2] in sorts['places'] and {others[0], others[1]} <= set(sorts['creatures'])
  assert len({*others, 'dog', 'zebra', 'park'}) == 6  # none is in the text, none comes twice
  assert swapped('A dog.', ('dog',), 0) == ('dog',) != swapped('A dog.', ('dog',), 1)
  assert swapped('A zebra.', ('zebra',), 0) == ()  # nobody may ask for it
  assert swapped(' '.join(sorts['places']), ('zoo',), 1) == ()  # no other place is left


@needs_stories
def test_splits_share_no_story():
  stories = [tinystories['repaired'](story) for story in json.loads(STORIES.read_text('utf-8'))]
  split_of, shares = tinystories['split_of'], tinystories['SHARES']
  assert len(set(stories)) == len(stories) == 1000 and sum(shares.values()) == 100
  splits = {name: {story for story in stories if split_of(story) == name} for name in shares}
  assert sum(map(len, splits.values())) == 1000  # each is in one
  for name in ('text', 'perplexity'):
    assert {row['text'] for row in rows(STORIES, 'text', name)} == splits[name]
  customers = {str(tinystories['number'](story)) for story in splits['sft']}
  assert {row['customer'] for row in rows(STORIES, 'demonstrations', 'sft')} <= customers


@needs_stories
def test_no_training_split_asks_what_is_asked_in_the_end():
  sets = {name: {frozenset(words(row['prompt'])) for row in rows(STORIES, kind, name)}
          for name, kind in (('sft', 'demonstrations'), ('rankings', 'prompts'),
                             ('ppo', 'prompts'), ('heldout', 'prompts'))}
  assert len(sets['heldout']) >= 300
  assert not sets.pop('heldout') & set().union(*sets.values())


@needs_stories
def test_demonstrations_follow_their_instructions():
  from rlhf_jax.data.tokenizer import Tokenizer
  tokenizer = Tokenizer.from_file(REAL / 'stories260K' / 'tokenizer.json')
  found = list(rows(STORIES, 'demonstrations', 'sft'))
  assert len(found) > 2000
  grade = tinystories['grade']
  named = [grade(row['prompt'], row['response'])[1] for row in found]
  assert sum(named) / len(named) > 0.95
  for row in found[::20]:
    assert len(tokenizer.encode_response(row['prompt'], row['response'])) + 1 <= 160
    assert len(tokenizer.encode_prompt(row['prompt'])) <= 40
    assert row['response'].rstrip('"\'')[-1] in '.!?'
