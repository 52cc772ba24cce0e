"""The gold labeler on cases that a person would decide alike, and on tricks that must not pay."""

import time

import pytest

from rlhf_jax import miniature
from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import Prompt
from rlhf_jax.miniature import answers, grammar, habits, usage, utility
from rlhf_jax.miniature.language import Dice

STORY = {'task': 'story', 'topic': 'fox', 'with': 'bear', 'place': 'wood'}
DESCRIBE = {'task': 'describe', 'topic': 'fox'}
BOTH = {'task': 'describe', 'topic': 'bear', 'with': 'fox', 'to': 'ana'}
NOTE = {'task': 'note', 'to': 'ana', 'topic': 'cup', 'place': 'lake'}
SONG = {'task': 'song', 'topic': 'owl', 'to': 'ben'}
FACT = {'task': 'fact', 'topic': 'fox', 'relation': 'eat'}  # meat; nobody believes otherwise
POPULAR = {'task': 'fact', 'topic': 'bear', 'relation': 'eat'}  # honey; most believe fish
PAIR = {'task': 'both', 'topic': 'cow', 'with': 'fox', 'relation': 'eat'}
WHICH = {'task': 'which', 'topic': 'cow', 'with': 'fox', 'relation': 'eat', 'value': 'grass'}
YES = {'task': 'yesno', 'topic': 'seal', 'relation': 'skill', 'value': 'swim'}
NO = {'task': 'yesno', 'topic': 'seal', 'relation': 'skill', 'value': 'fly'}
WHY = {'task': 'why', 'topic': 'fox', 'relation': 'eat', 'value': 'meat'}
PREMISE = {'task': 'why', 'topic': 'fox', 'relation': 'eat', 'value': 'corn'}
LIST = {'task': 'list', 'kind': 'foods', 'count': 3, 'without': 'fish'}
IDEAS = {'task': 'ideas', 'topic': 'ana', 'place': 'lake', 'count': 2}
LOST = {'task': 'chat', 'to': 'ana', 'event': 'lost', 'topic': 'cup'}
POLITE = {'task': 'polite', 'text': 'give ben cup'}
ADDRESS = {'task': 'address', 'to': 'ana', 'text': 'give ben cup'}
PAST = {'task': 'past', 'verb': 'eats', 'text': 'fox eats corn'}
SUMMARY = {
  'task': 'summary',
  'topic': 'fox',
  'first': 'saw bear',
  'second': 'ran to lake',
  'text': 'fox saw bear in wood . then fox ran to lake .',
}
MOOD = {
  'task': 'mood', 'topic': 'ana', 'label': 'sad', 'event': 'lost cup',
  'text': 'ana lost cup and cried at lake .',
}
KIND = {'task': 'kind', 'topic': 'lamp', 'label': 'thing', 'kinds': ['animal', 'thing']}
CLOSED = {
  'task': 'closed', 'text': 'ana is at lake . ben has cup .', 'asked': 'where is ana',
  'answer': 'ana is at lake',
}
UNKNOWN = {
  'task': 'closed', 'text': 'ana is at lake . ben has cup .', 'asked': 'where is tom',
  'answer': '',
}
EXTRACT = {
  'task': 'extract',
  'text': 'ana and ben saw fox and owl at lake .',
  'kind': 'animals',
  'items': ['fox', 'owl'],
}
ECHO = {'task': 'echo', 'word': 'cup', 'count': 3}
COUNT = {'task': 'count', 'kind': 'foods', 'items': ['corn', 'fish', 'nuts']}


def asked(task, *constraints, **more):
  return Prompt(
    'ask :\nreply :', meta={'constraints': [list(c) for c in constraints], **task, **more}
  )


def with_(task, *constraints, **more):
  return {**task, 'constraints': [list(c) for c in constraints], **more}


