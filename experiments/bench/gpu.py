"""All measurements on one GPU within ten minutes: training steps, rollouts, PPO-ptx, the tests.

  python experiments/bench/gpu.py [--parts rates,gpt2_124m/sft,…,tests] [--seconds 560] [--out FILE]
  python experiments/bench/gpu.py --dry        the same code on a CPU at toy sizes
  bash experiments/bench/gpu.sh                with packages brought along as wheels

GPT-2's 124M shape and GPT-3's 1.3B shape in bfloat16 with float32 master weights; random weights
and rows. SFT and reward-model step: tokens/s, model FLOPs against a matmul of the same process;
`plain` is without the fused kernel for attention.
Rollout: tokens/s, bytes a step against a large copy of the same process. PPO-ptx: the whole update
and its split. Tests: the fast suite, float32 products in full precision, deterministic kernels.
First the programs that are measured are compiled, several parts at once, into a folder beside FILE
where the parts find them. Each part is a process (gpu_part.py), ended when its time is over; one
that is not begun for lack of time is named. FILE is rewritten after every part, so a killed run
leaves what it has. Last line: RESULT {json}. Exit code 1 if a part failed; failing tests are told,
not counted as that. Exit code 2, and nothing measured, where jax has no GPU.
Left out: several GPUs.
"""

import argparse
import concurrent.futures
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import work

GPT = {'vocabulary': 50257, 'context': 1024, 'positions': 'learned', 'compute': 'bfloat16'}
RATES = {'matmul': 8192, 'copy': 2**30}
PROMPTS = {'prompt_length': 128, 'response_length': 128, 'text_length': 256, 'ptx_ratio': 1.0}
# A scan compiles in a fraction of the time; decoding is unrolled all the same (model/generate.py).
# `microbatch` is rows of SFT, prompts (two rows each) of the reward model, episodes of PPO.
MODELS: dict[str, dict[str, dict[str, Any]]] = {
  'gpt2_124m': {
    'model': GPT | {'layers': 12, 'width': 768, 'heads': 12},
    'sft': {'rows': 32, 'length': 512, 'microbatch': 0, 'steps': 10},
    'sft_plain': {'rows': 32, 'length': 512, 'microbatch': 0, 'steps': 10,
                  'model': {'fused': False}},
    'reward': {'rows': 32, 'length': 512, 'microbatch': 0, 'steps': 10},
    'rollout': {'prompt': 128, 'response': 128, 'batches': [64, 256, 512], 'repeats': 3},
    'ppo': PROMPTS | {'episodes': 256, 'minibatch': 64, 'microbatch': 0, 'steps': 4, 'repeats': 2}},
  'gpt3_1b3': {
    'model': GPT | {'layers': 24, 'width': 2048, 'heads': 16, 'scan': True, 'remat': True},
    'sft': {'rows': 32, 'length': 512, 'microbatch': 0, 'steps': 6},
    'reward': {'rows': 32, 'length': 512, 'microbatch': 0, 'steps': 6},
    'rollout': {'prompt': 128, 'response': 128, 'batches': [64, 256, 512], 'repeats': 2},
    'ppo': PROMPTS | {'episodes': 128, 'minibatch': 32, 'microbatch': 0, 'steps': 2, 'repeats': 1}}}
TOY = {'toy': {
  'model': work.SIZES['toy'] | {'positions': 'learned', 'compute': 'bfloat16', 'scan': True,
                                'remat': True},
  'sft': {'rows': 8, 'length': 16, 'microbatch': 4, 'steps': 2},
  'sft_plain': {'rows': 8, 'length': 16, 'microbatch': 4, 'steps': 2, 'model': {'fused': False}},
  'reward': {'rows': 8, 'length': 16, 'microbatch': 2, 'steps': 2},
  'rollout': {'prompt': 8, 'response': 8, 'batches': [2, 4], 'repeats': 1},
  'ppo': {'prompt_length': 8, 'response_length': 8, 'text_length': 16, 'ptx_ratio': 1.0,
          'episodes': 8, 'minibatch': 4, 'microbatch': 2, 'steps': 1, 'repeats': 1}}}
DRY_RATES = {'matmul': 128, 'copy': 2**16}
WORK = ('sft', 'sft_plain', 'reward', 'rollout', 'ppo')
LIMITS = {'rates': 60, 'sft': 90, 'sft_plain': 60, 'reward': 90, 'rollout': 150,
          'ppo': 210}  # seconds of a part
LEAST = 20  # seconds under which no part is begun
COMPILING = 0.6  # of the whole time at most, before the first part
GPU = {'JAX_PLATFORMS': 'cuda,cpu', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.92'}
CACHE = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
         'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1'}
SHARED = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # several processes on the GPU
PRECISE = SHARED | {'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
                    'XLA_FLAGS': '--xla_gpu_deterministic_ops=true'}
