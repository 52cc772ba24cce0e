"""Who asks what: tasks put into words, dealt to splits by their content and to customers.

In: (split, size, seed). Out: `Prompt` records with the task as meta.
Left out: what can be asked (tasks.py). A task's content decides its split, whatever the seed, so no
content of one split occurs in another; phrasings of one content stay together. Prompts that share a
long prefix with an earlier one are dropped.
"""

from collections.abc import Iterator

from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import Prompt
from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature import tasks
from rlhf_jax.miniature.language import Dice
from rlhf_jax.miniature.tasks import Task

# Share of all contents a split owns. 'text': contents that only the pretraining worksheets use.
SPLITS = {
  'sft': 0.24, 'reward': 0.21, 'reward_heldout': 0.10, 'ppo': 0.26, 'validation': 0.04,
  'heldout': 0.12, 'text': 0.03,
}
SIZES = {
  'sft': 3000, 'reward': 2500, 'reward_heldout': 800, 'ppo': 4000, 'validation': 300,
  'heldout': 1200, 'text': 300, 'foreign': 200,
}  # records when none are asked for
# contents that pretraining text may hold with an instruction and its answer
SEEN = ('sft', 'reward', 'ppo', 'text')

CAP = 200  # prompts a customer at most (paper §3.2)
CUSTOMERS = 50  # a split, or one for 50 prompts where that is more
# words: two prompts that start with the same ones count as one (paper: "a long common prefix",
# length not stated)
PREFIX = 16
REPLY = '\nreply :'  # ends every prompt


def split_of(task: Task) -> str:
  """The split that owns a content."""
  left = lang.unit('split', tasks.key(task))
  for split, share in SPLITS.items():
    left -= share
    if left < 0:
      return split
  return 'text'


def _about(task: Task) -> str:
  """What a story, description or song is to be about."""
  text = task['topic']
  text += f' and {task["with"]}' if 'with' in task else ''
  text += f' and {task["thing"]}' if 'thing' in task else ''
  text += f' {lang.at(task["place"])}' if 'place' in task else ''
  return text


def _generation(task: Task, dice: Dice) -> str:
  about = _about(task)
  if task['task'] == 'describe':
    to = task.get('to', 'me')
    forms = (f'tell {to} about {about} .', f'what can you tell {to} about {about} ?')
    return dice.pick(forms if 'to' in task else (*forms, f'what do you know about {about} ?'))
  what = task['task']
  if 'to' in task:
    what += f' to {task["to"]}' if task['task'] == 'note' else f' for {task["to"]}'
  return dice.pick(
    (
      f'write {what} about {about} .', f'i want {what} about {about} .',
      f'can you write {what} about {about} ?',
    )
  )


def _open_qa(task: Task, dice: Dice) -> str:
  topic, relation = task['topic'], task['relation']
  asked = lang.question(topic, relation)
  if task['task'] == 'fact':
    if 'asker' in task:
      return dice.pick(
        (f'{task["asker"]} asks : {asked} ?', f'{task["asker"]} wants to know : {asked} ?')
      )
    return dice.pick((f'{asked} ?', f'please tell me : {asked} ?', f'do you know : {asked} ?'))
  if task['task'] == 'both':
    return dice.pick((f'{asked} , and {task["with"]} ?', f'{asked} ? and {task["with"]} ?'))
  if task['task'] == 'which':
    saying = lang.statement(topic, relation, task['value']).removeprefix(topic)
    if relation == 'flag':
      return f'which flag is {task["value"]} , {topic} or {task["with"]} ?'
    pair = dice.some((topic, task['with']), 2)
    return f'who{saying} , {pair[0]} or {pair[1]} ?'
  asked = lang.inverted(topic, relation, task['value'])
  return dice.pick(
    (f'why {asked} ?', f'tell me , why {asked} ?')
    if task['task'] == 'why'
    else (f'{asked} ?', f'i want to know : {asked} ?')
  )


def _brainstorming(task: Task, dice: Dice) -> str:
  count = lang.NUMBERS[task['count'] - 1]
  if task['task'] == 'ideas':
    who = task['topic'] + (f' and {task["with"]}' if 'with' in task else '')
    return dice.pick(
      (
        f'what can {who} do {lang.at(task["place"])} ? {count} please .',
        f'name {count} things to do {lang.at(task["place"])} for {who} .',
      )
    )
  to = f' for {task["to"]}' if 'to' in task else ''
  without = f' , not {task["without"]}' if 'without' in task else ''
  return dice.pick(
    (
      f'name {count} {task["kind"]}{to}{without} .',
      f'give me {count} {task["kind"]}{to}{without} .',
      f'i want {count} {task["kind"]}{to}{without} .',
    )
  )


def _chat(task: Task, dice: Dice) -> str:
  event = {'lost': 'i lost', 'found': 'i found', 'want': 'i want', 'like': 'i like'}[task['event']]
  hello = dice.pick((f'hi , i am {task["to"]}', f'hello , i am {task["to"]}'))
  where = f' {lang.at(task["place"])}' if 'place' in task else ''
  return f'{hello} . {event} {task["topic"]}{where} .'


def _rewrite(task: Task, dice: Dice) -> str:
  how = dice.pick(
    {
      'polite': ('say it kindly', 'make it polite'), 'past': ('say it in past', 'put it in past'),
      'address': ('say it to {}', 'tell it to {}'),
    }[task['task']]
  ).format(task.get('to', ''))
  return f'{how} : {task["text"]} .'


