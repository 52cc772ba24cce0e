"""One part of gpu.py, in a process of its own: steps, rollouts or PPO updates of one model.

  python experiments/bench/gpu_part.py JSON     last line: RESULT {json}

The JSON names the part, the model's fields and the sizes of the work (gpu.py has the table). Every
part measures the rate it is compared with, of a matmul or a copy, in its own process.
Model FLOPs: matrix products of the traced program, what rematerialisation computes twice left out,
masked attention counted as far as it is computed (half of it in a kernel), a reward model's prompts
once even where they are read for every completion. With "prepare" the programs that are measured
are compiled only; where they are found in a cache `compile_seconds` is what loading takes.
Left out: several devices.
"""

import collections
import functools
import itertools
import os
import pathlib
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import work

sys.path.insert(0, str(work.ROOT))

import jax
import jax.numpy as jnp
import measure
import numpy as np
import ppo_update
import training_step

from rlhf_jax import configs
from rlhf_jax.model import attention, generate, positions, sharding, transformer
from rlhf_jax.runtime import executables


def rates(wish: dict[str, Any]) -> dict[str, Any]:
  """The machine's own: matmuls in three ways, a copy."""
  told = {}
  for name, dtype, precision in (('bfloat16', 'bfloat16', None), ('float32', 'float32', 'highest'),
                                 ('float32_default', 'float32', None)):
    with jax.default_matmul_precision(precision):
      rate = measure.matmul_rate(wish['matmul'], 10, dtype)
    told[f'matmul_{name}_gflop_per_s'] = round(rate / 1e9, 1)
  return told | {'copy_gb_per_s': round(measure.copy_rate(wish['copy'], 10) / 1e9, 1)}


def step(wish: dict[str, Any]) -> dict[str, Any]:
  """SFT or the reward model: tokens/s and model FLOP utilisation."""
  model = configs.Model(**wish['model'])
  rate = measure.matmul_rate(wish['matmul'], 10, model.compute)
  task = training_step.TASKS[wish['part']](model, wish['rows'], wish['length'], wish['microbatch'],
                                           count=2)
  kernel = attention.has_kernel(model, task.length)
  found = measure.counted(task.stage.update, task.state, task.frozen, task.batches[0],
                          jax.random.key(0), kernel=kernel and wish['part'] != 'reward')
  weights = measure.parameters(task.state.model.params)
  state, task.state = task.state, None  # it is donated
  done = measure.steps(task.stage, state, task.frozen, task.batches, wish['steps'])
  top = profiled(lambda: done.update(done.state, task.frozen, task.batches[0], jax.random.key(3),
                                     np.int32(0)))
  return {'rows': task.rows, 'length': task.length, 'parameters': weights, 'profile': top,
          'fused_attention': kernel} | training_step.rates(
    done, task.tokens, found.total - found.recomputed, rate) | {
    'recomputed_gflop': round(found.recomputed / 1e9, 3),
    'program_gib': round(done.program_bytes / 2**30, 4), 'loss_first': done.first['loss'],
    'loss_last': done.metrics['loss']}


def decoding_bytes(model: configs.Model, params: Any, rows: int, prompt: int, length: int) -> int:
  """Bytes that a decoding step reads in the mean: the weights in the compute type without tables of
  which it looks up a row, and the slots of its loop's cache, whatever of them is masked.
  """
  slots, ends = 0, generate.loops(length)
  assert length > 1, 'one token takes no step'
  for begin, end in itertools.pairwise([1, *ends]):
    slots += (end - begin) * (prompt + end) / (length - 1)
  cast = jax.eval_shape(lambda p: sharding.in_compute_type(p, model.compute), params)
  read = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cast))
  looked_up = [cast['embed']['positions']] if 'positions' in cast['embed'] else []
  looked_up += [] if model.tied else [cast['embed']['tokens']]
  read -= sum(table.size * table.dtype.itemsize for table in looked_up)
  head = transformer.kv_heads(model) * positions.head_size(model)
  each = 2 * model.layers * rows * head * jnp.dtype(model.compute).itemsize
  return round(read + each * slots)


def streamed(moved: int, seconds: float, steps: int, copy: float) -> dict[str, float | None]:
  """What decoding reads a second, and its share of a copy's rate; None where the clock's noise is
  as long as the decoding (toys).
  """
  if seconds <= 0:
    return dict.fromkeys(('seconds_per_step', 'gb_per_s', 'share_of_copy'))
  each = seconds / steps
  return {'seconds_per_step': round(each, 7), 'gb_per_s': round(moved / each / 1e9, 2),
          'share_of_copy': round(moved / each / copy, 4)}


