"""InstructGPT as published: every run of the paper at 1.3B, 6B and 175B.

  python -m rlhf_jax list experiments/instructgpt.py
  python -m rlhf_jax preflight experiments/instructgpt.py ppo_ptx_6b --topology v6e:4x8

The brackets behind a field are its source: [P] Ouyang et al. 2022 (arXiv:2203.02155) with the
section of its appendix, [G3] Brown et al. 2020 (arXiv:2005.14165), table 2.1 and appendix B;
[chosen] where both are silent. The paper's data was never published: the files below are names for
yours, relative to --data. Nothing here was trained; preflight compiles it.

GPT-3's layers attend alternately to everything and to a band, whose width is not printed: 128
[chosen].
"6B" is GPT-3's 6.7B row (an inference: the paper does not say), "1.3B" its XL row, whose printed 24
heads of 128 are not its width of 2048: 16 are.
"""

from rlhf_jax.configs import PPO, Language, Model, Optimizer, Reward, Source, Tokenizer

text = (Source('text', files=('pretraining.jsonl.gz',)),)
demonstrations = (Source('demonstrations', files=('demonstrations.jsonl',)),)
rankings = (Source('rankings', files=('rankings.jsonl',)),)
prompts = (Source('prompts', files=('prompts.jsonl',)),)
reward_prompts = (Source('prompts', files=('reward_prompts_validation.jsonl',)),)

CONTEXT = 2048  # [G3]
DEMONSTRATIONS = 12_725  # training prompts with a demonstration [P table 6]
# The paper leaves longer prompts out; here they are shortened [chosen], so that none of yours is
# lost unseen. As published: --RUN.prompt_cut refuse and --skip-bad-rows, which counts them.
LENGTHS = {'prompt_length': 1024, 'response_length': 1024, 'prompt_cut': 'head'}  # at most [P C]
# How it is computed: float32 master weights as in the paper, bfloat16 where it has float16
# [P C: fp16 weights and activations]; the rest changes memory and time, not results [chosen].
COMPUTED = {'compute': 'bfloat16', 'remat': True, 'scan': True, 'logits_chunk': 256}


def gpt3(layers: int, width: int, heads: int) -> Model:
  """The architecture of [G3]: 50,257 byte pairs, learned positions, biases, tanh GELU."""
  return Model(layers=layers, width=width, heads=heads, vocabulary=50_257, context=CONTEXT,
               window=128, window_every=2, positions='learned', norm='layer', activation='gelu',
               bias=True, tied=True, **COMPUTED)


def pretraining(model: Model, rows: int, learning_rate: float) -> Language:
  """GPT-3 on 300B tokens; `rows` x 2048 is the batch nearest to the printed one that divides."""
  steps = round(300e9 / (rows * CONTEXT))
  return Language(
    data=text, model=model, tokenizer=Tokenizer(file='tokenizer.json'), length=CONTEXT, batch=rows,
    microbatch=64, steps=steps,
    optimizer=Optimizer(
      learning_rate=learning_rate,  # [G3 table 2.1]
      warmup=round(375e6 / (rows * CONTEXT)),  # 375M tokens [G3 B]
      weight_decay=0.1, epsilon=1e-8, clip=1.0))  # [G3 B]; its cosine ends after 260B


def sft(size: str, batch: int, learning_rate: float) -> Language:
  """The SFT baseline: 16 epochs, dropout 0.2, cosine to a tenth, no warm-up, the checkpoint that
  the reward model likes best [P C.1].
  """
  return Language(
    init_from=f'gpt_{size}', data=demonstrations, model=Model(dropout=0.2, **COMPUTED), batch=batch,
    epochs=16, steps=16 * DEMONSTRATIONS // batch, optimizer=Optimizer(learning_rate),
    select='reward', reward='reward_6b', prompts=reward_prompts, heldout=0.0, **LENGTHS)


def start(size: str, batch: int, learning_rate: float) -> Language:
  """Where PPO starts and what its KL is against: 2 epochs with a tenth of pretraining text
  [P C.3].
  """
  share = 0.1
  return Language(
    init_from=f'gpt_{size}', data=demonstrations, pretraining=text, pretraining_share=share,
    model=Model(**COMPUTED), batch=batch, epochs=2,
    steps=2 * DEMONSTRATIONS // (batch - round(share * batch)),
    optimizer=Optimizer(learning_rate), heldout=0.0, **LENGTHS)


def ppo(size: str, policy_rate: float, value_rate: float, ptx: float) -> PPO:
  """PPO on 256k episodes; with ptx = 27.8 and 8 pretraining rows an episode it is PPO-ptx
  [P C.4].
  """
  return PPO(
    policy=f'init_{size}', reward='reward_6b', prompts=prompts, pretraining=text if ptx else (),
    episodes=512, minibatch=64, epochs=1, updates=500,  # 256k episodes / 512 [P C.4]
    kl_coef=0.02, clip=0.2, temperature=1.0, discount=1.0, ema=0.992,  # [P C.4]
    ptx_coef=ptx, ptx_ratio=8.0 if ptx else 0.0, text_length=CONTEXT,  # [P C.4]
    policy_optimizer=Optimizer(policy_rate, warmup=10, warmup_from=0.1, schedule='constant'),
    value_optimizer=Optimizer(value_rate, warmup=10, warmup_from=0.1, schedule='constant'),
    **LENGTHS)


runs = {
  'gpt_1b3': pretraining(gpt3(24, 2048, 16), 512, 2.0e-4),  # 1M tokens a batch [G3]
  'gpt_6b': pretraining(gpt3(32, 4096, 32), 1024, 1.2e-4),  # 2M [G3]
  'gpt_175b': pretraining(gpt3(96, 12288, 96), 1536, 0.6e-4),  # 3.2M [G3]
  # One reward model for all sizes, from a 6B GPT-3; from SFT results were similar [P C.2, 3.5].
  'reward_6b': Reward(
    init_from='gpt_6b', data=rankings, demonstrations='init_6b', k_max=9, batch=64, epochs=1,
    heldout=0.0,  # Table 6's training prompts are all trained on; its validation prompts are others
    optimizer=Optimizer(learning_rate=9e-6), **LENGTHS),  # cosine to a tenth [P C.2]
  'sft_1b3': sft('1b3', 32, 9.65e-6),  # [P C.1]
  'sft_6b': sft('6b', 32, 9.65e-6),  # [P C.1]
  'sft_175b': sft('175b', 8, 5.03e-6),  # [P C.1]
  'init_1b3': start('1b3', 32, 5e-6),  # [P C.3]
  'init_6b': start('6b', 32, 1.04e-5),  # [P C.3]
  'init_175b': start('175b', 8, 2.45e-6),  # [P C.3]
  # The policy's rates are not printed. Swept were 2.55e-6 to 2.55e-5, at 175B 2.55e-6 and 3.74e-6;
  # above 8.05e-6 PPO without ptx diverged [P E.9]. Value rates: [P C.4].
  'ppo_1b3': ppo('1b3', 8.05e-6, 9e-6, 0.0),
  'ppo_6b': ppo('6b', 8.05e-6, 9e-6, 0.0),
  'ppo_175b': ppo('175b', 2.55e-6, 5e-6, 0.0),
  'ppo_ptx_1b3': ppo('1b3', 8.05e-6, 9e-6, 27.8),
  'ppo_ptx_6b': ppo('6b', 8.05e-6, 9e-6, 27.8),
  'ppo_ptx_175b': ppo('175b', 2.55e-6, 5e-6, 27.8),
}
