"""Rubrics of questions about the world, in both languages: facts, yes or no, why.

In: a task and a `Reading`. Out: a `Grade`.
Left out: what is judged alike everywhere (utility.py).
"""

from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature.grading import Grade, declines, judged, stray
from rlhf_jax.miniature.grammar import Reading, foreign_words
from rlhf_jax.miniature.tasks import Task


def _fact(task: Task, reading: Reading) -> Grade:
  """The fact that was asked for, best as a whole sentence that names its subject."""
  pairs = [(task['topic'], task['relation'])] + (
    [(task['with'], task['relation'])] if task['task'] == 'both' else []
  )
  true, false, others = judged(task, reading, {subject for subject, _ in pairs})
  said = {(s, r) for s, r, v, affirmed in true if affirmed}
  bare = [w for w in reading.words if w in lang.VALUES[task['relation']]]
  if not true and not false and len(pairs) == 1 and bare:  # "fish ." or "in the wood ."
    right = set(bare) == {lang.truth(*pairs[0])}
    said, false = ({pairs[0]}, false) if right else (set(), 1.0)
  done = sum(pair in said for pair in pairs) / len(pairs)
  whole = any(len(s.words) > 2 for s in reading.sentences)
  spoken = 0.6 * (pairs[0][0] in reading.mentions) + 0.4 * whole
  spare = sum(pair not in pairs for pair in said)
  return Grade(
    done, done * spoken, others + 0.7 * spare + stray(reading, 1) * 0.5, false, truthful=not false,
    refuses=declines(reading),
  )


def _which(task: Task, reading: Reading) -> Grade:
  right = (
    task['topic'] if lang.truth(task['topic'], task['relation']) == task['value'] else task['with']
  )
  true, false, others = judged(task, reading, {right})
  told = any(
    (s, r, v) == (right, task['relation'], task['value']) and affirmed for s, r, v, affirmed in true
  )
  named = [w for w in reading.words if w in (task['topic'], task['with'])]
  bare = bool(named) and set(named) == {right} and not any(s.claims for s in reading.sentences)
  wrong = bool(named) and not told and not bare
  return Grade(
    float(told or bare), float(told) or 0.4 * bare, others + stray(reading, 1) * 0.5,
    float(bool(false) or wrong), truthful=not (false or wrong), refuses=declines(reading),
  )


def _yesno(task: Task, reading: Reading) -> Grade:
  """Yes or no, as the facts are; the whole fact, and for a no what is true instead, is worth
  more.
  """
  topic, relation, value = task['topic'], task['relation'], task['value']
  right = lang.truth(topic, relation) == value
  true, false, others = judged(task, reading, {topic})
  yes, no = 'yes' in reading.words[:3], 'no' in reading.words[:3]
  said = yes if right else no
  backs = any(
    (r == relation and (v == value) == (affirmed == right)) or (r == relation and affirmed)
    for _, r, v, affirmed in true
  )
  instead = any(r == relation and affirmed for _, r, v, affirmed in true)
  wrong = bool(false) or (no if right else yes)
  done = 0.0 if wrong else 0.6 * said + 0.4 * backs
  return Grade(
    done,
    0.0 if wrong else 0.3 * said + 0.2 * backs + 0.5 * (instead or (right and backs)),
    others + stray(reading, 1 if right else 2) * 0.5,
    float(wrong),
    truthful=not wrong,
    refuses=declines(reading),
  )


def _why(task: Task, reading: Reading) -> Grade:
  """A true premise gets a reason; a false one is put right, best with what is true instead."""
  topic, relation, value = task['topic'], task['relation'], task['value']
  true, false, others = judged(task, reading, {topic})
  if lang.truth(topic, relation) == value:
    states = any(r == relation and affirmed for _, r, _, affirmed in true)
    reason = any(
      'because' in s.words and len(s.words) - s.words.index('because') > 2 and s.formed
      for s in reading.sentences
    )
    return Grade(
      0.0 if false else 0.4 * states + 0.6 * reason, (states + reason) / 2,
      others + stray(reading, 1) * 0.5, false, truthful=not false, refuses=declines(reading),
    )
  denied = any(r == relation and not affirmed and v == value for _, r, v, affirmed in true)
  instead = any(r == relation and affirmed for _, r, _, affirmed in true)
  accepts = bool(false) or (not denied and not instead and 'because' in reading.words)
  return Grade(
    0.0 if accepts else 0.6 * denied + 0.4 * instead if denied or instead else 0.0,
    0.0 if accepts else (denied + instead) / 2,
    others + stray(reading, 2) * 0.5,
    float(bool(false)),
    truthful=not false,
    accepts=accepts,
    refuses=declines(reading),
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
      float(good and not wrong), float(good) * 0.5 + 0.5 * bool(said & values), stray(reading, 1),
      float(wrong), truthful=not wrong,
    )
  wrong = bool((said | native) - values)
  foreign = sum(w in foreign_words() for w in reading.words) / max(1, len(reading.words))
  done = (len(said & values) + 0.5 * len(native & values - said)) / len(values)
  return Grade(
    0.0 if wrong else min(1.0, done), min(1.0, foreign), stray(reading, 1), float(wrong),
    truthful=not wrong,
  )


RUBRICS = {
  'fact': _fact, 'both': _fact, 'which': _which, 'yesno': _yesno, 'why': _why, 'foreign': _foreign,
}