def profiled(run: Callable[[], Any], count: int = 14) -> dict[str, Any]:
  """Seconds that the device spends in each kind of kernel in one call, the longest first."""
  try:
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        jax.block_until_ready(run())
      file, = pathlib.Path(folder).rglob('*.xplane.pb')
      spent, events = collections.Counter(), 0
      for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        if '/device:GPU' not in plane.name:
          continue
        for line in plane.lines:
          if not line.name.startswith('Stream'):
            continue
          for event in line.events:
            path = next((str(v) for k, v in event.stats if k in ('tf_op', 'name')), '')
            kind = re.sub(r'[._]?\d+', '', event.name)[:48]
            spent[f'{kind} {"/".join(path.split("/")[-3:])}'] += event.duration_ns / 1e9
            events += 1
  except Exception as error:  # a measurement is worth more than its profile
    return {'error': f'{type(error).__name__}: {error}'[:300]}
  return {'kernels': events, 'seconds': round(sum(spent.values()), 6),
          'top': {name: round(value, 6) for name, value in spent.most_common(count)}}


def sampler(model: configs.Model, length: int) -> Any:
  """(parameters, tokens [B, P], key, end ids) -> Rollout, compiled."""
  def sample(params, tokens, key, eos):
    return generate.generate(model, params, tokens, jnp.ones_like(tokens, bool), key,
                             length=length, temperature=1.0, eos=eos, pad=0)

  return jax.jit(sample)


def rollout(wish: dict[str, Any]) -> dict[str, Any]:
  """Tokens/s at each batch size, and which share of a copy's bandwidth decoding takes.

  The end tokens are an argument: with none of the vocabulary every response has its full length,
  with all of it the very same program stops after one token. The difference is decoding alone.
  """
  model = configs.Model(**wish['model'])
  prompt, length, copy = wish['prompt'], wish['response'], measure.copy_rate(wish['copy'], 10)
  params = jax.jit(lambda key: sharding.in_compute_type(transformer.init(model, key),
                                                        model.compute))(jax.random.key(1))
  all_ids, none = jnp.arange(model.vocabulary), jnp.full(model.vocabulary, -1, jnp.int32)
  run = sampler(model, length)
  batches, told, key = wish['batches'], [], jax.random.key(5)
  for rows in batches:
    tokens = training_step.tokens(model.vocabulary, rows, prompt, 0)
    made = run(params, tokens, key, none)
    assert int(made.mask.sum()) == rows * length, 'a response ended'
    assert int(run(params, tokens, key, all_ids).mask.sum()) == rows, 'a response went on'
    whole = measure.timed(functools.partial(run, params, tokens, key, none), wish['repeats'])
    first = measure.timed(functools.partial(run, params, tokens, key, all_ids), wish['repeats'])
    moved = decoding_bytes(model, params, rows, prompt, length)
    told.append({
      'batch': rows, 'seconds': round(whole, 5), 'seconds_to_first_token': round(first, 5),
      'tokens_per_second': round(rows * length / whole, 1), 'mb_per_step': round(moved / 1e6, 3)}
      | streamed(moved, whole - first, length - 1, copy))
    del made
  tokens = training_step.tokens(model.vocabulary, batches[0], prompt, 0)
  top = profiled(lambda: run(params, tokens, key, none))
  return {'prompt': prompt, 'response': length, 'copy_gb_per_s': round(copy / 1e9, 1),
          'parameters': measure.parameters(params), 'batches': told, 'profile': top}


def ppo_config(wish: dict[str, Any]) -> tuple[configs.PPO, dict[str, Any]]:
  """The configuration of a part, and which fields of it the part names."""
  given = {k: v for k, v in wish.items() if k in configs.PPO.__dataclass_fields__}
  return configs.PPO(ema=0.0, ptx_coef=1.0, policy_optimizer=ppo_update.OPTIMIZER,
                     value_optimizer=ppo_update.OPTIMIZER, **given), given


def update_flops(config: configs.PPO, batch: dict, kernel: bool, model: configs.Model) -> Any:
  """Of an update with this model, by phase."""
  stage, *state = ppo_update.shaped(model, config)
  return measure.counted(stage.update, *state, batch, jax.random.key(0),
                         trips=config.response_length - 1, kernel=kernel)


