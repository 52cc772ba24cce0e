"""Shows the world: `python -m rlhf_jax.miniature [NUMBER]` prints documents, prompts and answers.

In: how many of each. Out: text on stdout, each answer with its utility to the gold labeler.
Left out: everything else; nothing imports this file.
"""

import argparse

from rlhf_jax import miniature
from rlhf_jax.miniature.answers import answer
from rlhf_jax.miniature.habits import CAREFUL
from rlhf_jax.miniature.language import Dice


def main(number: int) -> None:
  """Prints `number` documents, then as many prompts with a demonstration and a careful answer."""
  for document in miniature.text('train', number, 0):
    print(f'{document.text}\n')
  dice = Dice('shown')
  pairs = zip(
    miniature.demonstrations('sft', number, 0), miniature.prompts('sft', number, 0), strict=True
  )
  for demonstration, prompt in pairs:
    careful = answer(dict(prompt.meta), dice, CAREFUL)
    scores = miniature.gold(prompt, [demonstration.response, careful]).scores
    print(f'[{prompt.category}] {prompt.prompt}')
    print(f'  {scores[0]:5.2f} {demonstration.meta["writer"]}: {demonstration.response}')
    print(f'  {scores[1]:5.2f} a careful person: {careful}\n')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(prog='python -m rlhf_jax.miniature',
                                   description='Shows documents, prompts and answers of the world.')
  parser.add_argument('number', nargs='?', type=int, default=12, help='how many of each')
  main(parser.parse_args().number)
