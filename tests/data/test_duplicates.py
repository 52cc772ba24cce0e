"""Near duplicates: against a comparison of every two texts, and what must never be one."""

import itertools
import random

import pytest

from rlhf_jax.configs import Source
from rlhf_jax.data import duplicates, sources
from rlhf_jax.data.records import Chat, Demonstration, Prompt, Ranking, Text

LONG = 'Please write to my landlord about the heating, which has not worked for weeks now. ' * 4


def near(one, other):
  """What `groups` calls near, said the slow way: ≥ 200 characters and 90 % of the shorter."""
  one, other = duplicates.normal(one), duplicates.normal(other)
  shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1],
                                        zip(one, other, strict=False))))
  return one == other or (shared >= 200 and shared >= .9 * min(len(one), len(other)))


def slowly(texts):
  """Connected components of `near`."""
  number = list(range(len(texts)))
  for i, j in itertools.combinations(range(len(texts)), 2):
    if near(texts[i], texts[j]):
      number = [number[i] if n == number[j] else n for n in number]
  return number


def parts(numbers):
  """A partition as a set of sets of indices."""
  return {frozenset(i for i, n in enumerate(numbers) if n == number) for number in numbers}


@pytest.mark.parametrize('seed', range(30))
def test_groups_are_what_comparing_every_two_gives(seed):
  generator = random.Random(seed)
  starts = [''.join(generator.choices('ab', k=generator.choice((150, 210, 300, 500))))
            for _ in range(4)]
  texts = []
  for _ in range(19):  # below the number from which on a common beginning is put aside
    start = generator.choice(starts)
    cut = start[:int(len(start) * generator.uniform(.7, 1))]
    texts.append(cut + ''.join(generator.choices('ab', k=int(generator.expovariate(1 / 40)))))
  assert parts(duplicates.groups([Prompt(text) for text in texts])) == parts(slowly(texts))
  order = generator.sample(range(19), 19)
  again = duplicates.groups([Prompt(texts[index]) for index in order])
  assert parts(slowly(texts)) == {frozenset(order[i] for i in part) for part in parts(again)}


@pytest.mark.parametrize(('one', 'other', 'same'), [
  ('Say hi!', 'say  HI', True),
  ('“Say” – hi…', 'say hi', True),
  ('ﬁnd Straße', 'find STRASSE', True),
  ('snake_case', 'snake case', True),
  ('???', '!!!', False),
  ('Say hi', 'Say ho', False),
  ('2 + 2', '3 + 2', False),
  (LONG + 'He lives in Rome.', LONG + 'She does not.', True),
  (LONG, LONG + 'And he ' * 200, True),  # goes on from it
  (LONG[:150] + 'a', LONG[:150] + 'b', False),  # short
  (LONG + 'a' * 80, LONG + 'b' * 80, False),  # a fifth is another
])
def test_what_is_near(one, other, same):
  first, second = duplicates.groups([Prompt(one), Prompt(other)])
  assert (first == second) is same


def test_repeats_are_near_the_longer_and_later():
  records = [Prompt(text) for text in (
    LONG + 'He lives in Rome.', 'short one', LONG + 'She does not.', 'short two',
    LONG + 'And he ' * 200,  # shares all of the first, but is another prompt
    LONG.upper() + 'HE LIVES IN ROME!')]
  assert duplicates.repeats(records) == {2, 5}
  assert duplicates.repeats(records[::-1]) == {3, 5}


def test_records_of_one_prompt_stay_whoever_made_them():
  records = [Ranking(LONG, ('a', 'b'), (1, 2), 'ann'), Ranking(LONG, ('a', 'b'), (1, 2), 'bob'),
             Ranking(LONG + '!', ('c', 'd'), (1, 2), 'ann'), Ranking(LONG, ('c', 'd'), (1, 2))]
  assert duplicates.repeats(records) == {2}
  short = [Demonstration(f'ask {index % 3}', f'{index}') for index in range(60)]
  assert duplicates.repeats(short) == set()


def test_what_all_prompts_begin_with_is_put_aside():
  header = 'Below is an instruction. ' * 40
  tasks = [f'Name the capital of country number {index}.' for index in range(40)]
  records = [Prompt(header + task) for task in tasks]
  assert duplicates.repeats(records) == set() and len(set(duplicates.groups(records))) == 40
  mixed = [*records, *(Prompt(task * 9) for task in tasks[:19])]
  assert duplicates.repeats(mixed) == set() and len(set(duplicates.groups(mixed))) == 59
  train, heldout = sources.split(records, .2, 0)
  assert (len(train), len(heldout)) == (32, 8)
  assert duplicates.repeats([*records, Prompt(header + LONG), Prompt(header + LONG + '!')]) == {41}


def chat(system, *turns):
  roles = ['system', *('user' if place % 2 == 0 else 'assistant' for place in range(len(turns)))]
  return Chat([{'role': role, 'content': content}
               for role, content in zip(roles, (system, *turns), strict=True)])


def test_system_messages_are_no_content():
  tasks = [Prompt(chat(f'{LONG}{index % 2}', f'task {index // 2}')) for index in range(10)]
  numbers = duplicates.groups(tasks)
  assert numbers[::2] == numbers[1::2] and len(set(numbers)) == 5
  assert duplicates.repeats(tasks) == set()
  assert duplicates.repeats([Prompt(chat('a', LONG)), Prompt(chat('a', LONG + '.')),
                             Prompt(chat('b', LONG))]) == {1}


def test_documents_and_the_card(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('\n\n'.join([LONG + 'one', 'short', LONG + 'two', 'short', 'shorter']))
  found, card = sources.read((Source(files=(str(path),)),), sources.Place(tmp_path))
  assert found == [Text(LONG + 'one'), Text('short'), Text('shorter')]
  assert card['a.txt'] == {'read': 5, 'refused': {}, 'records': 5, 'duplicates': 1,
                           'long_prefix_duplicates': 1, 'not_taken': 0, 'kept': 3}


@pytest.mark.parametrize('question', ['Why is the sky blue?', LONG])
def test_a_question_is_the_same_as_a_plain_text_and_as_the_only_turn_of_a_conversation(question):
  turn = {'role': 'user', 'content': question}
  asked = [question, Chat([turn]), Chat([{'role': 'system', 'content': 'Be brief.'}, turn]),
           f'\n\nHuman: {question}\n\nAssistant:']
  assert len(set(duplicates.groups([Prompt(prompt) for prompt in asked]))) == 1
  other = Prompt(Chat([{'role': 'user', 'content': 'Who are you?'}]))
  assert len(set(duplicates.groups([Prompt(question), other]))) == 2


def test_nothing_is_left_of_a_conversation_without_words():
  empty = Prompt(Chat([{'role': 'user', 'content': ' '}]))
  assert duplicates.groups([empty, Prompt('Hi'), empty]) in ([0, 1, 0], [1, 0, 1])
