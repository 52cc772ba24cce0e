"""The peer's step: transformers' GPT-2 on torch, the rows and the optimizer of training_step.py.

  PYTHON torch_step.py JSON     (PYTHON has torch and transformers; neither jax nor the product)

Started by training_step.py, which writes the JSON. SFT: the model's own loss, the prompt's labels
ignored. Reward model: −log σ(chosen − rejected). Last line: RESULT {json}.
"""

import json
import os
import resource
import sys
import time

os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', CUDA_VISIBLE_DEVICES='')

import numpy as np
import torch
import transformers


def model_of(wish: dict) -> torch.nn.Module:
  """A random GPT-2 of the wished shape without dropout, with its loss head or a scalar one."""
  config = transformers.GPT2Config(
    n_layer=wish['layers'], n_embd=wish['width'], n_head=wish['heads'],
    vocab_size=wish['vocabulary'], n_positions=wish['context'], resid_pdrop=0.0, embd_pdrop=0.0,
    attn_pdrop=0.0, use_cache=False, num_labels=1, bos_token_id=None, eos_token_id=None,
    pad_token_id=wish['vocabulary'])  # never occurs, so the last token of a row is scored
  kind = 'GPT2LMHeadModel' if wish['task'] == 'sft' else 'GPT2ForSequenceClassification'
  return getattr(transformers, kind)(config).train()


def loss_of(model: torch.nn.Module, wish: dict, rows: torch.Tensor) -> torch.Tensor:
  """The loss of one batch [rows, length]; of pairs, the first half of the rows is preferred."""
  if wish['task'] == 'sft':
    labels = rows.clone()
    labels[:, :wish['length'] // 2] = -100
    return model(input_ids=rows, labels=labels).loss
  scores = model(input_ids=rows).logits.squeeze(-1)
  half = len(rows) // 2
  return -torch.nn.functional.logsigmoid(scores[:half] - scores[half:]).mean()


def batch_of(wish: dict, seed: int) -> torch.Tensor:
  """Random rows [rows, length]; the two completions of a pair have the same prompt before them."""
  rows = np.random.default_rng(seed).integers(0, wish['vocabulary'],
                                              (wish['rows'], wish['length']))
  if wish['task'] == 'reward':
    half, prompt = wish['rows'] // 2, wish['length'] // 2
    rows[half:, :prompt] = rows[:half, :prompt]
  return torch.from_numpy(rows)


def matmul_rate(size: int) -> float:
  """FLOP/s of torch's large float32 matrix product."""
  a, walls = torch.randn(size, size), []
  for _ in range(6):
    started = time.perf_counter()
    torch.matmul(a, a)
    walls.append(time.perf_counter() - started)
  return 2 * size**3 / float(np.median(walls[1:]))


def main() -> None:
  """Measures and prints."""
  wish = json.loads(sys.argv[1])
  torch.manual_seed(0)
  rate, model = matmul_rate(wish['matmul']), model_of(wish)
  optimizer = torch.optim.AdamW(model.parameters(), lr=wish['learning_rate'],
                                betas=tuple(wish['betas']), eps=wish['epsilon'], weight_decay=0.0)
  batches = [batch_of(wish, seed) for seed in range(4)]
  walls, cpus, losses, warm = [], [], [], 3
  for step in range(warm + wish['steps']):
    wall, cpu = time.perf_counter(), time.process_time()
    loss = loss_of(model, wish, batches[step % 4])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), wish['clip'])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item())
    walls.append(time.perf_counter() - wall)
    cpus.append(time.process_time() - cpu)
  walls, cpus = walls[warm:], cpus[warm:]
  seconds = float(np.median(walls))
  print('RESULT ' + json.dumps({
    'impl': 'transformers', 'task': wish['task'], 'size': wish['size'], 'rows': wish['rows'],
    'length': wish['length'], 'parameters': sum(p.numel() for p in model.parameters()),
    'steps_timed': len(walls),
    'tokens_per_second': round(wish['rows'] * wish['length'] / seconds, 1),
    'sec_per_step': round(seconds, 6), 'sec_min': round(min(walls), 6),
    'sec_max': round(max(walls), 6), 'cpu_s_per_step': round(float(np.median(cpus)), 6),
    'matmul_gflop_per_s': round(rate / 1e9, 2), 'loss_first': round(losses[0], 4),
    'loss_last': round(losses[-1], 4), 'torch': torch.__version__,
    'transformers': transformers.__version__, 'threads': torch.get_num_threads(),
    'peak_rss_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    'loadavg': [round(x, 2) for x in os.getloadavg()]}))


if __name__ == '__main__':
  main()
