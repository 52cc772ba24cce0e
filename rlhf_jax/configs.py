"""Every setting of every run, as frozen dataclasses, and which models and runs cannot be
(`check_model`, `check_run`); plain Python, no jax, so that `list` and `--help` answer at once.

A comment behind a field is its documentation: `--help` prints it. A field whose value the paper
leaves open says "paper: not stated". Where a field names a run it may name a model folder instead,
with a slash in it ('gpt2/', '/models/pythia-70m'): Hugging Face's, or DIR/RUN of another workdir;
relative ones are below --data.
Left out: anything computed at run time. A config is never filled in or changed after it was read.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Model:
  """The decoder. The defaults are GPT-3's shape with rotary positions; `experiments/` says where a
  run departs.
  """
  layers: int = 4  # decoder blocks, L
  width: int = 128  # residual width, D
  heads: int = 4  # query heads, N
  kv_heads: int = 0  # key/value heads, G; 0: as many as query heads
  head_size: int = 0  # H; 0: width / heads
  mlp: int = 0  # hidden width of the MLP, F; 0: 4 x width (GPT-3)
  vocabulary: int = 0  # number of ids; 0: the tokenizer's
  context: int = 128  # longest sequence in tokens
  norm: str = 'layer'  # 'layer' (GPT) or 'rms' (Llama)
  norm_epsilon: float = 1e-5  # added to the variance in the norm
  activation: str = 'gelu'  # 'gelu' (tanh form, GPT), 'gelu_exact' or 'silu'
  gated: bool = False  # a gate beside the MLP's up-projection (Llama: silu, gated)
  parallel: bool = False  # attention and MLP read the same residual stream (GPT-NeoX)
  positions: str = 'rope'  # 'rope' or 'learned' (GPT-2/3)
  rope_theta: float = 10000.0  # base of the rotary frequencies
  rotary: float = 1.0  # share of every head that is rotated (GPT-NeoX: 0.25)
  rope_scaling: tuple[float, ...] = ()  # factor (linear), or factor, low, high, context (Llama 3)
  window: int = 0  # tokens a banded layer looks back, itself included; 0: all layers are dense
  window_every: int = 1  # every n-th layer is banded (GPT-3: 2, dense and banded alternate)
  bias: bool = True  # biases in projections (GPT yes, Llama no)
  qkv_bias: bool = False  # biases of query, key and value alone (Qwen2)
  qk_norm: bool = False  # every query and key head is normalised (Qwen3)
  tied: bool = True  # the embedding table is the unembedding too
  init_std: float = 0.02  # std of weights; output projections: / sqrt(2 L) (GPT-2)
  dropout: float = 0.0  # residual, in SFT only (paper C.1: 0.2 with 16 epochs)
  compute: str = 'float32'  # compute type, or 'bfloat16'; master weights stay float32
  remat: bool = False  # recompute each block in the backward pass
  scan: bool = False  # one compiled block for all layers: compile time is flat in depth
  fused: bool = True  # attention of whole rows in one kernel where there is one: GPU, bfloat16
  logits_chunk: int = 0  # positions a chunk of log-probs: [B, T, V] is never whole; 0: one chunk


@dataclass(frozen=True)
class Optimizer:
  """Adam and its schedule; the schedule multiplies `learning_rate`, a traced leaf."""
  learning_rate: float = 3e-4  # peak
  warmup: int = 0  # steps of linear warm-up
  warmup_from: float = 0.0  # share of the peak where warm-up starts (PPO: 0.1)
  schedule: str = 'cosine'  # 'cosine' or 'constant' after warm-up
  final: float = 0.1  # share of the peak where cosine ends (paper C.1, C.2: 10 %)
  b1: float = 0.9  # paper App. C: 0.9 for all models
  b2: float = 0.95  # paper App. C: 0.95 for all models
  epsilon: float = 1e-8  # fine-tuning: paper: not stated; GPT-3: 1e-8
  weight_decay: float = 0.0  # decoupled, on matrices only; GPT-3 pretraining: 0.1
  clip: float = 1.0  # global gradient norm; 0: off. GPT-3: 1.0; fine-tuning: paper: not stated


@dataclass(frozen=True)
class Mesh:
  """Devices as data x fsdp x tensor; data x fsdp divides every batch."""
  data: int = 1  # copies of the model; -1: all devices that are left
  fsdp: int = 1  # parameters and batch split
  tensor: int = 1  # heads, MLP and vocabulary split


@dataclass(frozen=True)
class Source:
  """Where records come from: files as users have them, or a function that makes them."""
  kind: str = 'text'  # 'text', 'demonstrations', 'rankings' or 'prompts'
  files: tuple[str, ...] = ()  # paths, absolute or below --data
  reader: str = ''  # '': by the file; a name in data/readers.py; 'file.py:function'
  make: str = ''  # instead of files: 'module:function' of (split, size, seed), yields records
  split: str = 'train'  # passed to `make`; to a reader of one's own as (path, kind, split)
  size: int = 0  # records to take; 0: all there are
  seed: int = 0  # passed to `make`; the order in which `size` records are chosen


@dataclass(frozen=True)
class Tokenizer:
  """A byte-level BPE trained on a run's own text; later runs inherit it."""
  vocabulary: int = 1024  # ids at most, the 256 bytes and the special tokens included
  file: str = ''  # instead: an existing tokenizer.json


