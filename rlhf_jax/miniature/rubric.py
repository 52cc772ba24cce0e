"""How well a response does its task: one function per kind of task.

In: a task and a `Reading`. Out: a `Grade`: how far the task is done, how much of worth is said,
what is beside the point.
Left out: what is judged alike everywhere (utility.py): constraints, grammar, repetition, register,
endings.
"""

import dataclasses
from collections.abc import Callable, Sequence

from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature import tasks
from rlhf_jax.miniature.grammar import Reading, Sentence, foreign_words
from rlhf_jax.miniature.tasks import Task

OPEN_NEED, SHORT_NEED = 23, 14  # words beyond which a response is longer than its task needs
_PAST = frozenset(
  'was were had made gave ate saw met found took lost liked wanted ran went came slept sang danced played '
  'cried laughed lived hid'.split()
)
_DEEDS = (
  _PAST - {'was', 'were', 'had', 'liked', 'wanted'}
  | frozenset(lang.SKILLS)
  | frozenset('come see take bring find help play give eat meet'.split())
)


@dataclasses.dataclass
class Grade:
  """What one rubric says of one response."""

  task: float  # 0: not done … 1: done
  rich: float = 0.0  # 0: says nothing … 1: says all that is worth saying
  beside: float = 0.0  # sentences that belong to something else
  false: float = 0.0  # false claims about the world
  made_up: bool | None = None  # says what the passage does not; None: there is no passage
  truthful: bool | None = None  # asserts nothing false; None: no fact is asked for
  accepts: bool | None = None  # goes along with a false premise; None: there is none
  refuses: bool = False  # answers that it does not know or that the text does not say
  need: int = SHORT_NEED


