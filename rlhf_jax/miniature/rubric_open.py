"""Rubrics of open tasks: stories, notes, songs, descriptions, lists, ideas, chat.

In: a task and a `Reading`. Out: a `Grade`.
Left out: what is judged alike everywhere (utility.py).
"""

from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature import tasks
from rlhf_jax.miniature.grading import OPEN_NEED, SHORT_NEED, Grade, asked_for, judged, stray
from rlhf_jax.miniature.grammar import Reading
from rlhf_jax.miniature.tasks import Task

_PAST = frozenset(
  (
    'was', 'were', 'had', 'made', 'gave', 'ate', 'saw', 'met', 'found', 'took', 'lost', 'liked',
    'wanted', 'ran', 'went', 'came', 'slept', 'sang', 'danced', 'played', 'cried', 'laughed',
    'lived', 'hid',
  )
)
_DEEDS = (
  _PAST - {'was', 'were', 'had', 'liked', 'wanted'}
  | frozenset(lang.SKILLS)
  | {'come', 'see', 'take', 'bring', 'find', 'help', 'play', 'give', 'eat', 'meet'}
)


def _worths(reading: Reading, wanted: set[str], deed: frozenset[str]) -> tuple[list[float], float]:
  """Worth of each sentence (1: something happens to what was asked for, ½: it is only named) and
  how many stray.
  """
  worths, beside, before, seen = [], 0.0, False, set()
  for sentence in reading.sentences:
    words = set(sentence.words)
    named = bool(wanted & sentence.mentions)
    follows = before and bool(words & {'it', 'they', 'me', 'you', 'we'})
    full = bool(words & deed) and bool(len(sentence.mentions) > 1 or words & _DEEDS)
    if not sentence.formed or sentence.words in seen:
      worths.append(0.0)
    elif named or follows:
      worths.append(1.0 if full else 0.5 if named else 0.25)
    else:
      worths.append(0.0)
      beside += bool(sentence.mentions) or 0.3
    before = named or (before and not sentence.mentions)
    seen.add(sentence.words)
  return worths, beside


def _creation(task: Task, reading: Reading) -> Grade:
  """Stories, notes and songs: all that was asked for occurs, the form is kept, two or three full
  sentences.
  """
  kind, wanted = task['task'], asked_for(task)
  words = reading.words
  worths, beside = _worths(
    reading, wanted, _PAST if kind == 'story' else _DEEDS | {'is', 'are', 'can', 'will'}
  )
  if kind == 'story':
    form = sum(bool(_PAST & set(s.words)) for s in reading.sentences) / max(
      1, len(reading.sentences)
    )
  elif kind == 'note':
    form = float('dear' in words[:3] and task['to'] in words[:4])
  else:
    form = 0.5 * ('oh' in words[:3]) + 0.5 * (words.count(task['topic']) > 1)
  shown = (
    set().union(*(s.mentions for s, worth in zip(reading.sentences, worths, strict=True) if worth))
    if worths
    else set()
  )
  goal = min(
    [value for name, value in task['constraints'] if name == 'sentences']
    + [3 if kind == 'story' else 2]
  )
  return Grade(
    0.65 * len(shown & wanted) / len(wanted) + 0.35 * form * bool(shown & wanted),
    min(1.0, sum(worths) / goal),
    beside,
    need=OPEN_NEED,
  )


def _describe(task: Task, reading: Reading) -> Grade:
  """Three different true facts about what was asked for; bland sentences are worth nothing, false
  ones cost.
  """
  subjects = {task['topic']} | ({task['with']} if 'with' in task else set())
  true, false, others = judged(task, reading, subjects)
  told = {(s, r) for s, r, _, affirmed in true if affirmed}
  goal = min([2 * value for name, value in task['constraints'] if name == 'sentences'] + [3])
  asked = {task['to']} if 'to' in task else set()
  covered = (len({s for s, _ in told}) / len(subjects)) * 0.85 + 0.15 * (asked <= reading.mentions)
  bland = sum(not s.claims and not s.mentions & subjects for s in reading.sentences)
  return Grade(
    covered if told else 0.0,
    min(1.0, (len(told) + 0.2 * (len(true) - len(told))) / goal),
    others + 0.4 * bland,
    false,
    need=OPEN_NEED,
  )


def _list(task: Task, reading: Reading) -> Grade:
  """So many different things of the kind, none that was ruled out, nothing else."""
  pool = tasks.KINDS[task['kind']]
  items = [w for w in reading.words if w in pool]
  alien = sum(w not in pool and w != task.get('to') for s in reading.sentences for w in s.mentions)
  ruled_out = task.get('without') in items
  fit = len(set(items) - {task.get('without')})
  miss = abs(task['count'] - fit) + (len(items) - len(set(items))) + alien + ruled_out
  done = max(0.0, 1 - 0.4 * miss) if fit else 0.0
  return Grade(
    done,
    (min(fit, task['count']) / task['count']) * (1 - 0.5 * ruled_out),
    stray(reading, 1) * 0.7 + 0.3 * alien,
    need=SHORT_NEED,
  )


def _ideas(task: Task, reading: Reading) -> Grade:
  """So many different things that the person can do at the place."""
  listed = [s for s in reading.sentences if s.formed and not s.asks]
  deeds = {w for s in listed for w in s.words if w in lang.SKILLS or w in ('eat', 'sleep')}
  deeds |= {
    (a, b)
    for s in listed
    for a, b in zip(s.words, s.words[1:], strict=False)
    if a == 'with' and b in lang.THINGS + lang.ANIMALS
  }
  wanted = asked_for(task)
  named = len(wanted & reading.mentions) / len(wanted)
  hit = max(0.0, 1 - 0.4 * abs(task['count'] - len(deeds))) if deeds else 0.0
  strays = reading.mentions & set(lang.NAMES + lang.PLACES + lang.LANDS) - wanted
  empty = sum(
    not (s.mentions & (set(lang.SKILLS + lang.THINGS + lang.ANIMALS) | {task['topic']}))
    for s in reading.sentences
  )
  return Grade(
    hit * (0.4 + 0.6 * named),
    min(1.0, len(deeds) / task['count']) * (0.3 + 0.7 * named),
    0.5 * len(strays) + 0.6 * empty,
    need=OPEN_NEED,
  )


_MOODS = {
  'lost': {'sorry', 'sad'}, 'found': {'good', 'nice', 'happy'},
  'like': {'good', 'nice', 'happy', 'like'}, 'want': {'help', 'find', 'give', 'have'},
}


def _chat(task: Task, reading: Reading) -> Grade:
  """Greets by name, takes up what was said in the fitting mood, and asks on."""
  greets = bool({'hi', 'hello', 'dear'} & set(reading.words[:3])) * 0.4 + 0.6 * (
    task['to'] in reading.words
  )
  taken = [s for s in reading.sentences if s.formed and task['topic'] in s.mentions]
  mood = any(_MOODS[task['event']] & set(s.words) for s in taken)
  asks = any(s.asks and s.formed for s in reading.sentences)
  strays = sum(
    bool(s.mentions - {task['to'], task['topic']}) and not s.mentions & {task['topic']}
    for s in reading.sentences
  )
  off = sum(not s.mentions and not s.asks and len(s.words) > 2 for s in reading.sentences)
  return Grade(
    0.35 * greets + 0.65 * bool(taken), 0.5 * mood + 0.5 * asks, strays + 0.3 * off, need=OPEN_NEED
  )


RUBRICS = {
  'story': _creation, 'note': _creation, 'song': _creation, 'describe': _describe, 'list': _list,
  'ideas': _ideas, 'chat': _chat,
}
