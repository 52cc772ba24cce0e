"""Layouts: every form that a row may have, written out; what fits none is told what would."""

import re

import pytest

from rlhf_jax.data import layouts
from rlhf_jax.data.files import LeftOut
from rlhf_jax.data.records import Chat, Demonstration, Prompt, Ranking, Refused, Text


def message(role, content):
  return {'role': role, 'content': content}


HI, HELLO = message('user', 'Hi'), message('assistant', 'Hello')
WHY, SO, NO = message('user', 'Why?'), message('assistant', 'So.'), message('assistant', 'No.')
SYSTEM = message('system', 'Be brief.')
ASKED = 'Human: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:'
DIALOGUE = '\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:'


@pytest.mark.parametrize(('kind', 'row', 'expected'), [
  ('text', {'text': 'a', 'id': 5}, Text('a')),
  ('prompts', {'prompt': 'p', 'chosen': 'a'}, Prompt('p')),
  ('demonstrations', {'prompt': 'p', 'response': 'r'}, Demonstration('p', 'r')),
  ('demonstrations', {'prompt': 'p', 'completion': 'r'}, Demonstration('p', 'r')),
  ('demonstrations', {'prompt': 'p', 'completion': 'r', 'label': True}, Demonstration('p', 'r')),
  ('demonstrations', {'prompt': 'p', 'response': None, 'completion': 'r', 'category': None},
   Demonstration('p', 'r')),
  ('rankings', {'prompt': 'p', 'completions': ['a', 'b'], 'ranks': [2, 1], 'labeler': 'ann'},
   Ranking('p', ('a', 'b'), (2, 1), 'ann')),
  ('rankings', {'prompt': 'p', 'chosen': 'good', 'rejected': 'bad', 'labeler': 'ann', 'note': 5},
   Ranking('p', ('good', 'bad'), (1, 2), 'ann')),
  # hh_rlhf: the dialogue is the prompt
  ('rankings', {'chosen': f'{DIALOGUE} So.', 'rejected': f'{DIALOGUE} No. '},
   Ranking(ASKED, ('So.', 'No.'), (1, 2))),
  ('prompts', {'chosen': f'{DIALOGUE} So.', 'rejected': f'{DIALOGUE} No.'}, Prompt(ASKED)),
  # several layouts at once: the first of LAYOUTS
  ('demonstrations', {'prompt': 'p', 'response': 'r', 'messages': [HI, HELLO]},
   Demonstration('p', 'r')),
  ('rankings', {'prompt': 'p', 'completions': ['a', 'b'], 'ranks': [1, 2], 'chosen': 'c',
                'rejected': 'd'}, Ranking('p', ('a', 'b'), (1, 2))),
])
def test_texts(kind, row, expected):
  assert layouts.record(kind, row) == expected