def ppo(wish: dict[str, Any]) -> dict[str, Any]:
  """The whole PPO-ptx update, and its phases: rollout and scoring each by itself, training as what
  is left of the whole, and of that ptx, which the same program skips where γ = 0.
  """
  model = configs.Model(**wish['model'])
  config, given = ppo_config(wish)
  rate = measure.matmul_rate(wish['matmul'], 10, model.compute)
  batch, key = ppo_update.batch_of(model, config), jax.random.key(3)
  kernel = attention.has_kernel(model, config.prompt_length + config.response_length)
  found = measure.by_layers(functools.partial(update_flops, config, batch, kernel), model)
  stage, state, frozen = ppo_update.make(model, config)
  weights = measure.parameters(state.policy.params)
  _, split = ppo_update.begun(config, stage, state, frozen, batch, wish['repeats'])
  done = measure.steps(stage, state, frozen, [batch], wish['steps'], warm=1,
                       ppo=True)  # donates it
  assert done.metrics['response_length'] == config.response_length
  holder = [done.state]

  def updated():
    holder[0], metrics = done.update(holder[0], frozen, batch, key, np.int32(0))
    return metrics

  top = profiled(updated)
  holder[0] = holder[0].replace(ptx_coef=jnp.zeros_like(holder[0].ptx_coef))
  split |= {'training': done.seconds - sum(split.values()),
            'ptx': done.seconds - measure.timed(updated, wish['repeats'])}
  return {'parameters': weights, 'work': given, 'profile': top,
          'fused_attention': kernel} | ppo_update.rates(
    config, done, split, found.total - found.recomputed, rate) | {
    'gflop_phases': {k: round(v / 1e9, 4) for k, v in found.phases.items()},
    'recomputed_gflop': round(found.recomputed / 1e9, 3),
    'program_gib': round(done.program_bytes / 2**30, 4),
    'logprob_gap': done.metrics.get('logprob_gap')}


# ----- compiling


def _abstract(make: Callable[[], Any]) -> Any:
  """A Task whose state is shapes."""
  made = []
  state = jax.eval_shape(lambda: made.append(make()) or made[0].state)
  made[0].state = state
  return made[0]


def programs(wish: dict[str, Any]) -> list[tuple[Any, tuple]]:
  """What a part compiles, each a jitted function and its arguments' shapes; the largest last."""
  model, shape = configs.Model(**wish['model']), jax.ShapeDtypeStruct
  key, number = jax.eval_shape(lambda: jax.random.key(0)), shape((), np.int32)
  if wish['part'] in training_step.TASKS:
    task = _abstract(lambda: training_step.TASKS[wish['part']](
      model, wish['rows'], wish['length'], wish['microbatch'], count=1))
    return [(executables.update(task.stage, None),
             (task.state, task.frozen, task.batches[0], key, number))]
  if wish['part'] == 'rollout':
    params = jax.eval_shape(lambda key: sharding.in_compute_type(
      transformer.init(model, key), model.compute), key)
    run, ids = sampler(model, wish['response']), shape((model.vocabulary,), np.int32)
    return [(run, (params, shape((rows, wish['prompt']), np.int32), key, ids))
            for rows in sorted(wish['batches'])]
  config, _ = ppo_config(wish)
  batch = ppo_update.batch_of(model, config)
  stage, state, frozen = ppo_update.shaped(model, config)
  first, second = ppo_update.beginnings(config, stage)
  sampled = state.policy.params, batch['prompts'], key
  return [(first, sampled), (second, (state, frozen, jax.eval_shape(first, *sampled))),
          (executables.update(stage, None), (state, frozen, batch, key, number))]


def prepare(wish: dict[str, Any]) -> dict[str, Any]:
  """Compiles a part's programs, for the cache that JAX_COMPILATION_CACHE_DIR names."""
  seconds = []
  for run, given in programs(wish):
    started = time.monotonic()
    run.lower(*given).compile()
    seconds.append(round(time.monotonic() - started, 2))
  return {'compile_seconds': seconds}


PARTS = {'rates': rates, 'sft': step, 'reward': step, 'rollout': rollout, 'ppo': ppo}


def main() -> None:
  """Measures and prints."""
  wish = work.wish(__doc__)
  device, cache = jax.devices()[0], collections.Counter()
  if not wish.get('prepare') and (folder := os.environ.get('JAX_COMPILATION_CACHE_DIR')):
    executables.drop_torn(pathlib.Path(folder))  # of a process that was ended while it wrote
  jax.monitoring.register_event_listener(lambda event, **_: cache.update([event.split('/')[-1]]))
  with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter('always', UserWarning)
    told = (prepare if wish.get('prepare') else PARTS[wish['part']])(wish)
  told['warnings'] = sorted({str(warning.message)[:300] for warning in heard
                             if warning.category is UserWarning})
  told |= {name: cache[name] for name in ('cache_hits', 'cache_misses')}
  memory = device.memory_stats() or {}  # None on a CPU
  if 'peak_bytes_in_use' in memory:
    told['device_peak_gib'] = round(memory['peak_bytes_in_use'] / 2**30, 3)
  finite = lambda x: x if not isinstance(x, float) or np.isfinite(x) else None  # JSON has no NaN
  work.tell({name: finite(value) for name, value in told.items()} | measure.here())


if __name__ == '__main__':
  main()