def _passage(task: Task, dice: Dice) -> str:
  """Tasks that bring a text; the text stands first or last."""
  if task['task'] == 'summary':
    asked = dice.pick(('make it short .', 'what is text about ?'))
  elif task['task'] == 'mood':
    asked = dice.pick((f'is {task["topic"]} happy or sad ?', f'is {task["topic"]} sad or happy ?'))
  elif task['task'] == 'closed':
    asked = f'{task["asked"]} ?'
  else:
    asked = (
      dice.pick((f'name {task["kind"]} in text .', f'which {task["kind"]} are in text ?'))
      if task['kind'] != 'names'
      else 'who is in text ?'
    )
  return f'text : {task["text"]}\nask : {asked}'


def _plain(task: Task, dice: Dice) -> str:
  if task['task'] == 'kind':
    kinds = dice.some(task['kinds'], 2)
    return f'is {task["topic"]} {kinds[0]} or {kinds[1]} ?'
  if task['task'] == 'echo':
    count = lang.NUMBERS[task['count'] - 1]
    return dice.pick(
      (f'say {task["word"]} {count} times .', f'{count} times {task["word"]} please .')
    )
  return f'how many {task["kind"]} : {" , ".join(task["items"])} ?'


def _foreign(task: Task, dice: Dice) -> str:
  topic = task['topic'] + (f' and {task["with"]}' if 'with' in task else '')
  if 'value' in task:
    return lang.foreign_statement(topic, task['relation'], task['value']) + ' ?'
  asked = f'what eats {topic}' if task['relation'] == 'eat' else f'where lives {topic}'
  return lang.foreign(asked) + ' ?'


_CONSTRAINT_WORDS = {
  'sentences': 'in {} .', 'first': 'start with {} .', 'last': 'end with {} .',
  'avoid': 'do not say {} .', 'listed': 'as list .',
}


def phrase(task: Task, dice: Dice) -> str:
  """A prompt that asks for a task, in one of its phrasings."""
  if task['task'] == 'foreign':
    return f'{lang.FOREIGN["ask"]} : {_foreign(task, dice)}{REPLY}'
  category = category_of(task)
  if category in ('generation', 'open_qa', 'brainstorming', 'chat', 'rewrite'):
    text = {
      'generation': _generation, 'open_qa': _open_qa, 'brainstorming': _brainstorming,
      'chat': _chat, 'rewrite': _rewrite,
    }[category](task, dice)
  elif task['task'] in tasks.CLOSED:
    return _passage(task, dice) + REPLY
  else:
    text = _plain(task, dice)
  if 'register' in task:
    text += f' be {task["register"]} .' if dice.chance(0.5) else f' please be {task["register"]} .'
  for kind, value in task['constraints']:
    value = ('one sentence' if value == 1 else 'two sentences') if kind == 'sentences' else value
    text += ' ' + _CONSTRAINT_WORDS[kind].format(value)
  return f'{"talk" if category == "chat" else "ask"} : {text}{REPLY}'


def category_of(task: Task) -> str:
  return next(
    (name for name, (_, inner) in tasks.CATEGORIES.items() if task['task'] in inner), 'open_qa'
  )


def _foreign_task(dice: Dice) -> Task:
  subject, relation = dice.pick(lang.FOREIGN_FACTS)
  task: Task = {'task': 'foreign', 'topic': subject, 'relation': relation, 'constraints': []}
  if dice.chance(0.7):
    other = dice.pick([x for x in lang.FOREIGN_ANIMALS if x != subject])
    task['topic'], task['with'] = sorted((subject, other))
  elif dice.chance(0.6):
    task['value'] = dice.pick([x for x in lang.VALUES[relation] if x in lang.FOREIGN])
  return task


def _customer(split: str, category: str, used: dict[str, int], count: int, dice: Dice) -> str:
  """A customer of the split with room left: few ask much, most little, and each prefers some use
  cases.
  """
  while True:
    name = f'{split}-{int(count * dice.random() ** 2):03d}'
    if used.get(name, 0) < CAP and (lang.unit('taste', name, category) < 0.5 or dice.chance(0.2)):
      used[name] = used.get(name, 0) + 1
      return name


def prompts(split: str, size: int, seed: int) -> Iterator[Prompt]:
  """`size` different prompts of a split (0: its usual size), in the proportions of the paper's
  Table 1.

  Raises: BadInput if there is no such split, or if it holds fewer prompts.
  """
  if split not in SIZES:
    raise BadInput(f'the miniature has no prompt split {split!r}; it has {", ".join(SIZES)}')
  dice = Dice('prompts', split, seed)
  shares = {name: share for name, (share, _) in tasks.CATEGORIES.items()}
  total = sum(shares.values())
  owed = dict.fromkeys(shares, 0.0)
  used: dict[str, int] = {}
  texts: set[str] = set()
  size = size or SIZES[split]
  customers = max(CUSTOMERS, size // 50)
  for _ in range(size):
    for name, share in shares.items():
      owed[name] += share / total
    category = 'open_qa' if split == 'foreign' else max(owed, key=owed.__getitem__)
    owed[category] -= 1
    for _ in range(20000):
      task = _foreign_task(dice) if split == 'foreign' else tasks.draw(category, dice)
      if split == 'foreign' or split_of(task) == split:
        text = phrase(task, dice)
        prefix = ' '.join(text.split(' ')[:PREFIX])
        if text not in texts and prefix not in texts:
          break
    else:
      raise BadInput(
        f'the miniature holds no {size} different prompts of split {split!r}: '
        f'category {category!r} is used up'
      )
    texts |= {text, prefix}
    yield Prompt(text, category, _customer(split, category, used, customers, dice), task)
