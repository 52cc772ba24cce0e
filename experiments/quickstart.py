"""The whole of InstructGPT in the miniature world, on a laptop.

  python -m rlhf_jax run experiments/quickstart.py --workdir runs/quickstart
"""

from rlhf_jax import miniature as world
from rlhf_jax.configs import (
  PPO,
  Collect,
  Evaluate,
  Language,
  Model,
  Optimizer,
  Reward,
  Sampled,
  Tokenizer,
)

lengths = {'prompt_length': world.PROMPT_LENGTH, 'response_length': world.RESPONSE_LENGTH}
text = (world.text_source('train', 30000),)
fine = {'warmup': 10, 'warmup_from': 0.1, 'schedule': 'constant', 'epsilon': 1e-5, 'clip': 1.0}

runs = {
  'gpt': Language(
    data=text, tokenizer=Tokenizer(1024), length=64, batch=32, steps=1500, evaluate_every=500,
    model=Model(layers=4, width=128, heads=4, context=64, init_std=0.08),
    optimizer=Optimizer(learning_rate=3e-3, warmup=50, weight_decay=0.1)),
  'sft': Language(
    data=(world.demonstrations_source('sft', 2500),), init_from='gpt', pretraining=text,
    pretraining_share=0.1, epochs=2, batch=32, select='validation_loss', evaluate_every=54,
    optimizer=Optimizer(learning_rate=1e-3), **lengths),
  'rankings': Collect(
    policy='sft', prompts=(world.prompts_source('reward', 1800),), judge=world.LABELERS,
    labelers=world.TRAINING_LABELERS, k=(4, 9), others=1, batch=256,
    **lengths),
  'rankings_heldout': Collect(
    policy='sft', prompts=(world.prompts_source('reward_heldout', 600),), judge=world.LABELERS,
    labelers=world.TRAINING_LABELERS + world.HELDOUT_LABELERS, k=(4, 9), calibration='rankings',
    labels=len(world.TRAINING_LABELERS + world.HELDOUT_LABELERS), seed=1, **lengths),
  'reward': Reward(
    init_from='sft', data='rankings', batch=12, epochs=1,
    optimizer=Optimizer(learning_rate=1e-3), **lengths),
  'ppo_ptx': PPO(
    policy='sft', reward='reward', prompts=(world.prompts_source('ppo', 4000),), pretraining=text,
    episodes=128, minibatch=32, updates=45, kl_coef=0.1, ptx_coef=1.0, ptx_ratio=1.0,
    policy_optimizer=Optimizer(learning_rate=3e-4, **fine),
    value_optimizer=Optimizer(learning_rate=1e-3, **fine), evaluate_every=15,
    evaluation_prompts=(world.prompts_source('validation', 256),), evaluation_size=256,
    judge=world.GOLD, **lengths),
  'evaluation': Evaluate(
    models={
      'gpt': Sampled('gpt'), 'sft': Sampled('sft'), 'ppo_ptx': Sampled('ppo_ptx'),
      'sft_t05': Sampled('sft', temperature=0.5), 'sft_best_of_4': Sampled('sft', best_of=4)},
    against='sft', reward='reward', rankings='rankings_heldout', judge=world.GOLD,
    prompts=(world.prompts_source('heldout', 800),),
    text=(world.text_source('heldout', 500),), **lengths),
}