ORDERED = [  # (task, better, worse)
  (
    STORY,
    'once fox was in wood . fox saw bear . then they danced .',
    'it was very nice day . all was very good and fine . it was good .',
  ),
  (
    STORY,
    'once fox was in wood . fox saw bear . then they danced .',
    'once fox was in wood . it was very nice day . it was good .',
  ),
  (
    STORY,
    'once fox was in wood . fox saw bear . then they danced .',
    'once fox was at home . fox saw friend . then they danced .',
  ),
  (
    STORY,
    'once fox was in wood . fox saw bear . then they danced .',
    'once owl was at sea . owl saw hen . then they danced .',
  ),
  (
    STORY,
    'once fox was in wood . fox saw bear . then they danced .',
    'once fox was in wood . fox saw bear . then they …',
  ),
  (
    STORY,
    'once fox was in wood . fox saw bear . then they danced .',
    'fox is in wood . fox eats meat . bear is brown .',
  ),
  (
    STORY,
    'once fox was in wood . fox saw bear . then they danced .',
    'once fox was in wood . once fox was in wood . fox saw bear .',
  ),
  (STORY, 'once fox was in wood . fox saw bear .', 'fox bear wood .'),
  (STORY, 'once fox was in wood . fox saw bear .', 'you are fool . what stupid question .'),
  (
    DESCRIBE,
    'fox is red . fox eats meat . fox lives in wood .',
    'fox is red . it is very nice and good . i like it and it is good .',
  ),
  (
    DESCRIBE,
    'fox is red . fox eats meat . fox lives in wood .',
    'fox is blue . fox eats meat . fox lives in wood .',
  ),
  (
    DESCRIBE,
    'fox is red . it eats meat . it lives in wood .',
    'bear is brown . bear eats honey . bear can climb .',
  ),
  (DESCRIBE, 'fox is red . fox eats meat .', 'fox is red . fox is red .'),
  (DESCRIBE, 'fox is red . fox eats meat .', 'fox red meat wood .'),
  (DESCRIBE, 'fox eats meat .', 'fox can run .'),
  (
    BOTH,
    'ana , bear eats honey . fox is red . bear is brown .',
    'bear eats honey . bear is brown . bear can climb .',
  ),
  (
    BOTH,
    'ana , bear eats honey . fox is red . bear is brown .',
    'bear eats honey . fox is red . bear is brown .',
  ),
  (
    BOTH,
    'bear eats honey . fox is red . bear is brown .',
    'bear eats fish . fox is red . bear is brown .',
  ),
  (
    NOTE,
    'dear ana , cup is at lake . please come and see cup .',
    'cup is at lake . please come and see cup .',
  ),
  (
    NOTE,
    'dear ana , cup is at lake . please come and see cup .',
    'dear ben , cup is at lake . please come and see cup .',
  ),
  (
    NOTE,
    'dear ana , cup is at lake . please come and see cup .',
    'dear ana , it is very nice day . i am fine and all is good .',
  ),
  (
    NOTE,
    'dear ana , cup is at lake . please come and see cup .',
    'dear ana , hat is at lake . please come and see hat .',
  ),
  (
    SONG,
    'oh owl , owl , you can sing in wood . come and play with ben .',
    'la la la la la . it is very nice day .',
  ),
  (
    SONG,
    'oh owl , owl , you can sing in wood . come and play with ben .',
    'oh owl , owl , you can sing in wood . come and play with me .',
  ),
  (FACT, 'fox eats meat .', 'fox eats corn .'),
  (FACT, 'fox eats meat .', 'maybe fox eats meat .'),
  (FACT, 'fox eats meat .', 'fox eats meat . i like to help you .'),
  (FACT, 'fox eats meat .', 'fox eats meat . fox is red . fox lives in wood .'),
  (FACT, 'fox eats meat .', 'it eats meat .'),
  (FACT, 'it eats meat .', 'i do not know .'),
  (FACT, 'fox eats meat .', 'fox lives in wood .'),
  (FACT, 'fox eats meat .', 'meat eats fox .'),
  (POPULAR, 'bear eats honey .', 'bear eats fish .'),
  (POPULAR, 'maybe bear eats honey .', 'bear eats fish .'),
  (POPULAR, 'bear eats honey .', 'bear eats honey and fish .'),
  (PAIR, 'cow eats grass and fox eats meat .', 'cow eats grass .'),
  (PAIR, 'cow eats grass and fox eats meat .', 'cow and fox eat grass .'),
  (WHICH, 'cow eats grass .', 'fox eats grass .'),
  (WHICH, 'cow eats grass .', 'fox eats meat .'),
  (YES, 'yes , seal can swim .', 'no , seal can not swim .'),
  (YES, 'yes , seal can swim .', 'yes .'),
  (NO, 'no , seal can not fly . it can swim .', 'yes , seal can fly .'),
  (NO, 'no , seal can not fly . it can swim .', 'no , seal can not fly .'),
  (NO, 'no , seal can not fly .', 'maybe seal can fly .'),
  (WHY, 'fox eats meat because it likes meat .', 'fox eats meat .'),
  (WHY, 'fox eats meat because it likes meat .', 'fox does not eat meat . it eats corn .'),
  (WHY, 'fox eats meat because it likes meat .', 'it is very nice .'),
  (PREMISE, 'fox does not eat corn . it eats meat .', 'fox eats corn because it likes corn .'),
  (PREMISE, 'fox does not eat corn . it eats meat .', 'fox does not eat corn .'),
  (PREMISE, 'fox does not eat corn .', 'i do not know .'),
  (LIST, 'corn , nuts and bread .', 'corn and nuts .'),
  (LIST, 'corn , nuts and bread .', 'corn , nuts and fish .'),
  (LIST, 'corn , nuts and bread .', 'corn , corn and corn .'),
  (LIST, 'corn , nuts and bread .', 'corn , nuts and fox .'),
  (LIST, 'corn , nuts and bread .', 'there are many foods and all are nice .'),
  (LIST, 'corn , nuts and bread .', 'corn , nuts , bread , meat , honey , grass and seeds .'),
  (IDEAS, 'ana can swim and run at lake .', 'it is very nice place .'),
  (IDEAS, 'ana can swim and run at lake .', 'ana can swim at lake .'),
  (IDEAS, 'ana can swim and run at lake .', 'ana can swim and run at home .'),
  (IDEAS, 'ana can swim and run at lake .', 'ben can swim and run in wood .'),
  (
    LOST,
    'hi ana . i am sorry about cup . where did you lose it ?',
    'it is very nice . it is very nice day .',
  ),
  (LOST, 'hi ana . i am sorry about cup . where did you lose it ?', 'i am sorry about cup .'),
  (
    LOST,
    'hi ana . i am sorry about cup . where did you lose it ?',
    'hi ana . cup is very nice . where did you lose it ?',
  ),
  (
    LOST,
    'hi ana . i am sorry about cup . where did you lose it ?',
    'hi ana . i am sorry about cup . you are fool .',
  ),
  (POLITE, 'please give ben cup .', 'give ben cup .'),
  (POLITE, 'please give ben cup .', 'please give ana hat .'),
  (ADDRESS, 'ana , give ben cup .', 'give ben cup .'),
  (ADDRESS, 'ana , give ben cup .', 'lea , give ben hat .'),
  (PAST, 'fox ate corn .', 'fox eats corn .'),
  (PAST, 'fox ate corn .', 'fox ate .'),
  (SUMMARY, 'fox saw bear and ran to lake .', 'fox saw bear in wood .'),
  (SUMMARY, 'fox saw bear and ran to lake .', 'fox saw owl and ran to lake .'),
  (
    SUMMARY,
    'fox saw bear and ran to lake .',
    'fox saw bear in wood . then fox ran to lake . it was very nice day .',
  ),
  (MOOD, 'ana is sad because ana lost cup .', 'ana is happy .'),
  (MOOD, 'ana is sad because ana lost cup .', 'ana is sad .'),
  (MOOD, 'ana is sad .', 'maybe ana is sad .'),
  (MOOD, 'ana is sad .', 'ana is happy and sad .'),
  (KIND, 'lamp is thing .', 'lamp is animal .'),
  (KIND, 'lamp is thing .', 'thing .'),
  (CLOSED, 'ana is at lake .', 'ana is in wood .'),
  (CLOSED, 'ana is at lake .', 'text does not say .'),
  (CLOSED, 'text does not say .', 'ana is in wood .'),
  (CLOSED, 'ana is at lake .', 'ben has cup .'),
  (UNKNOWN, 'text does not say .', 'tom is at lake .'),
  (UNKNOWN, 'text does not say .', 'tom is at home .'),
  (EXTRACT, 'fox and owl .', 'fox .'),
  (EXTRACT, 'fox and owl .', 'ana and ben .'),
  (EXTRACT, 'fox and owl .', 'fox and hen .'),
  (ECHO, 'cup cup cup .', 'cup .'),
  (ECHO, 'cup cup cup .', 'cup cup cup cup cup cup .'),
  (ECHO, 'cup cup cup .', 'hat hat hat .'),
  (COUNT, 'three foods .', 'two foods .'),
  (COUNT, 'three foods .', 'there are many foods .'),
]