@dataclass(frozen=True)
class Language:
  """Next-token training: pretraining on text, or SFT on demonstrations with text mixed in."""
  data: tuple[Source, ...] = ()  # 'text' sources (pretraining) or 'demonstrations' sources (SFT)
  init_from: str = ''  # run whose parameters are the start; empty: random
  model: Model = Model()  # with init_from only dropout, compute, remat, scan, fused, logits_chunk
  tokenizer: Tokenizer = Tokenizer()  # ignored when init_from is given
  pretraining: tuple[Source, ...] = ()  # text mixed into SFT
  pretraining_share: float = 0.0  # share of rows that are text (paper C.3: 0.1)
  steps: int = 0  # optimizer steps; 0: `epochs` passes over the data
  epochs: float = 1.0  # passes over the data (paper: 2 for the PPO initialisation, 16 for SFT)
  batch: int = 32  # rows a step
  microbatch: int = 0  # rows a gradient-accumulation piece; 0: the whole batch
  length: int = 64  # tokens a packed row of text
  prompt_length: int = 32  # longest prompt in tokens
  prompt_cut: str = 'refuse'  # prompts above it: 'refuse' or 'head' (kept to the last sentence)
  response_length: int = 32  # longest response in tokens, eos included
  optimizer: Optimizer = Optimizer()
  select: str = ''  # keep what is best by 'validation_loss' or 'reward' (C.1); empty: the last
  reward: str = ''  # reward-model run that scores samples, for select='reward'
  prompts: tuple[Source, ...] = ()  # validation prompts, for select='reward'
  ema: float = 0.0  # decay of the average of the weights, per optimizer step; 0: off
  heldout: float = 0.05  # share kept for validation, by customer where known, else by prompt
  evaluate_every: int = 100  # steps between validations; 0: at the end only
  seed: int = 0  # initial weights, batch order, dropout
  mesh: Mesh = Mesh()


@dataclass(frozen=True)
class Collect:
  """K samples of a policy for each prompt, ranked by a judge, written as rankings."""
  policy: str = 'sft'  # run that is sampled from
  prompts: tuple[Source, ...] = ()  # 'prompts' sources
  judge: str = ''  # 'module-or-file:function', (prompt, responses, labeler) -> Judgement
  labelers: tuple[str, ...] = ('',)  # names handed to the judge, one drawn a prompt
  labels: int = 1  # labelers a prompt; len(labelers) for agreement studies
  calibration: str = ''  # Collect run whose calibrated judge is used; empty: calibrate here
  k: tuple[int, int] = (4, 9)  # fewest and most completions of a prompt (paper: 4 to 9)
  others: int = 0  # of the K, completions sampled for other prompts (paper: none): what off-task is
  temperature: float = 1.0  # of sampling
  prompt_length: int = 32  # longest prompt in tokens
  prompt_cut: str = 'refuse'  # 'refuse' or 'head', see Language
  response_length: int = 32  # longest response in tokens, eos included
  batch: int = 128  # responses sampled at a time
  seed: int = 0  # sampling, k and labeler of each prompt
  mesh: Mesh = Mesh()


@dataclass(frozen=True)
class Reward:
  """A reward model from K-way rankings: one element is a prompt with its completions (paper
  §3.5).
  """
  init_from: str = 'sft'  # run whose trunk is the start, with a scalar head
  data: str | tuple[Source, ...] = 'rankings'  # Collect run, or 'rankings' sources
  heldout_data: str | tuple[Source, ...] = ()  # rankings of held-out prompts
  demonstrations: str = ''  # Language run whose demonstrations score 0; empty: init_from
  k_max: int = 9  # completions of a prompt, padded to this; 0: as many as the data's longest has
  batch: int = 64  # prompts a step (paper C.2: 64)
  microbatch: int = 0  # prompts a gradient-accumulation piece; 0: the whole batch
  epochs: float = 1.0  # paper C.2: 1; more overfits
  prompt_length: int = 32  # longest prompt in tokens
  prompt_cut: str = 'refuse'  # 'refuse' or 'head', see Language
  response_length: int = 32  # longest response in tokens, eos included
  optimizer: Optimizer = Optimizer(learning_rate=9e-6)  # paper C.2, 6B
  heldout: float = 0.05  # share of prompts kept for validation
  evaluate_every: int = 0  # steps between validations; 0: at the end only
  seed: int = 0  # scalar head, batch order, which rankings are held out
  mesh: Mesh = Mesh()


