"""Rubrics of tasks on a given text or item: rewriting, summaries, classes, closed questions, lists.

In: a task and a `Reading`. Out: a `Grade`.
Left out: what is judged alike everywhere (utility.py).
"""

from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature.grading import SHORT_NEED, Grade, alien_words, declines, overlap, stray
from rlhf_jax.miniature.grammar import Reading
from rlhf_jax.miniature.tasks import Task


def rewritten(task: Task) -> str:
  """The text as it should read after rewriting, without its full stop."""
  if task['task'] == 'polite':
    return f'please {task["text"]}'
  if task['task'] == 'address':
    return f'{task["to"]} , {task["text"]}'
  return ' '.join(lang.PAST[w] if w == task['verb'] else w for w in task['text'].split())


def _rewrite(task: Task, reading: Reading) -> Grade:
  """The text, changed as asked and not otherwise."""
  first = reading.sentences[0].words if reading.sentences else reading.rest
  target = rewritten(task).split()
  changed = {
    'polite': lambda: 'please' in first,
    'past': lambda: lang.PAST[task['verb']] in first,
    'address': lambda: task['to'] in first[:2],
  }[task['task']]()
  kept = overlap(first, target) - 0.1 * max(0, len(first) - len(target))
  done = max(0.0, kept) ** 2 * (1.0 if changed else 0.25)
  thanks = task['task'] == 'polite' and reading.words[-2:] == ('thanks', '.')
  return Grade(
    done, float(changed and kept > 0.99), max(0.0, stray(reading, 1 + thanks)), need=SHORT_NEED
  )


def _summary(task: Task, reading: Reading) -> Grade:
  """One sentence that holds both events of the passage and nothing that is not in it."""
  said = set(reading.words)
  parts = [task['first'].split(), task['second'].split()]
  verbs, objects = [parts[0][0], parts[1][0]], [parts[0][-1], parts[1][-1]]
  hits = [
    0.5 * (verb in said) + 0.5 * (obj in said) for verb, obj in zip(verbs, objects, strict=True)
  ]
  new = len(alien_words(task, reading))
  about = task['topic'] in said
  length = len(reading.words)
  done = (0.3 * about + 0.35 * sum(hits)) * (0.5 if new else 1.0)
  return Grade(
    done,
    0.0 if length > 15 or not about or new else (hits[0] * hits[1]),
    stray(reading, 1) * 0.6 + 0.5 * new,
    made_up=bool(new),
    refuses=declines(reading),
    need=12,
  )


def _mood(task: Task, reading: Reading) -> Grade:
  said = [w for w in reading.words if w in ('happy', 'sad')]
  right = (
    bool(said) and set(said) == {task['label']} and not any(s.denies for s in reading.sentences)
  )
  new = alien_words(task, reading)
  reason = any(
    'because' in s.words and s.formed and overlap(s.words, task['event'].split()) > 0.9
    for s in reading.sentences
  )
  whole = any(s.formed and task['topic'] in s.mentions for s in reading.sentences)
  return Grade(
    float(right) * (0.5 if new else 1.0), right * (0.5 * reason + 0.3 * whole) + 0.0,
    stray(reading, 1) * 0.6, made_up=bool(new), refuses=declines(reading),
  )


def _kind(task: Task, reading: Reading) -> Grade:
  labels = ('animal', 'food', 'place', 'thing')
  said = {w for w in reading.words if w in labels}
  right = said == {task['label']} and not any(s.denies for s in reading.sentences)
  whole = any(s.formed and task['topic'] in s.mentions for s in reading.sentences)
  return Grade(
    float(right), float(right) * (0.4 + 0.6 * whole), stray(reading, 1) * 0.6,
    refuses=declines(reading),
  )


def _closed(task: Task, reading: Reading) -> Grade:
  """The answer that the text holds; that the text does not say, where it does not."""
  refuses = declines(reading)
  if not task['answer']:
    names = alien_words(task, reading) - set(task['asked'].split())
    return Grade(
      float(refuses and not names),
      float(refuses and not names) * (0.6 + 0.4 * ('text' in reading.words)),
      stray(reading, 1) * 0.6,
      made_up=bool(names) or (not refuses and bool(reading.mentions)),
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
  alien = alien_words(task, reading) - set(task['asked'].split())
  wrong = reading.mentions - set(target)
  done = float(right and not wrong) * (0.0 if refuses else 1.0)
  return Grade(
    done,
    done * overlap(reading.words, target),
    stray(reading, 1) * 0.6 + 0.4 * bool(wrong),
    made_up=bool(alien) or bool(wrong and not right),
    refuses=refuses,
  )


def _extract(task: Task, reading: Reading) -> Grade:
  """All items of the kind that stand in the text, once, and nothing else."""
  found = [w for w in reading.words if w in task['items']]
  alien = alien_words(task, reading)
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
    stray(reading, 1) * 0.6 + 0.3 * len(other),
    made_up=bool(alien),
    refuses=declines(reading),
  )


def _echo(task: Task, reading: Reading) -> Grade:
  said = [w for w in reading.words if w not in ',.']
  hits = said.count(task['word'])
  miss = abs(hits - task['count']) + (len(said) - hits)
  done = max(0.0, 1 - 0.4 * miss) if hits else 0.0
  return Grade(done, done, stray(reading, 1) * 0.6)


def _count(task: Task, reading: Reading) -> Grade:
  said = {w for w in reading.words if w in lang.NUMBERS}
  right = said == {lang.NUMBERS[len(task['items']) - 1]}
  whole = task['kind'] in reading.words
  return Grade(
    float(right),
    float(right) * (0.5 + 0.5 * whole) + 0.2 * (whole and not right),
    stray(reading, 1) * 0.6,
  )


RUBRICS = {
  'polite': _rewrite, 'address': _rewrite, 'past': _rewrite, 'summary': _summary, 'mood': _mood,
  'kind': _kind, 'closed': _closed, 'extract': _extract, 'echo': _echo, 'count': _count,
}