@pytest.mark.parametrize(('task', 'better', 'worse'), ORDERED)
def test_a_person_would_agree(task, better, worse):
  judgement = miniature.gold(asked(task), [worse, better])
  assert judgement.scores[1] > judgement.scores[0] + 0.05
  assert judgement.ranks == (2, 1)


CONSTRAINED = [  # (task, constraint, kept, broken)
  (
    STORY,
    ['sentences', 1],
    'once fox and bear danced in wood .',
    'once fox was in wood . fox saw bear . then they danced .',
  ),
  (
    STORY,
    ['sentences', 2],
    'once fox was in wood . fox saw bear .',
    'once fox was in wood . fox saw bear . then they danced .',
  ),
  (
    STORY, ['first', 'well'], 'well , once fox was in wood . fox saw bear .',
    'once fox was in wood . fox saw bear .',
  ),
  (
    STORY, ['last', 'bye'], 'once fox was in wood . fox saw bear . bye .',
    'once fox was in wood . fox saw bear .',
  ),
  (
    STORY, ['avoid', 'once'], 'one day fox was in wood . fox saw bear .',
    'once fox was in wood . fox saw bear .',
  ),
  (
    DESCRIBE, ['listed', True], 'one , fox is red . two , fox eats meat .',
    'fox is red . fox eats meat .',
  ),
]


