"""The miniature world: a small language with tasks, people and a gold labeler, on which all of RLHF
can be measured.

In: (split, size, seed). Out: records; and two judges. To the rest of the program it is these four
functions and judges,
named in configs as 'rlhf_jax.miniature:text' and so on; the sources below do that.
Left out: anything but the standard library (numpy in calibration), so that importing it costs
nothing.

  text             'train', 'heldout'
  prompts          'sft', 'reward', 'reward_heldout', 'ppo', 'validation', 'heldout', 'text',
  'foreign'
  demonstrations   the same splits
  gold, labelers   judges: (Prompt, responses, labeler) -> Judgement
"""

from rlhf_jax.configs import Source
from rlhf_jax.miniature.contractors import demonstrations
from rlhf_jax.miniature.corpus import text
from rlhf_jax.miniature.crowd import HELDOUT as HELDOUT_LABELERS
from rlhf_jax.miniature.crowd import TRAINING as TRAINING_LABELERS
from rlhf_jax.miniature.crowd import labelers
from rlhf_jax.miniature.usage import prompts
from rlhf_jax.miniature.utility import gold

__all__ = [
  'GOLD', 'HELDOUT_LABELERS', 'LABELERS', 'PROMPT_LENGTH', 'RESPONSE_LENGTH', 'TRAINING_LABELERS',
  'demonstrations', 'demonstrations_source', 'gold', 'labelers', 'prompts', 'prompts_source',
  'text', 'text_source',
]

GOLD, LABELERS = 'rlhf_jax.miniature:gold', 'rlhf_jax.miniature:labelers'  # as configs name judges
PROMPT_LENGTH, RESPONSE_LENGTH = 32, 24  # tokens that hold nearly every prompt and response


def text_source(split: str = 'train', size: int = 0, seed: int = 0) -> Source:
  """Documents to pretrain on."""
  return Source('text', make='rlhf_jax.miniature:text', split=split, size=size, seed=seed)


def prompts_source(split: str, size: int = 0, seed: int = 0) -> Source:
  """Prompts of a split."""
  return Source('prompts', make='rlhf_jax.miniature:prompts', split=split, size=size, seed=seed)


def demonstrations_source(split: str = 'sft', size: int = 0, seed: int = 0) -> Source:
  """Prompts of a split with one demonstration each."""
  return Source(
    'demonstrations', make='rlhf_jax.miniature:demonstrations', split=split, size=size, seed=seed
  )
