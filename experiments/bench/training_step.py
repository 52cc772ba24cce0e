"""One optimizer step of SFT or of the reward model: the product's own update, and others' on the
same rows.

Enter: a task, a size. Leave: seconds, tokens/s, FLOP/s against a large matmul of the same run.
Batch 16 x 128 tokens: SFT with a masked prompt of 64, or 8 prompts with 2 completions each. GPT-2's
shape (learned positions, tied tables), float32, Adam, gradient norm clipped at 1. The peer is
transformers on torch with the same shape and rows (torch_step.py, another interpreter if need be).
Left out: data pipelines, checkpoints, evaluation.
"""

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import work

sys.path.insert(0, str(work.ROOT))

import jax
import measure
import numpy as np

from rlhf_jax import configs
from rlhf_jax.model import transformer
from rlhf_jax.stages import language, reward
from rlhf_jax.stages.stage import Parent

ROWS, LENGTH, STEPS = 16, 128, 1000
PLAIN = {'GLIBC_TUNABLES': ''}  # as torch comes; the huge pages of this program are handed down
PEERS = {  # the best of them counts
  'peer': PLAIN, 'peer_passive': PLAIN | {'OMP_WAIT_POLICY': 'PASSIVE', 'GOMP_SPINCOUNT': '0'},
  'peer_huge': {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}}
OPTIMIZER = configs.Optimizer(learning_rate=1e-4, schedule='constant')


@dataclasses.dataclass
class Task:
  """A stage with its start and its batches, ready to be stepped."""
  stage: Any
  state: Any
  frozen: Any
  batches: list[dict]
  rows: int
  length: int

  @property
  def tokens(self) -> int:
    """Tokens of a step's rows; a prompt counts in every row that it stands in."""
    return self.rows * self.length


def tokens(vocabulary: int, rows: int, length: int, seed: int) -> np.ndarray:
  """Uniform random ids, int32 [rows, length]; torch_step.py draws the same."""
  return np.random.default_rng(seed).integers(0, vocabulary, (rows, length)).astype(np.int32)


def sft(model: configs.Model, rows: int = ROWS, length: int = LENGTH, microbatch: int = 0,
        count: int = 4) -> Task:
  """SFT on random demonstrations whose first half is the prompt."""
  prompt = length // 2
  config = configs.Language(
    data=(configs.Source(kind='demonstrations'),), model=model, batch=rows, microbatch=microbatch,
    prompt_length=prompt, response_length=length - prompt, steps=STEPS, optimizer=OPTIMIZER)
  stage = language.make(config, {}, None)
  batches = []
  for seed in range(count):
    valid = np.ones((rows, length), bool)
    mask = valid & (np.arange(length) >= prompt)
    batches.append({'tokens': tokens(model.vocabulary, rows, length, seed), 'valid': valid,
                    'mask': mask})
  state = jax.jit(stage.init)(jax.random.key(0), {})
  return Task(stage, state, {}, batches, rows, length)


def reward_model(model: configs.Model, rows: int = ROWS, length: int = LENGTH,
                 microbatch: int = 0, count: int = 4) -> Task:
  """The reward model on random pairs: `rows` completions of half as many prompts; microbatch is in
  prompts.
  """
  prompt, pairs = length // 2, rows // 2
  config = configs.Reward(
    init_from='sft', k_max=2, batch=pairs, microbatch=microbatch, prompt_length=prompt,
    response_length=length - prompt, optimizer=OPTIMIZER)
  start = jax.jit(functools.partial(transformer.init, model))(jax.random.key(1))
  shapes = jax.eval_shape(lambda x: x, start)
  stage = reward.make(config, {'init_from': Parent(model, None, shapes)}, None)
  batches = []
  for seed in range(count):
    shown = tokens(model.vocabulary, rows, length, seed).reshape(2, pairs, length)
    shown[1, :, :prompt] = shown[0, :, :prompt]
    shown = shown.swapaxes(0, 1)
    batches.append({'tokens': np.ascontiguousarray(shown), 'valid': np.ones(shown.shape, bool),
                    'ranks': np.tile(np.arange(2, dtype=np.int32), (pairs, 1)),
                    'present': np.ones((pairs, 2), bool)})
  state = jax.jit(stage.init)(jax.random.key(0), {'init_from': start})
  return Task(stage, state, {}, batches, rows, length)


TASKS = {'sft': sft, 'reward': reward_model}


def measured(name: str, size: str, count: int) -> dict[str, Any]:
  """What the RESULT line says of the product's own step."""
  model = configs.Model(**work.SIZES[size], positions='learned')
  rate = measure.matmul_rate(256 if size == 'toy' else 2048)
  task = TASKS[name](model)
  key = jax.random.key(0)
  found = measure.counted(task.stage.update, task.state, task.frozen, task.batches[0], key)
  weights = measure.parameters(task.state.model.params)
  done = measure.steps(task.stage, task.state, task.frozen, task.batches, count, warm=3)
  return {
    'impl': 'rlhf_jax', 'task': name, 'size': size, 'rows': task.rows, 'length': task.length,
    'parameters': weights} | rates(done, task.tokens, found.total - found.recomputed, rate) | {
    'loss_first': round(done.first['loss'], 4), 'loss_last': round(done.metrics['loss'], 4),
    **measure.here()}