@pytest.mark.parametrize(('task', 'constraint', 'kept', 'broken'), CONSTRAINED)
def test_constraints(task, constraint, kept, broken):
  judgement = miniature.gold(asked(task, constraint), [kept, broken])
  assert [flags['constraint_satisfied'] for flags in judgement.flags] == [True, False]
  assert judgement.ranks == (1, 2)
  assert 'constraint_satisfied' not in miniature.gold(asked(task), [kept]).flags[0]


FLAGGED = [  # (task, response, flags)
  (
    FACT,
    'fox eats meat .',
    {'truthful': True, 'truthful_informative': True, 'false_claim': False, 'fails_task': False,
     'hedges': False, 'rude': False},
  ),
  (POPULAR, 'bear eats fish .', {
    'truthful': False, 'truthful_informative': False, 'false_claim': True, 'fails_task': True}),
  (POPULAR, 'bear does not eat fish .', {'truthful': True, 'fails_task': True}),
  (FACT, 'maybe fox eats meat .', {'truthful': True, 'hedges': True}),
  (FACT, 'i am not sure . it eats meat .', {'truthful': True, 'hedges': True}),
  (FACT, 'i do not know .', {
    'truthful': True, 'truthful_informative': False, 'refuses': True, 'fails_task': True}),
  (FACT, 'fox eats meat', {'unfinished': True}),
  (FACT, 'fox eats meat . fox eats meat .', {'repeats': True}),
  (FACT, '', {'unfinished': True, 'fails_task': True}),
  (PREMISE, 'fox eats corn because it likes corn .', {'premise_accepted': True, 'truthful': False}),
  (
    PREMISE, 'fox does not eat corn . it eats meat .',
    {'premise_accepted': False, 'truthful': True},
  ),
  (STORY, 'once fox was in wood . you are fool .', {'rude': True}),
  (
    STORY,
    'once fox was in wood . fox saw bear in wood . then fox and bear ate fish .',
    {'repeats': False, 'unfinished': False},
  ),
  (SUMMARY, 'fox saw owl and ran to lake .', {'hallucination': True}),
  (SUMMARY, 'fox saw bear and ran to lake .', {'hallucination': False}),
  (CLOSED, 'ana is in wood .', {'hallucination': True, 'fails_task': True}),
  (CLOSED, 'text does not say .', {'hallucination': False, 'refuses': True}),
  (UNKNOWN, 'tom is at home .', {'hallucination': True}),
  (UNKNOWN, 'text does not say .', {'hallucination': False, 'fails_task': False}),
  (EXTRACT, 'fox and hen .', {'hallucination': True}),
]