PACKAGES = ('jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'flax', 'optax', 'numpy',
            'orbax-checkpoint', 'grain', 'array_record', 'tensorflow-datasets', 'pytest')


def names(models: dict[str, Any]) -> list[str]:
  """All parts in the order in which they are done: the cheap ones of all models first."""
  return ['rates', *(f'{model}/{part}' for part in WORK for model, does in models.items()
                     if part in does), 'tests']


def wish_of(name: str, models: dict[str, Any], dry: bool) -> dict[str, Any]:
  """What gpu_part.py is told of a part."""
  rates = DRY_RATES if dry else RATES
  if name == 'rates':
    return {'part': name} | rates
  model, part = name.split('/')
  sizes = dict(models[model][part])
  shape = models[model]['model'] | sizes.pop('model', {})
  return {'part': part.removesuffix('_plain'), 'model': shape} | rates | sizes


# ----- the tests


def tests(seconds: float, dry: bool, workers: int) -> dict[str, Any]:
  """The fast suite, as far as it comes in the time: how many passed, and which did not."""
  paths = ['tests/objectives'] if dry else ['tests']
  command = [sys.executable, '-m', 'pytest', '-vv', '-n', str(workers), '-m', 'not long',
             '--tb=line', '-p', 'no:cacheprovider', *paths]
  changes = PRECISE if not dry else {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
  environment = os.environ | ({} if dry else GPU) | changes
  started = time.monotonic()
  with tempfile.TemporaryFile('w+', encoding='utf-8') as log:  # a pipe stays open with its workers
    process = subprocess.Popen(command, cwd=work.ROOT, env=environment, stdin=subprocess.DEVNULL,
                               stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
      process.wait(seconds)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)  # this session's: pytest and its workers
      process.wait()
    log.seek(0)
    output = log.read()
  told = outcomes(output)
  told |= {'environment': changes, 'seconds': round(time.monotonic() - started, 1),
           'exit_code': process.returncode, 'finished': process.returncode in (0, 1)}
  if not told['passed'] and process.returncode:
    told['end'] = output[-1000:]
  return told


def outcomes(output: str) -> dict[str, Any]:
  """Counts and names from the lines of `pytest -vv -n N`."""
  lines = re.findall(r'^\[gw\d+\] \[ *\d+%\] ([A-Z]+) (tests/.*?) *$', output, re.MULTILINE)
  seen = {name: kind for kind, name in lines}
  count = lambda *kinds: sum(kind in kinds for kind in seen.values())
  return {'passed': count('PASSED', 'XPASS'), 'skipped': count('SKIPPED', 'XFAIL'),
          'failed': sorted(name for name, kind in seen.items() if kind in ('FAILED', 'ERROR'))}


# ----- the machine


def machine() -> dict[str, Any]:
  """Names, versions, date and command; without jax, which the parts ask."""
  def said(*command):
    try:
      return subprocess.run(command, cwd=work.ROOT, capture_output=True, text=True,
                            timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
      return ''

  versions = {}
  for package in PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': ['python', *sys.argv], 'commit': said('git', 'rev-parse', 'HEAD'),
    'gpu': said('nvidia-smi', '--query-gpu=name,memory.total,driver_version',
                '--format=csv,noheader').splitlines(),
    'python': platform.python_version(), 'system': platform.platform(), 'cores': os.cpu_count(),
    'versions': versions}


def seen() -> str:
  """The kind of device that jax takes in a process of the parts': gpu, or what it has instead."""
  command = [sys.executable, '-c', 'import jax; print(jax.default_backend())']
  try:
    done = subprocess.run(command, env=os.environ | GPU, capture_output=True, text=True,
                          timeout=LIMITS['rates'], stdin=subprocess.DEVNULL)
  except subprocess.TimeoutExpired as error:
    return f'no answer after {error.timeout:.0f} s'
  said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
  return said[-1] if said else f'exit code {done.returncode}'


# ----- all parts


def command_of(name: str, models: dict[str, Any], dry: bool, **more: Any) -> list[str]:
  """The process of a part."""
  return [sys.executable, str(work.HERE / 'gpu_part.py'),
          json.dumps(wish_of(name, models, dry) | more)]


def prepared(wanted: list[str], models: dict[str, Any], dry: bool, environment: dict[str, str],
             left: float, at_once: int) -> dict[str, Any]:
  """Compiles the parts' programs, so many parts at once, those that take longest first: seconds of
  each program, warnings, what was in the cache; or the error (the part then compiles them itself).
  """
  def one(name):
    if (rest := ends - time.monotonic()) < 1:
      return {'error': 'no time was left'}
    try:
      found = work.measured(command_of(name, models, dry, prepare=True), environment | SHARED, rest)
    except work.Failed as error:
      return {'error': str(error)[-300:]}
    return {key: found[key] for key in ('compile_seconds', 'warnings', 'cache_hits',
                                        'cache_misses')}

  ends, order = time.monotonic() + left, [name for name in reversed(wanted) if '/' in name]
  progress = work.Left(len(order) or 1)
  with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    asked = {pool.submit(one, name): name for name in order}
    for future in concurrent.futures.as_completed(asked):
      progress.step(f'compiled {asked[future]}')
  return {name: future.result() for future, name in asked.items()}


def show(name: str, told: dict[str, Any]) -> None:
  """A line or a few for each part."""
  if 'error' in told or 'skipped_for' in told:
    print(f'{name:18s} {told.get("error") or told["skipped_for"]}', flush=True)
  elif name == 'tests':
    print(f'{name:18s} {told["passed"]} passed, {len(told["failed"])} failed, '
          f'{told["skipped"]} skipped{"" if told["finished"] else ", not finished"}', flush=True)
  elif name.endswith('/rollout'):
    for row in told['batches']:
      share = '?' if row['share_of_copy'] is None else f'{row["share_of_copy"]:.1%}'
      print(f'{name:18s} batch {row["batch"]}: {row["tokens_per_second"]:.0f} tokens/s, '
            f'{share} of the bandwidth', flush=True)
  elif name.endswith('/ppo'):
    print(f'{name:18s} {told["sec_per_update"]:.3f} s, {told["share_of_matmul"]:.1%} of a matmul, '
          f'{told["phase_seconds"]}', flush=True)
  elif name == 'rates':
    print(f'{name:18s} {json.dumps(told)}', flush=True)
  else:
    print(f'{name:18s} {told["tokens_per_second"]:.0f} tokens/s, {told["share_of_matmul"]:.1%} of '
          'a matmul', flush=True)


def done(name: str, models: dict[str, Any], dry: bool, environment: dict[str, str], left: float,
         workers: int) -> dict[str, Any]:
  """One part's result, or why there is none."""
  if left < LEAST:
    return {'skipped_for': f'{max(left, 0):.0f} s were left'}
  if name == 'tests':
    return tests(left, dry, workers)
  limit = left if dry else min(left, LIMITS[name.split('/')[-1]])
  started = time.monotonic()
  try:
    told = work.measured(command_of(name, models, dry), environment, limit)
  except work.Failed as error:
    told = {'error': str(error)[-1500:]}
  return told | {'part_seconds': round(time.monotonic() - started, 1)}


def main() -> None:
  """Measures, writes and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--dry', action='store_true', help='toy sizes, on the CPU')
  parser.add_argument('--parts', default='', help='some of them, separated by commas')
  parser.add_argument('--seconds', type=float, default=560,
                      help='for all parts together, counted from the start of gpu.sh')
  parser.add_argument('--workers', type=int, default=8, help='processes of the tests')
  parser.add_argument('--compilers', type=int, default=max(1, (os.cpu_count() or 1) // 4),
                      help='parts that are compiled at once')
  parser.add_argument('--out', type=pathlib.Path, default=work.ROOT / 'runs' / 'bench' / 'gpu.json')
  options = parser.parse_args()
  models = TOY if options.dry else MODELS
  wanted = options.parts.split(',') if options.parts else names(models)
  if unknown := set(wanted) - set(names(models)):
    work.refuse(f'--parts: {", ".join(sorted(unknown))} is none of {", ".join(names(models))}')
  if options.compilers < 1:
    work.refuse(f'--compilers: {options.compilers} parts at once compile nothing, take 1 or more')
  begun = time.monotonic() - max(0.0, time.time() - float(os.environ.get('STARTED', time.time())))
  if not options.dry and (found := seen()) != 'gpu':
    work.refuse(f'jax of {sys.executable} has no GPU here ({found}): start it with a python whose '
                'jax has one ($PYTHON for gpu.sh), or say --dry for toy sizes on a CPU')
  told = {'impl': 'rlhf_jax', 'task': 'gpu', 'dry': options.dry}
  told |= {'machine': machine(), 'settings': models, 'parts': {}}
  cache = options.out.resolve().parent / 'gpu_cache'
  cache.mkdir(parents=True, exist_ok=True)
  environment = CACHE | {'JAX_COMPILATION_CACHE_DIR': str(cache)} | ({} if options.dry else GPU)
  left = lambda: options.seconds - (time.monotonic() - begun)
  told['compiled'] = prepared(wanted, models, options.dry, environment, left() * COMPILING,
                              options.compilers)
  told['compile_seconds'] = round(time.monotonic() - begun, 1)

  def keep():
    told['seconds'] = round(time.monotonic() - begun, 1)
    options.out.write_text(json.dumps(told, indent=1) + '\n', encoding='utf-8')

  keep()
  for name in wanted:
    told['parts'][name] = done(name, models, options.dry, environment, left(), options.workers)
    show(name, told['parts'][name])
    keep()
  work.tell(told)
  raise SystemExit(any('error' in part for part in told['parts'].values()))


if __name__ == '__main__':
  main()