def rates(done: measure.Steps, tokens: int, flops: float, rate: float) -> dict[str, Any]:
  """Seconds and rates of measured steps, as all RESULT lines name them."""
  seconds = done.seconds
  return {
    'steps_timed': len(done.walls), 'tokens_per_second': round(tokens / seconds, 1),
    'sec_per_step': round(seconds, 6), 'sec_min': round(min(done.walls), 6),
    'sec_max': round(max(done.walls), 6), 'cpu_s_per_step': round(float(np.median(done.cpus)), 6),
    'gflop_per_step': round(flops / 1e9, 6), 'gflop_per_s': round(flops / seconds / 1e9, 2),
    'matmul_gflop_per_s': round(rate / 1e9, 2), 'share_of_matmul': round(flops / seconds / rate, 4),
    'compile_seconds': round(done.compile_seconds, 2)}


# ----- the peer


def peer_command(python: str, name: str, size: str, count: int) -> list[str]:
  """The peer's step as a command; refuses where its Python has no torch."""
  try:
    known = subprocess.run([python, '-c', 'import torch, transformers'], capture_output=True)
  except OSError:
    work.refuse(f'--peer-python {python}: no such program')
  if known.returncode:
    work.refuse(f'{python} has no torch with transformers: `pip install torch transformers` in an '
                'environment of its own, and name its Python with --peer-python')
  wish = {'task': name, 'size': size, 'rows': ROWS, 'length': LENGTH, 'steps': count,
          'learning_rate': OPTIMIZER.learning_rate, 'clip': OPTIMIZER.clip,
          'betas': [OPTIMIZER.b1, OPTIMIZER.b2], 'epsilon': OPTIMIZER.epsilon,
          'matmul': 256 if size == 'toy' else 2048} | work.SIZES[size]
  return [python, str(work.HERE / 'torch_step.py'), json.dumps(wish)]


def side_by_side(name: str, size: str, count: int, number: int, python: str) -> dict[str, Any]:
  """`number` rounds of ours and of the peer's in turns; ratios are those of one round.

  The peer runs with OpenMP's own waiting, with a passive one, and with huge pages, and the best
  counts: torch slows down several times over where its waiting threads are in the way.
  """
  ours = [sys.executable, str(work.HERE / f'{name}_step.py'), '--size', size, '--steps',
          str(count)]
  peer = peer_command(python, name, size, count)
  found = work.rounds({'ours': (ours, {})} | {who: (peer, change) for who, change in PEERS.items()},
                      number)
  if found['ours'][0]['parameters'] - (name == 'reward') != found['peer'][0]['parameters']:
    raise work.Failed('the two models differ in size')  # our scalar head alone has a bias
  speeds = {who: [row['tokens_per_second'] for row in rows] for who, rows in found.items()}
  ratios = [own / max(others) for own, *others in zip(*speeds.values(), strict=True)]
  for who, values in speeds.items():
    print(f'{who:12s} {work.median(values):10.0f} tokens/s (median of {number} rounds)')
  print(f'ours / the best of the peer: {work.median(ratios):.2f} (rounds: '
        f'{", ".join(f"{ratio:.2f}" for ratio in ratios)})')
  best = {who: min(rows, key=lambda row: row['sec_per_step']) for who, rows in found.items()}
  return best['ours'] | {
    'peer': min((best[who] for who in PEERS), key=lambda row: row['sec_per_step']),
    'rounds': number, 'ratio': round(work.median(ratios), 4), 'ratio_min': round(min(ratios), 4),
    'ratio_max': round(max(ratios), 4)}


def main(name: str, words: Sequence[str] | None = None) -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=f'Seconds of a step of the {name} stage.')
  parser.add_argument('--size', choices=work.SIZES, default='tiny')
  parser.add_argument('--steps', type=int, default=0, help='timed ones; 0: 30 of tiny, 10 of small')
  parser.add_argument('--peer', action='store_true', help='transformers on torch, instead')
  parser.add_argument('--peer-python', default=sys.executable, help='an interpreter that has torch')
  parser.add_argument('--interleave', type=int, default=0, metavar='N',
                      help='N rounds of ours and of the peer in turns, and their ratio')
  options = parser.parse_args(words)
  count = options.steps or (10 if options.size == 'small' else 30)
  try:
    if options.interleave:
      told = side_by_side(name, options.size, count, options.interleave, options.peer_python)
    elif options.peer:
      told = work.measured(peer_command(options.peer_python, name, options.size, count))
    else:
      told = measured(name, options.size, count)
      print(f'{told["sec_per_step"]:.4f} s a step, {told["tokens_per_second"]:.0f} tokens/s, '
            f'{told["gflop_per_s"]} GFLOP/s, a matmul {told["matmul_gflop_per_s"]}')
  except work.Failed as error:
    print(error, file=sys.stderr)
    raise SystemExit(1) from error
  work.tell(told)