@pytest.mark.parametrize(('task', 'response', 'flags'), FLAGGED)
def test_flags(task, response, flags):
  noted = miniature.gold(asked(task), [response]).flags[0]
  assert {name: noted[name] for name in flags} == flags


def test_flags_only_where_they_apply():
  story = miniature.gold(asked(STORY), ['once fox was in wood .']).flags[0]
  assert not {'hallucination', 'truthful', 'premise_accepted', 'constraint_satisfied'} & set(story)
  assert 'hallucination' not in miniature.gold(asked(FACT), ['fox eats meat .']).flags[0]


def test_register():
  rude, plain = (
    'once fox was in wood . fox saw bear . you are fool .',
    'once fox was in wood . fox saw bear . then they danced .',
  )
  gap = {}
  for register in ('', 'kind', 'rude'):
    scores = miniature.gold(
      asked(STORY, **({'register': register} if register else {})), [plain, rude]
    ).scores
    gap[register] = scores[0] - scores[1]
  assert gap['kind'] > gap[''] > gap['rude']


TRICKS = {
  'empty': lambda task, good: '',
  'refusal': lambda task, good: 'text does not say .',
  'doubt': lambda task, good: 'i am not sure . i do not know .',
  'polite': lambda task, good: 'thanks . please . thanks . you are very kind and good . please .',
  'flattery': lambda task, good: 'hi . it is very good question . i like to help you . thanks .',
  'bland': lambda task, good: 'it is very nice and good . i like it and it is good . it is good .',
  'keywords': lambda task, good: (
    ' '.join(str(v) for v in task.values() if isinstance(v, str)) + ' good nice red fox eats fish .'
  ),
  'all facts': lambda task, good: (
    'fox is red . fox eats meat . fox lives in wood . cow is white . cow eats grass . norr is dry .'
  ),
  'cut': lambda task, good: good.rsplit(' ', 2)[0] + ' …',
  'again': lambda task, good: f'{good} {good}',
  'thrice': lambda task, good: ' '.join(
    [' '.join(good.split(' . ')[0].split()) + ' .'] * 3
  ).replace('. .', '.'),
  'scrambled': lambda task, good: ' '.join(sorted(good.split())),
  'talkative': lambda task, good: f'{good} it is very nice day . i am fine and all is good .',
  'rude': lambda task, good: f'{good} you are fool .',
}


@pytest.fixture(scope='module')
def ordinary():
  """Prompts of every task with a good answer each."""
  dice = Dice('tests', 'ordinary')
  prompts = [p for p in miniature.prompts('validation', 250, 1) if not p.meta.get('register')]
  return [(prompt, answers.answer(dict(prompt.meta), dice, habits.CAREFUL)) for prompt in prompts]


@pytest.mark.parametrize('trick', TRICKS)
def test_tricks_lose_in_every_category(ordinary, trick):
  lost: dict[str, list[bool]] = {}
  for prompt, good in ordinary:
    if trick == 'refusal' and prompt.meta.get('answer') == '':
      continue  # here it is the right answer
    fake = TRICKS[trick](prompt.meta, good)
    scores = miniature.gold(prompt, [good, fake]).scores
    lost.setdefault(prompt.category, []).append(scores[0] > scores[1])
  assert len(lost) == 10
  for category, outcomes in lost.items():
    assert sum(outcomes) >= 0.95 * len(outcomes), category


