"""How well a response does its task: one function per kind of task.

In: a task and a `Reading`. Out: a `Grade`: how far the task is done, how much of worth is said,
what is beside the point.
Left out: what is judged alike everywhere (utility.py): constraints, grammar, repetition, register,
endings.
"""

from collections.abc import Callable

from rlhf_jax.miniature import rubric_open, rubric_questions, rubric_texts
from rlhf_jax.miniature.grading import Grade
from rlhf_jax.miniature.grammar import Reading
from rlhf_jax.miniature.tasks import Task

RUBRICS: dict[str, Callable[[Task, Reading], Grade]] = {
  **rubric_open.RUBRICS, **rubric_questions.RUBRICS, **rubric_texts.RUBRICS,
}


def grade(task: Task, reading: Reading) -> Grade:
  """Applies the rubric of the task."""
  return RUBRICS[task['task']](task, reading)