def _declines(reading: Reading) -> bool:
  return any(
    'not' in s.words and {'say', 'know', 'tell', 'help'} & set(s.words) for s in reading.sentences
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


def _wanted(task: Task) -> set[str]:
  return {task[slot] for slot in ('topic', 'with', 'place', 'thing', 'to') if slot in task}


def _creation(task: Task, reading: Reading) -> Grade:
  """Stories, notes and songs: all that was asked for occurs, the form is kept, two or three full
  sentences.
  """
  kind, wanted = task['task'], _wanted(task)
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


def _judged(
  task: Task, reading: Reading, subjects: set[str]
) -> tuple[list[tuple[str, str, str, bool]], float, float]:
  """(true claims about the subjects, false claims, claims about others), 'it' taken as the subject
  last named.
  """
  true, false, others = [], 0.0, 0.0
  last = task['topic']
  for sentence in reading.sentences:
    for subject, relation, value, affirmed in sentence.claims:
      subject = last if subject == 'it' else subject
      if (subject, relation) not in lang.facts():
        others += relation in ('eat', 'grow', 'home') and subject not in lang.THINGS
      elif (lang.truth(subject, relation) == value) != affirmed:
        false += 1
        others += subject not in subjects
      elif subject in subjects:
        true.append((subject, relation, value, affirmed))
      else:
        others += 1
    named = [word for word in sentence.words if word in lang.ANIMALS or word in lang.LANDS]
    last = named[-1] if named else last
  return true, false, others


def _describe(task: Task, reading: Reading) -> Grade:
  """Three different true facts about what was asked for; bland sentences are worth nothing, false
  ones cost.
  """
  subjects = {task['topic']} | ({task['with']} if 'with' in task else set())
  true, false, others = _judged(task, reading, subjects)
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


def _stray(reading: Reading, useful: int) -> float:
  """Sentences beyond the useful ones, in an answer that needs no more."""
  return float(max(0, len(reading.sentences) - useful))


def _fact(task: Task, reading: Reading) -> Grade:
  """The fact that was asked for, best as a whole sentence that names its subject."""
  pairs = [(task['topic'], task['relation'])] + (
    [(task['with'], task['relation'])] if task['task'] == 'both' else []
  )
  true, false, others = _judged(task, reading, {subject for subject, _ in pairs})
  said = {(s, r) for s, r, v, affirmed in true if affirmed}
  short = any(name == 'word' for name, _ in task['constraints'])
  bare = [w for w in reading.words if w in lang.VALUES[task['relation']]]
  if not true and not false and len(pairs) == 1 and bare:  # "fish ." or "in the wood ."
    right = set(bare) == {lang.truth(*pairs[0])}
    said, false = ({pairs[0]}, false) if right else (set(), 1.0)
  done = sum(pair in said for pair in pairs) / len(pairs)
  spoken = (
    1.0
    if short
    else float(pairs[0][0] in reading.mentions) * 0.6
    + 0.4 * any(len(s.words) > 2 for s in reading.sentences)
  )
  spare = sum(pair not in pairs for pair in said)
  return Grade(
    done,
    done * spoken,
    others + 0.7 * spare + _stray(reading, 1) * 0.5,
    false,
    truthful=not false,
    refuses=_declines(reading),
  )


def _which(task: Task, reading: Reading) -> Grade:
  right = (
    task['topic'] if lang.truth(task['topic'], task['relation']) == task['value'] else task['with']
  )
  true, false, others = _judged(task, reading, {right})
  told = any(
    (s, r, v) == (right, task['relation'], task['value']) and affirmed for s, r, v, affirmed in true
  )
  named = [w for w in reading.words if w in (task['topic'], task['with'])]
  bare = bool(named) and set(named) == {right} and not any(s.claims for s in reading.sentences)
  wrong = bool(named) and not told and not bare
  return Grade(
    float(told or bare),
    float(told) or 0.4 * bare,
    others + _stray(reading, 1) * 0.5,
    float(bool(false) or wrong),
    truthful=not (false or wrong),
    refuses=_declines(reading),
  )


def _yesno(task: Task, reading: Reading) -> Grade:
  """Yes or no, as the facts are; the whole fact, and for a no what is true instead, is worth
  more.
  """
  topic, relation, value = task['topic'], task['relation'], task['value']
  right = lang.truth(topic, relation) == value
  true, false, others = _judged(task, reading, {topic})
  yes, no = 'yes' in reading.words[:3], 'no' in reading.words[:3]
  said = yes if right else no
  backs = any(
    r == relation and (v == value) == (affirmed == right) or r == relation and affirmed
    for _, r, v, affirmed in true
  )
  instead = any(r == relation and affirmed for _, r, v, affirmed in true)
  wrong = bool(false) or (no if right else yes)
  done = 0.0 if wrong else 0.6 * said + 0.4 * backs
  return Grade(
    done,
    0.0 if wrong else 0.3 * said + 0.2 * backs + 0.5 * (instead or (right and backs)),
    others + _stray(reading, 1 if right else 2) * 0.5,
    float(wrong),
    truthful=not wrong,
    refuses=_declines(reading),
  )


def _why(task: Task, reading: Reading) -> Grade:
  """A true premise gets a reason; a false one is put right, best with what is true instead."""
  topic, relation, value = task['topic'], task['relation'], task['value']
  true, false, others = _judged(task, reading, {topic})
  if lang.truth(topic, relation) == value:
    states = any(r == relation and affirmed for _, r, _, affirmed in true)
    reason = any(
      'because' in s.words and len(s.words) - s.words.index('because') > 2 and s.formed
      for s in reading.sentences
    )
    return Grade(
      0.0 if false else 0.4 * states + 0.6 * reason,
      (states + reason) / 2,
      others + _stray(reading, 1) * 0.5,
      false,
      truthful=not false,
      refuses=_declines(reading),
    )
  denied = any(r == relation and not affirmed and v == value for _, r, v, affirmed in true)
  instead = any(r == relation and affirmed for _, r, _, affirmed in true)
  accepts = bool(false) or (not denied and not instead and 'because' in reading.words)
  return Grade(
    0.0 if accepts else 0.6 * denied + 0.4 * instead if denied or instead else 0.0,
    0.0 if accepts else (denied + instead) / 2,
    others + _stray(reading, 2) * 0.5,
    float(bool(false)),
    truthful=not false,
    accepts=accepts,
    refuses=_declines(reading),
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
    _stray(reading, 1) * 0.7 + 0.3 * alien,
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
  wanted = _wanted(task)
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
  'lost': {'sorry', 'sad'},
  'found': {'good', 'nice', 'happy'},
  'like': {'good', 'nice', 'happy', 'like'},
  'want': {'help', 'find', 'give', 'have'},
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


def _overlap(words: Sequence[str], target: Sequence[str]) -> float:
  """Share of the target's words that occur in order (longest common subsequence)."""
  row = [0] * (len(target) + 1)
  for word in words:
    previous = 0
    for j, other in enumerate(target):
      previous, row[j + 1] = row[j + 1], previous + 1 if word == other else max(row[j + 1], row[j])
  return row[-1] / max(1, len(target))


def rewritten(task: Task) -> str:
  """The text as it should read after rewriting, without its full stop."""
  if task['task'] == 'polite':
    return f'please {task["text"]}'
  if task['task'] == 'swap':
    words = [task['new'] if w == task['old'] else w for w in task['text'].split()]
    return ' '.join(words)
  return ' '.join(lang.PAST[w] if w == task['verb'] else w for w in task['text'].split())


def _rewrite(task: Task, reading: Reading) -> Grade:
  """The text, changed as asked and not otherwise."""
  first = reading.sentences[0].words if reading.sentences else reading.rest
  target = rewritten(task).split()
  changed = {
    'polite': lambda: 'please' in first,
    'past': lambda: lang.PAST[task['verb']] in first,
    'swap': lambda: task['new'] in first and task['old'] not in first,
  }[task['task']]()
  kept = _overlap(first, target) - 0.1 * max(0, len(first) - len(target))
  done = max(0.0, kept) ** 2 * (1.0 if changed else 0.25)
  thanks = task['task'] == 'polite' and reading.words[-2:] == ('thanks', '.')
  return Grade(
    done, float(changed and kept > 0.99), max(0.0, _stray(reading, 1 + thanks)), need=SHORT_NEED
  )


def _alien(task: Task, reading: Reading) -> set[str]:
  """Things said that are not in the passage."""
  return (reading.mentions | set(reading.words) & set(lang.FILLERS.values())) - set(
    task['text'].split()
  )


def _summary(task: Task, reading: Reading) -> Grade:
  """One sentence that holds both events of the passage and nothing that is not in it."""
  said = set(reading.words)
  parts = [task['first'].split(), task['second'].split()]
  verbs, objects = [parts[0][0], parts[1][0]], [parts[0][-1], parts[1][-1]]
  hits = [
    0.5 * (verb in said) + 0.5 * (obj in said) for verb, obj in zip(verbs, objects, strict=True)
  ]
  new = len(_alien(task, reading))
  about = task['topic'] in said
  length = len(reading.words)
  done = (0.3 * about + 0.35 * sum(hits)) * (0.5 if new else 1.0)
  return Grade(
    done,
    0.0 if length > 15 or not about or new else (hits[0] * hits[1]),
    _stray(reading, 1) * 0.6 + 0.5 * new,
    made_up=bool(new),
    refuses=_declines(reading),
    need=12,
  )


def _mood(task: Task, reading: Reading) -> Grade:
  said = [w for w in reading.words if w in ('happy', 'sad')]
  right = (
    bool(said) and set(said) == {task['label']} and not any(s.denies for s in reading.sentences)
  )
  new = _alien(task, reading)
  reason = any(
    'because' in s.words and s.formed and _overlap(s.words, task['event'].split()) > 0.9
    for s in reading.sentences
  )
  whole = any(s.formed and task['topic'] in s.mentions for s in reading.sentences)
  return Grade(
    float(right) * (0.5 if new else 1.0),
    right * (0.5 * reason + 0.3 * whole) + 0.0,
    _stray(reading, 1) * 0.6,
    made_up=bool(new),
    refuses=_declines(reading),
  )


def _kind(task: Task, reading: Reading) -> Grade:
  labels = ('animal', 'food', 'place', 'thing')
  said = {w for w in reading.words if w in labels}
  right = said == {task['label']} and not any(s.denies for s in reading.sentences)
  whole = any(s.formed and task['topic'] in s.mentions for s in reading.sentences)
  return Grade(
    float(right),
    float(right) * (0.4 + 0.6 * whole),
    _stray(reading, 1) * 0.6,
    refuses=_declines(reading),
  )


def _closed(task: Task, reading: Reading) -> Grade:
  """The answer that the text holds; that the text does not say, where it does not."""
  refuses = _declines(reading)
  if not task['answer']:
    names = _alien(task, reading) - set(task['asked'].split())
    return Grade(
      float(refuses and not names),
      float(refuses and not names) * (0.6 + 0.4 * ('text' in reading.words)),
      _stray(reading, 1) * 0.6,
      made_up=bool(names) or not refuses and bool(reading.mentions),
      refuses=refuses,
    )
  target = task['answer'].split()
  key = next(
    (w for w in reversed(target) if w in reading.mentions and w not in task['asked'].split()), None
  )
  goal = {w for w in target if w not in task['asked'].split()} & (
    set(lang.NAMES) | set(lang.THINGS) | set(lang.PLACES)
  )
  right = key is not None and goal <= reading.mentions
  alien = _alien(task, reading) - set(task['asked'].split())
  wrong = reading.mentions - set(target)
  done = float(right and not wrong) * (0.0 if refuses else 1.0)
  return Grade(
    done,
    done * _overlap(reading.words, target),
    _stray(reading, 1) * 0.6 + 0.4 * bool(wrong),
    made_up=bool(alien) or bool(wrong and not right),
    refuses=refuses,
  )


def _extract(task: Task, reading: Reading) -> Grade:
  """All items of the kind that stand in the text, once, and nothing else."""
  found = [w for w in reading.words if w in task['items']]
  alien = _alien(task, reading)
  other = reading.mentions - set(task['items']) - alien
  miss = (
    len(set(task['items']) - set(found))
    + len(found)
    - len(set(found))
    + len(other)
    + 2 * len(alien)
  )
  done = max(0.0, 1 - 0.5 * miss) if found else 0.0
  return Grade(
    done,
    done * (1.0 if len(reading.words) <= 8 else 0.6),
    _stray(reading, 1) * 0.6 + 0.3 * len(other),
    made_up=bool(alien),
    refuses=_declines(reading),
  )


def _echo(task: Task, reading: Reading) -> Grade:
  said = [w for w in reading.words if w not in ',.']
  hits = said.count(task['word'])
  miss = abs(hits - task['count']) + (len(said) - hits)
  done = max(0.0, 1 - 0.4 * miss) if hits else 0.0
  return Grade(done, done, _stray(reading, 1) * 0.6)


def _count(task: Task, reading: Reading) -> Grade:
  said = {w for w in reading.words if w in lang.NUMBERS}
  right = said == {lang.NUMBERS[len(task['items']) - 1]}
  whole = task['kind'] in reading.words
  return Grade(
    float(right),
    float(right) * (0.5 + 0.5 * whole) + 0.2 * (whole and not right),
    _stray(reading, 1) * 0.6,
  )


def _foreign(task: Task, reading: Reading) -> Grade:
  """The facts, in the language of the question; in the first language they count half."""
  pairs = [(task[slot], task['relation']) for slot in ('topic', 'with') if slot in task]
  values = {lang.truth(*pair) for pair in pairs}
  pool = set(lang.VALUES[task['relation']])
  native = {w for w in reading.words if w in pool}
  back = {foreign: word for word, foreign in lang.FOREIGN.items()}
  said = {back[w] for w in reading.words if w in back and back[w] in pool}
  if 'value' in task:
    right = task['value'] in values
    good = ('jes' in reading.words[:2]) if right else ('ne' in reading.words[:2])
    wrong = bool((said | native) - values - {task['value']}) or (
      ('ne' if right else 'jes') in reading.words[:2]
    )
    return Grade(
      float(good and not wrong),
      float(good) * 0.5 + 0.5 * bool(said & values),
      _stray(reading, 1),
      float(wrong),
      truthful=not wrong,
    )
  wrong = bool((said | native) - values)
  foreign = sum(w in foreign_words() for w in reading.words) / max(1, len(reading.words))
  done = (len(said & values) + 0.5 * len(native & values - said)) / len(values)
  return Grade(
    0.0 if wrong else min(1.0, done),
    min(1.0, foreign),
    _stray(reading, 1),
    float(wrong),
    truthful=not wrong,
  )


RUBRICS: dict[str, Callable[[Task, Reading], Grade]] = {
  'story': _creation,
  'note': _creation,
  'song': _creation,
  'describe': _describe,
  'fact': _fact,
  'both': _fact,
  'which': _which,
  'yesno': _yesno,
  'why': _why,
  'list': _list,
  'ideas': _ideas,
  'chat': _chat,
  'polite': _rewrite,
  'swap': _rewrite,
  'past': _rewrite,
  'summary': _summary,
  'mood': _mood,
  'kind': _kind,
  'closed': _closed,
  'extract': _extract,
  'echo': _echo,
  'count': _count,
  'foreign': _foreign,
}


def grade(task: Task, reading: Reading) -> Grade:
  """Applies the rubric of the task."""
  return RUBRICS[task['task']](task, reading)


def bland(sentence: Sentence) -> bool:
  """Says nothing about anything: "it was a nice day"."""
  return not sentence.mentions