# Paper C.4: warm-up over 10 iterations from a tenth of the peak, then constant; value model 9e-6.
PPO_OPTIMIZER = Optimizer(learning_rate=9e-6, warmup=10, warmup_from=0.1, schedule='constant')


@dataclass(frozen=True)
class PPO:
  """PPO against a reward model with a KL penalty and the pretraining gradient (paper Eq. 2,
  C.4).
  """
  policy: str = 'sft'  # run that is the start and the KL reference
  reward: str = 'reward'  # reward-model run (and the value's start), or 'module-or-file:function'
  value: str = ''  # the value model's start; empty: the reward run, or the policy with a zero head
  prompts: tuple[Source, ...] = ()  # 'prompts' sources
  pretraining: tuple[Source, ...] = ()  # 'text' sources of the ptx gradient
  episodes: int = 512  # rollouts an update (paper: 512)
  minibatch: int = 64  # episodes a minibatch (paper: 64)
  microbatch: int = 0  # episodes a piece of training or scoring; 0: a minibatch (chips score all)
  epochs: int = 1  # passes over an update's episodes (paper: 1)
  updates: int = 500  # paper: 256k episodes / 512
  kl_coef: float = 0.02  # beta, per token (paper: 0.02, fixed)
  kl_target: float = 0.0  # nats a sequence, adaptive controller (Ziegler 2019); 0: fixed kl_coef
  kl_horizon: int = 10000  # episodes over which the controller acts
  ptx_coef: float = 27.8  # gamma, on the mean loss a token (paper: 27.8, reduction not stated)
  ptx_ratio: float = 8.0  # pretraining rows for each episode (paper: 8); 0: the pass is absent
  clip: float = 0.2  # of the probability ratio (paper: 0.2)
  value_clip: float = 0.0  # of the value's move; 0: off. paper: not stated
  discount: float = 1.0  # paper: no discount
  gae_lambda: float = 0.95  # paper: not stated; Stiennon 2020: 0.95
  temperature: float = 1.0  # of the rollout, in every log-prob of ratio and KL (paper: 1)
  whiten: bool = True  # advantages over the update's valid tokens. paper: not stated
  no_eos_penalty: float = 1.0  # off the score of a response that never ended. paper: not stated
  ema: float = 0.992  # decay of the policy's average, per optimizer step (paper: 0.992)
  prompt_length: int = 32  # longest prompt in tokens
  prompt_cut: str = 'refuse'  # 'refuse' or 'head', see Language
  response_length: int = 32  # longest response in tokens, eos included
  text_length: int = 64  # tokens a packed row of pretraining text
  rollout_chunks: int = 1  # prompts are rolled out in this many pieces, so that the cache fits
  policy_optimizer: Optimizer = PPO_OPTIMIZER  # its steps are updates; the paper prints no peak
  value_optimizer: Optimizer = PPO_OPTIMIZER  # paper C.4: 9e-6
  evaluate_every: int = 0  # updates between evaluations on fixed prompts; 0: at the end only
  evaluation_prompts: tuple[Source, ...] = ()  # the fixed prompts
  evaluation_size: int = 128  # how many of them
  judge: str = ''  # 'module-or-file:function' for win rate and flags in them
  seed: int = 0  # batch order, rollouts, shuffling
  mesh: Mesh = Mesh()


@dataclass(frozen=True)
class Sampled:
  """A way to get responses for an evaluation: a run, its sampling, and what precedes the prompt."""
  run: str = ''  # Language or PPO run
  temperature: float = 1.0  # of sampling; 0: greedy
  best_of: int = 1  # keep the response the reward model scores highest of so many
  prefix: str = ''  # text before every prompt ("GPT, prompted")


@dataclass(frozen=True)
class Evaluate:
  """Held-out prompts, sampled from several models, judged: the numbers of results.json."""
  models: dict[str, Sampled] = field(default_factory=dict)  # name -> how
  against: str = 'sft'  # entry of `models` that every win rate is against
  reward: str = ''  # reward-model run, for proxy scores and best-of-n
  prompts: tuple[Source, ...] = ()  # held-out 'prompts' sources
  text: tuple[Source, ...] = ()  # held-out text for the pretraining loss
  judge: str = ''  # 'module-or-file:function'
  rankings: str | tuple[Source, ...] = ''  # held-out, by every labeler: a run or sources
  prompt_length: int = 32  # longest prompt in tokens
  prompt_cut: str = 'refuse'  # 'refuse' or 'head', see Language
  response_length: int = 32  # longest response in tokens, eos included
  text_length: int = 64  # tokens a packed row of held-out text
  batch: int = 256  # responses sampled at a time
  seed: int = 0  # sampling
  mesh: Mesh = Mesh()


