"""The whole pipeline on real data: it proves the data path, not quality.

  python -m rlhf_jax run experiments/real_text.py --workdir runs/real_text --data DIR

DIR holds the folders named below; without --data the error says where each is published.
2 CPU cores, shared with other runs: 11 minutes (15 at most). Expect: losses fall, every
row of every source is accounted for in runs/real_text/data/*/card.json, and a reward model
near chance, since a million
parameters and a few minutes teach no one to judge summaries.

Pretraining text: web pages and stories. Demonstrations: people's tasks and questions with answers.
Rankings: K = 4 sets and pairs of summaries by named labelers, pairs of dialogues. Prompts: of both.
What is evaluated on comes from other files than what is trained on, but for the text: there the
change of the loss counts.
"""

from rlhf_jax.configs import (
  PPO,
  Evaluate,
  Language,
  Model,
  Optimizer,
  Reward,
  Sampled,
  Source,
  Tokenizer,
)

PROMPT, RESPONSE = 96, 48  # tokens; posts are cut to their head, dialogues to their last turns
LENGTHS = {'prompt_length': PROMPT, 'response_length': RESPONSE, 'prompt_cut': 'head'}


def summaries(kind: str, *batches: str, size: int = 0) -> Source:
  """Comparisons of summaries with labeler ids: Stiennon et al., 2020."""
  files = tuple(f'openai_summarize_comparisons/{batch}.jsonl.gz' for batch in batches)
  return Source(kind, files, 'openai_summarize', size=size)


def dialogues(kind: str, name: str, size: int = 0) -> Source:
  """Pairs of dialogues: Bai et al., 2022. They hold offensive text by design."""
  return Source(kind, (f'hh_rlhf/{name}-base.test.jsonl.gz',), 'hh_rlhf', size=size)


text = (
  Source('text', ('c4_wiki_demo/c4_demo.jsonl',)),
  Source('text', ('tinystories_sample/tinystories_1000.json',), 'json_list'))
demonstrations = (
  Source('demonstrations', ('self_instruct/seed_tasks.jsonl',), 'self_instruct'),
  Source('demonstrations', ('dolly_open_qa/chinkara-open_qa.jsonl',), 'dolly'))
rankings = (
  summaries('rankings', 'batch18'),  # 103 sets of 4, each by one labeler
  summaries('rankings', 'batch13', size=500),  # pairs, 27 labelers
  dialogues('rankings', 'helpful', size=600))
prompts = (
  summaries('prompts', 'batch13', 'batch18'),
  dialogues('prompts', 'helpful'))

heldout_rankings = (
  summaries('rankings', 'batch0_cnndm'),  # 62 sets of 4 by two other labelers, about news
  dialogues('rankings', 'harmless', size=300))
heldout_prompts = (
  summaries('prompts', 'batch0_cnndm'),
  dialogues('prompts', 'harmless', size=200))

model = Model(layers=4, width=128, heads=4, context=PROMPT + RESPONSE, init_std=0.05)
tuning = Optimizer(learning_rate=1e-4, warmup=5, warmup_from=0.1, schedule='constant')

runs = {
  'gpt': Language(
    data=text, model=model, tokenizer=Tokenizer(vocabulary=4096), length=128, batch=32, steps=250,
    optimizer=Optimizer(learning_rate=2e-3, warmup=25, weight_decay=0.1)),
  'sft': Language(
    init_from='gpt', data=demonstrations, pretraining=text, pretraining_share=0.1, batch=32,
    epochs=2, select='validation_loss', optimizer=Optimizer(learning_rate=5e-4, warmup=10),
    evaluate_every=50, **LENGTHS),
  'reward': Reward(
    init_from='sft', data=rankings, heldout_data=heldout_rankings, k_max=4, batch=16, heldout=0.1,
    optimizer=Optimizer(learning_rate=3e-4, warmup=5), **LENGTHS),
  'ppo_ptx': PPO(
    policy='sft', reward='reward', prompts=prompts, pretraining=text, episodes=64, minibatch=32,
    updates=30, kl_coef=0.05, ptx_coef=1.0, ptx_ratio=0.5, text_length=128,
    policy_optimizer=tuning, value_optimizer=tuning, **LENGTHS),
  'evaluation': Evaluate(
    models={'gpt': Sampled('gpt'), 'sft': Sampled('sft'), 'ppo_ptx': Sampled('ppo_ptx')},
    reward='reward', prompts=heldout_prompts, text=text, text_length=128,
    rankings=heldout_rankings, **LENGTHS),
}