@pytest.mark.parametrize(('kind', 'row', 'messages', 'rest'), [
  ('demonstrations', {'messages': [HI, HELLO, WHY, SO]}, [HI, HELLO, WHY], ('So.',)),
  ('demonstrations', {'prompt': [HI, HELLO, WHY], 'completion': [SO]}, [HI, HELLO, WHY], ('So.',)),
  ('demonstrations', {'prompt': [SYSTEM, HI], 'response': 'So.'}, [SYSTEM, HI], ('So.',)),
  # a text beside the messages, as in ultrachat: the response is in the messages alone
  ('demonstrations', {'prompt': 'Hi', 'messages': [HI, HELLO]}, [HI], ('Hello',)),
  ('rankings', {'prompt': [HI, HELLO, WHY], 'chosen': [SO], 'rejected': [NO]}, [HI, HELLO, WHY],
   (('So.', 'No.'), (1, 2))),
  ('rankings', {'prompt': [HI], 'chosen': 'So.', 'rejected': 'No.'}, [HI],
   (('So.', 'No.'), (1, 2))),
  ('rankings', {'chosen': [HI, HELLO, WHY, SO], 'rejected': [HI, HELLO, WHY, NO]},
   [HI, HELLO, WHY], (('So.', 'No.'), (1, 2))),
  # the prompt twice, as in ultrafeedback
  ('rankings', {'prompt': 'Hi', 'chosen': [HI, SO], 'rejected': [HI, NO]}, [HI],
   (('So.', 'No.'), (1, 2))),
  ('rankings', {'prompt': [HI], 'chosen': [HI, SO], 'rejected': [HI, NO]}, [HI],
   (('So.', 'No.'), (1, 2))),
  ('rankings', {'prompt': [HI], 'completions': [[SO], 'b'], 'ranks': [2, 1]}, [HI],
   (('So.', 'b'), (2, 1))),
  ('rankings', {'chosen': f'{DIALOGUE} So.', 'rejected': f'{DIALOGUE} No.'}, [HI, HELLO, WHY],
   (('So.', 'No.'), (1, 2))),
  ('prompts', {'prompt': [HI, HELLO, WHY]}, [HI, HELLO, WHY], ()),
  ('prompts', {'messages': [HI, HELLO]}, [HI], ()),
  ('prompts', {'messages': [HI]}, [HI], ()),
  ('prompts', {'chosen': [HI, SO], 'rejected': [HI, NO]}, [HI], ()),
  ('prompts', {'chosen': 'be nice\n\nHuman: Hi\n\nAssistant: So.',
               'rejected': 'be nice\n\nHuman: Hi\n\nAssistant:'},
   [message('system', 'be nice'), HI], ()),
])
def test_messages(kind, row, messages, rest):
  found = layouts.record(kind, row)
  assert isinstance(found.prompt, Chat) and list(found.prompt.messages) == messages
  said = (found.response,) if kind == 'demonstrations' else (
    (found.completions, found.ranks) if kind == 'rankings' else ())
  assert said == rest


@pytest.mark.parametrize('before', [[], [SYSTEM], [HI, HELLO], [SYSTEM, HI, HELLO]])
@pytest.mark.parametrize('prompt', [{'prompt': 'Why?'}, {'prompt': None}, {}])
@pytest.mark.parametrize(('layout', 'kind'), [
  (lambda asked: {'chosen': [*asked, SO], 'rejected': [*asked, NO]}, 'rankings'),
  (lambda asked: {'chosen': [*asked, SO], 'rejected': [*asked, NO], 'messages': [*asked, SO]},
   'rankings'),
  (lambda asked: {'chosen': [SO], 'rejected': [NO], 'prompt': asked}, 'rankings'),
  (lambda asked: {'chosen': [SO], 'rejected': [NO], 'prompt': 'p', 'messages': [*asked, SO]},
   'rankings'),
  (lambda asked: {'chosen': 'a', 'rejected': 'b', 'prompt': 'p', 'messages': [*asked, SO]},
   'rankings'),
  (lambda asked: {'completions': ['a', 'b'], 'ranks': [1, 2], 'prompt': 'p',
                  'messages': [*asked, SO]}, 'rankings'),
  (lambda asked: {'messages': [*asked, SO]}, 'demonstrations'),
  (lambda asked: {'prompt': 'p', 'response': 'r', 'messages': [*asked, SO]}, 'demonstrations'),
  (lambda asked: {'prompt': 'p', 'completion': 'r', 'messages': [*asked, SO]}, 'demonstrations'),
])
def test_a_row_has_one_prompt_whatever_it_is_read_for(layout, kind, prompt, before):
  row = prompt | layout([*before, WHY])
  found, asked = layouts.record(kind, row).prompt, layouts.record('prompts', row).prompt
  assert asked == found and type(asked) is type(found)
  assert getattr(asked, 'messages', ()) == getattr(found, 'messages', ())


def test_a_prompt_needs_no_preference():
  row = {'prompt': 'Hi', 'chosen': [HI, SO], 'rejected': [HI, SO]}
  assert layouts.record('prompts', row).prompt.messages == (HI,)


def test_what_else_messages_hold_is_dropped():
  row = {'messages': [HI | {'name': 'ann', 'weight': None}, HELLO | {'tool_calls': []}]}
  assert layouts.record('demonstrations', row).prompt.messages == (HI,)