Run = Language | Collect | Reward | PPO | Evaluate


@dataclass(frozen=True)
class Sweep:
  """A PPO run and the values that some of its fields take: a point for each combination, all of
  them measured on the run's evaluation prompts by its judge. Points that differ in their seeds
  alone are told together, with intervals over seeds; so are those whose reward models are draws of
  one (`draw_of`, each with a seed of PPO of its own): the intervals hold for more than one then.
  """
  base: str = 'ppo'  # PPO run of the same file
  grid: tuple[dict[str, tuple], ...] = ()  # field -> values, in all combinations; grids are joined
  text: tuple[Source, ...] = ()  # held-out text: its loss above the start's is the alignment tax
  stand_in: str = ''  # reward-model run that judges where the base run names no judge
  spacing: float = 0.25  # of the square root of KL in nats, between two evaluations along a run
  samples: int = 2  # responses a prompt in each evaluation; pairs of them try the reward model
  best_of: int = 64  # samples a prompt of the start: best-of-n for n up to it; 0: none
  batch: int = 256  # responses sampled at a time
  seed: int = 0  # of the start's samples, which are the same for all points
  draw_of: dict[str, str] = field(default_factory=dict)  # reward run -> what it is a draw of


class BadInput(ValueError):
  """A mistake of the user's, told in one line with file, line, field and fix; exit code 2."""


class OutOfReach(Exception):
  """Work that cannot go on for a reason outside the program, such as a loss that is not finite;
  exit code 1.
  """


def check_model(config: Model) -> None:
  """Raises BadInput for a shape that cannot be."""
  if config.vocabulary < 1:
    raise BadInput('model.vocabulary: expected a positive number of ids')
  if not config.head_size and config.width % config.heads:
    raise BadInput(
      f'model.heads = {config.heads} does not divide model.width = {config.width}')
  if config.heads % (config.kv_heads or config.heads):
    raise BadInput(
      f'model.kv_heads = {config.kv_heads} does not divide model.heads = {config.heads}')
  turned = int((config.head_size or config.width // config.heads) * config.rotary)
  if config.positions == 'rope' and (turned % 2 or not turned):
    raise BadInput(f'rotary positions need an even number of a head, found {turned}')
  if len(config.rope_scaling) not in (0, 1, 4):
    raise BadInput(f'model.rope_scaling = {config.rope_scaling}: expected (factor,) or '
                   '(factor, low, high, context)')
  if config.window < 0 or config.window_every < 1:
    raise BadInput('model.window: expected at least 0, model.window_every at least 1, '
                   f'found {config.window} and {config.window_every}')
  known = {'norm': ('layer', 'rms'), 'positions': ('rope', 'learned'),
           'activation': ('gelu', 'gelu_exact', 'silu'), 'compute': ('float32', 'bfloat16')}
  for name, allowed in known.items():
    if getattr(config, name) not in allowed:
      raise BadInput(f'model.{name} = {getattr(config, name)!r}: expected one of {allowed}')


def check_run(config: Run) -> None:
  """Raises BadInput for numbers of a run that do not go together, as far as it alone tells."""
  def refuse(wrong, text):
    if wrong:
      raise BadInput(text)

  if isinstance(config, PPO):
    episodes, minibatch = config.episodes, config.minibatch
    refuse(episodes % minibatch, f'minibatch {minibatch} does not divide episodes {episodes}')
    refuse(episodes % config.rollout_chunks,
           f'rollout_chunks {config.rollout_chunks} does not divide episodes {episodes}')
    rows, count = round(config.ptx_ratio * episodes, 6), episodes // minibatch
    refuse(rows % count, f'ptx_ratio {config.ptx_ratio}: {rows:g} rows of text cannot be dealt to '
           f'{count} minibatches')
    refuse(config.kl_target and episodes >= 5 * config.kl_horizon,
           f'kl_horizon {config.kl_horizon} must be more than a fifth of episodes {episodes}, '
           'or kl_coef changes its sign')
    refuse(config.kl_target and not config.kl_coef, 'kl_coef 0: kl_target cannot move it')
  if isinstance(config, (Language, Reward, PPO)):
    name = 'minibatch' if isinstance(config, PPO) else 'batch'
    size, microbatch = getattr(config, name), config.microbatch
    refuse(microbatch and size % microbatch,
           f'{name}: microbatch {microbatch} does not divide {size}')
  if isinstance(config, Language):
    refuse(config.select and config.ema,
           'select and ema: the average is of the last step, not of the chosen one')
