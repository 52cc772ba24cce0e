"""RLHF of a model and of preferences that you bring, in one line.

  python -m rlhf_jax run experiments/own.py --workdir runs/own --model FOLDER --rankings FILE

FOLDER holds config.json, model.safetensors and tokenizer.json (GPT-2, GPT-NeoX, Llama, Qwen), or is
DIR/RUN of a workdir. FILE has one object a line: prompt + chosen + rejected, prompt + completions +
ranks, or messages; see `python -m rlhf_jax data FILE --kind rankings`. Without demonstrations there
is no SFT, the model as it comes is the reference; without prompts PPO takes those of the rankings;
without text the pretraining gradient is left out (γ = 0).

Rates suit models of some hundred million parameters; smaller ones want larger ones, such as
--reward.optimizer.learning_rate 1e-3 --ppo.policy_optimizer.learning_rate 3e-4. Every setting of
every run: `run experiments/own.py --help`.
"""

import logging
import pathlib

from rlhf_jax.configs import PPO, Language, Optimizer, Reward, Source


def source(kind: str, file: str) -> tuple[Source, ...]:
  """A file of the user's as a source; prompts may be read from rankings too."""
  return (Source(kind, (str(pathlib.Path(file).expanduser().absolute()),)),)


def runs(
  model: str,  # folder of the model to align, in Hugging Face's layout, or DIR/RUN
  rankings: str,  # file of preferences
  demonstrations: str = '',  # file of prompts with good responses; without: no SFT
  prompts: str = '',  # file of prompts for PPO; without: those of the rankings
  text: str = '',  # file of pretraining text; without: no pretraining gradient
  prompt_length: int = 256,  # longest prompt in tokens; longer ones lose their start or end
  response_length: int = 128,  # longest response in tokens
):
  """The runs, as far as there is data for them."""
  told = logging.getLogger('rlhf_jax').info
  lengths = {'prompt_length': prompt_length, 'response_length': response_length,
             'prompt_cut': 'head'}
  steady = {'warmup': 10, 'warmup_from': 0.1, 'schedule': 'constant'}
  folder = str(pathlib.Path(model).expanduser().absolute())
  found = {}
  if demonstrations:
    found['sft'] = Language(
      init_from=folder, data=source('demonstrations', demonstrations), epochs=2,
      pretraining=source('text', text) if text else (), pretraining_share=0.1 if text else 0.0,
      optimizer=Optimizer(learning_rate=1e-5, warmup=10), **lengths)
  else:
    told('no --demonstrations: SFT is skipped, the model as it comes is the KL reference')
  if not prompts:
    told('no --prompts: PPO takes the prompts of the rankings')
  if not text:
    told('no --text: the pretraining gradient is left out, γ = 0')
  start = 'sft' if demonstrations else folder
  found['reward'] = Reward(
    init_from=start, data=source('rankings', rankings), batch=32, k_max=0,
    optimizer=Optimizer(learning_rate=1e-5, warmup=10), **lengths)
  found['ppo_ptx' if text else 'ppo'] = PPO(
    policy=start, reward='reward', prompts=source('prompts', prompts or rankings),
    pretraining=source('text', text) if text else (), ptx_ratio=1.0 if text else 0.0,
    ptx_coef=1.0 if text else 0.0, text_length=prompt_length + response_length,
    episodes=64, minibatch=32, updates=100, kl_coef=0.05,
    policy_optimizer=Optimizer(learning_rate=5e-6, **steady),
    value_optimizer=Optimizer(learning_rate=1e-5, **steady), **lengths)
  return found