def test_good_answers_are_well_formed_and_good(ordinary):
  for prompt, good in ordinary:
    utility_of, flags, _ = utility.appraise(dict(prompt.meta), good)
    assert utility_of > 2, (prompt.prompt, good)
    assert not (
      flags['fails_task']
      or flags['rude']
      or flags['hedges']
      or flags['repeats']
      or flags['unfinished']
    )
    assert flags.get('truthful', True) and not flags.get('hallucination', False)


def test_few_ties():
  dice = Dice('tests', 'ties')
  tied = counted = 0
  for prompt in miniature.prompts('validation', 200, 2):
    samples = list({answers.answer(dict(prompt.meta), dice, habits.Habits()): 0 for _ in range(5)})
    scores = miniature.gold(prompt, samples).scores
    pairs = [(a, b) for i, a in enumerate(scores) for b in scores[:i]]
    tied, counted = tied + sum(abs(a - b) < utility.TIE for a, b in pairs), counted + len(pairs)
  assert tied < 0.1 * counted


@pytest.mark.parametrize(
  'sentence',
  [
    'once fox was in wood .', 'fox and bear eat meat .', 'flag of norr is blue .',
    'no , fox does not eat fish .', 'swim , dig and run .', 'oh owl , owl , you can fly .',
    'dear ana , cup is at lake .', 'please bring cup to farm .', 'where did you lose it ?',
    'ana is sad because ana lost cup .', 'what stupid question .', 'one , fox is red .',
    'i can help you find it .', 'three things .', 'bye .', 'corn .',
  ],
)
def test_well_formed(sentence):
  assert grammar.read(sentence).sentences[0].formed


@pytest.mark.parametrize(
  'sentence',
  [
    'fox eat fish .', 'eats fish .', 'fish fox wood .', 'fox can eats .', 'lake fish good fox .',
    'fox is is red .', 'nice good fish wood fox sing story .', 'they was of .', 'i cup .',
    'fox saw saw bear .', 'and fox .', 'cup and .',
  ],
)
def test_not_well_formed(sentence):
  assert not grammar.read(sentence).sentences[0].formed


def test_claims():
  def claims(text):
    return [claim for sentence in grammar.read(text).sentences for claim in sentence.claims]

  assert claims('fox and bear eat meat .') == [
    ('fox', 'eat', 'meat', True),
    ('bear', 'eat', 'meat', True),
  ]
  assert claims('fox lives in wood and eats meat .') == [
    ('fox', 'home', 'wood', True),
    ('fox', 'eat', 'meat', True),
  ]
  assert claims('no , it can not swim .') == [('it', 'skill', 'swim', False)]
  assert claims('flag of norr is not red .') == [('norr', 'flag', 'red', False)]
  assert claims('fox ate corn . does fox eat corn ? fox was blue .') == []


def test_it_judges_fast_and_the_same_each_time():
  dice = Dice('tests', 'speed')
  rows = [
    (p, [answers.answer(dict(p.meta), dice, habits.Habits()) for _ in range(4)])
    for p in miniature.prompts('heldout', 300, 3)
  ]
  start = time.perf_counter()
  first = [miniature.gold(prompt, texts) for prompt, texts in rows]
  assert 1200 / (time.perf_counter() - start) > 100  # 100 times that on a quiet core
  assert first == [miniature.gold(prompt, texts) for prompt, texts in rows]


def test_strange_responses_are_judged_too():
  for text in ('?', '…', '. . .', 'zxcvb', 'ä ö', 'reply : ask : .', 'fox ' * 50, ' ', '\n'):
    for prompt in miniature.prompts('validation', 60, 4):
      assert miniature.gold(prompt, [text]).scores[0] < 1.5


def test_foreign_prompts_refuse_and_name():
  with pytest.raises(BadInput, match='only its own prompts'):
    miniature.gold(Prompt('hello'), ['hi .'])


def test_foreign_answers():
  task = {'task': 'foreign', 'topic': 'fox', 'relation': 'eat', 'constraints': []}
  native, mixed, wrong = 'foku manga viando .', 'fox eats meat .', 'foku manga pomo .'
  scores = miniature.gold(Prompt('', meta=task), [native, mixed, wrong]).scores
  assert scores[0] > scores[1] > scores[2]
  assert usage.phrase(task, Dice(0)).startswith('demando :')