@pytest.mark.parametrize(('row', 'reason'), [
  ({'chosen': f'{DIALOGUE} So.', 'rejected': '\n\nHuman: other\n\nAssistant: No.'},
   'no common prompt'),
  ({'chosen': f'{DIALOGUE} So.\n\nHuman: thanks', 'rejected': f'{DIALOGUE} No.'},
   "the human's turn last"),
  ({'chosen': f'{DIALOGUE} So.', 'rejected': f'{DIALOGUE} No.\n\nHuman: bad'},
   "the human's turn last"),
  ({'chosen': [HI, SO], 'rejected': [WHY, SO]}, 'no common prompt'),
  ({'chosen': [HI, SO], 'rejected': [HI, HELLO, WHY, SO]}, 'no common prompt'),
  ({'chosen': [HI, SO], 'rejected': [HI, SO]}, 'equal completions'),
])
def test_pairs_of_dialogues_that_compare_nothing_are_left_out(row, reason):
  with pytest.raises(LeftOut) as error:
    layouts.record('rankings', row)
  assert error.value.reason == reason


@pytest.mark.parametrize('prompt', ['Why?', DIALOGUE, ASKED, f'{DIALOGUE} ', [HI, HELLO, WHY]])
def test_dialogues_beside_their_prompt_are_no_completions(prompt):
  row = {'prompt': prompt, 'chosen': f'{DIALOGUE} So.', 'rejected': f'{DIALOGUE} No.'}
  assert layouts.record('rankings', row) == Ranking(ASKED, ('So.', 'No.'), (1, 2))
  assert layouts.record('prompts', row) == Prompt(ASKED)
  for other in ('Who?', [HI]):
    with pytest.raises(Refused, match="field 'chosen': expected a dialogue that holds 'prompt'"):
      layouts.record('rankings', row | {'prompt': other})
  short = row | {'chosen': ' So.', 'rejected': ' No.'}
  assert layouts.record('rankings', short).completions == (' So.', ' No.')


@pytest.mark.parametrize('completion', ['r', [SO]])
def test_a_completion_that_is_labelled_as_bad_is_no_demonstration(completion):
  row = {'prompt': 'p' if completion == 'r' else [HI], 'completion': completion}
  assert layouts.record('demonstrations', row | {'label': True}).response in ('r', 'So.')
  with pytest.raises(LeftOut) as error:
    layouts.record('demonstrations', row | {'label': False})
  assert error.value.reason == 'labelled as bad'
  assert layouts.record('prompts', row | {'label': False}).prompt


@pytest.mark.parametrize(('kind', 'row', 'message'), [
  ('text', [], "expected a JSON object with 'text', found a list []"),
  ('text', {}, "field 'text': expected a row with {text}, found an empty object"),
  ('text', {'txet': 'a'}, "found only 'txet'; rename 'txet'"),
  ('text', {'text': None}, "field 'text': expected a text, found null"),
  ('prompts', {'question': 'a'}, 'a row with {prompt} or {messages} or {chosen, rejected}, found'),
  ('demonstrations', {'prompt': 'a', 'answer': 'b'},
   "field 'response': expected a row with {prompt, response} or {prompt, completion} or "
   "{messages}, found only 'prompt', 'answer'; is the kind 'demonstrations' right?"),
  ('demonstrations', {'prompt': 'a', 'respons': 'b'}, "rename 'respons'"),
  ('demonstrations', {'prompt': 'a', 'response': None}, "'response': expected a text, found null"),
  ('demonstrations', {'prompt': 'a', 'completion': [HI]},
   "field 'completion': expected one message of the assistant's, found 1, the first by \"user\""),
  ('demonstrations', {'prompt': 'a', 'completion': [SO, WHY, NO]}, "field 'completion'"),
  ('demonstrations', {'prompt': [HI, HELLO], 'response': 'a'},
   "field 'prompt': expected messages up to the user's last one"),
  ('demonstrations', {'messages': [HI]}, "field 'messages': expected a conversation that ends"),
  ('demonstrations', {'messages': [HELLO]}, "field 'messages': expected a conversation that ends"),
  ('demonstrations', {'messages': []}, "field 'messages': expected at least one message"),
  ('demonstrations', {'messages': 'Hi'}, "field 'messages': expected a list, found a text"),
  ('demonstrations', {'messages': [{'from': 'human', 'value': 'Hi'}]},
   "field 'messages[0].role': expected a text, found null"),
  ('prompts', {'messages': [message('human', 'Hi'), message('gpt', 'So.')]},
   "field 'messages[0].role': expected 'user', found \"human\"; call it 'user'"),
  ('prompts', {'prompt': [HI, message('model', 'So.')]},
   "field 'prompt[1].role': expected 'assistant', found \"model\"; call it 'assistant'"),
  ('prompts', {'messages': [HI, message('Assistant', 'So.')]}, "found \"Assistant\"; call it"),
  # which of two is the better answer the names do not say
  ('demonstrations', {'prompt': 'p', 'response_0': 'a', 'response_1': 'b'},
   "found only 'prompt', 'response_0', 'response_1'; is the kind 'demonstrations' right?"),
  ('rankings', {'prompt': 'p', 'response': 'r', 'complexity': 2},
   "found only 'prompt', 'response', 'complexity'; is the kind 'rankings' right?"),
  ('demonstrations', {'messages': [HI | {'content': [{'type': 'text'}]}, SO]},
   "field 'messages[0].content': expected a text, found a list"),
  ('rankings', {'system_prompt': 's', 'question': 'q', 'chosen': 'a', 'rejected': 'b'},
   "'chosen', 'rejected'; rename 'question'"),
  ('rankings', {'prompt_id': 'x', 'input': 'q', 'chosen': 'a', 'rejected': 'b'},
   "'chosen', 'rejected'; rename 'input'"),
  ('rankings', {'prompt_id': 'x', 'asked': 'q', 'chosen': 'a', 'rejected': 'b'},
   "'chosen', 'rejected'; rename the field that holds it"),
  ('rankings', {'prompt': None, 'prompt_id': 'x', 'chosen': 'a', 'rejected': 'b'},
   "field 'prompt': expected a text, found null"),
  ('rankings', {'prompt': 'p', 'chosen': 'a'}, "field 'rejected': expected a row with {prompt, "
   'completions, ranks} or {prompt, chosen, rejected} or {chosen, rejected}'),
  ('rankings', {'prompt': 'p', 'chosen': 'a', 'rejected': 'a'}, "'rejected': expected another"),
  ('rankings', {'prompt': 'p', 'chosen': 'a', 'rejected': [SO]}, "'rejected': expected a text"),
  ('rankings', {'chosen': 'The sky is blue', 'rejected': 'The sky is green'},
   "field 'chosen': expected a turn that starts with"),
  ('rankings', {'promt': 'p', 'chosen': 'a', 'rejected': 'b'},
   "field 'prompt': expected 'prompt' beside 'chosen' and 'rejected', which are no dialogues, "
   "found only 'promt', 'chosen', 'rejected'; rename 'promt'"),
  ('rankings', {'chosen': '\n\nAssistant: a', 'rejected': '\n\nAssistant: b'},
   "field 'chosen': expected a turn before"),
  ('rankings', {'chosen': [HI, WHY], 'rejected': [HI, NO]}, "field 'chosen': expected messages"),
  ('rankings', {'chosen': [SO], 'rejected': [NO]}, "field 'chosen': expected messages that end"),
  ('rankings', {'prompt': 'else', 'chosen': [HI, SO], 'rejected': [HI, NO]},
   "field 'chosen': expected messages that start with 'prompt'"),
  ('rankings', {'prompt': [WHY], 'chosen': [HI, SO], 'rejected': [HI, NO]},
   "field 'chosen': expected messages that start with 'prompt'"),
  ('rankings', {'prompt': 'p', 'completions': [[HI], 'b'], 'ranks': [1, 2]},
   "field 'completions[0]': expected one message of the assistant's"),
  ('rankings', {'prompt': 'p', 'completions': 'ab', 'ranks': [1, 2]}, "field 'completions'"),
])
def test_what_fits_no_layout_is_told_what_would(kind, row, message):
  with pytest.raises(Refused, match=re.escape(message)) as error:
    layouts.record(kind, row)
  assert not isinstance(error.value, LeftOut) and '\n' not in str(error.value)
