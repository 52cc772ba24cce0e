"""Small random models by transformers and what it says of them: what test_huggingface.py holds
ours to.

  python tests/model/huggingface/record.py      (needs the extra `parity`)

Writes FAMILY-KIND/{config.json, model.safetensors, expected.npz} beside this file. Weights are
noise, norms and biases included, so that nothing is right by being 0 or 1.
"""

import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
VOCABULARY, CONTEXT, NEW = 50, 40, 8
_COMMON = {'vocab_size': VOCABULARY, 'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 0}
_LLAMA = _COMMON | {
  'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4,
  'num_key_value_heads': 2, 'max_position_embeddings': CONTEXT}
_LLAMA3_ROPE = {'rope_type': 'llama3', 'factor': 4.0, 'low_freq_factor': 1.0,
                'high_freq_factor': 4.0, 'original_max_position_embeddings': 16}
MODELS = {  # name -> (class of its config, settings)
  'gpt2': ('GPT2Config', _COMMON | {
    'n_embd': 16, 'n_layer': 2, 'n_head': 2, 'n_positions': CONTEXT}),
  'gpt_neox': ('GPTNeoXConfig', _COMMON | {
    'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 2,
    'max_position_embeddings': CONTEXT, 'rotary_pct': 0.25}),
  'gpt_neox_serial': ('GPTNeoXConfig', _COMMON | {
    'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 2,
    'max_position_embeddings': CONTEXT, 'rotary_pct': 1.0, 'use_parallel_residual': False,
    'hidden_act': 'gelu_new', 'tie_word_embeddings': True}),
  'llama': ('LlamaConfig', _LLAMA | {'rope_theta': 500.0}),
  'llama3': ('LlamaConfig', _LLAMA | {'rope_scaling': _LLAMA3_ROPE, 'tie_word_embeddings': True}),
  'qwen2': ('Qwen2Config', _LLAMA | {'rope_theta': 1e6}),
  'qwen3': ('Qwen3Config', _LLAMA | {'head_dim': 8, 'tie_word_embeddings': True}),
}
KINDS = {'policy': 'AutoModelForCausalLM', 'reward': 'AutoModelForSequenceClassification'}


def inputs() -> tuple[np.ndarray, np.ndarray]:
  """(tokens, valid) [3, 12]; rows 1 and 2 are left-padded."""
  tokens = np.random.default_rng(0).integers(3, VOCABULARY, (3, 12))
  valid = np.ones((3, 12), bool)
  valid[1, :5] = valid[2, :1] = False
  return np.where(valid, tokens, 0), valid


def make(name: str, kind: str):
  """A model of transformers with random weights, in evaluation mode."""
  import torch
  import transformers
  config_class, settings = MODELS[name]
  config = getattr(transformers, config_class)(**settings, num_labels=1 if kind == 'reward' else 2)
  torch.manual_seed(sum(map(ord, name + kind)))
  model = getattr(transformers, KINDS[kind]).from_config(config, attn_implementation='eager')
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.3 * torch.randn_like(parameter)
  return model.eval()


def expected(model, kind: str) -> dict[str, np.ndarray]:
  """What transformers says: logits [3, 12, V] or scores [3]; greedy continuations of a policy."""
  import torch
  tokens, valid = map(torch.tensor, inputs())
  mask = valid.long()
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  with torch.no_grad():
    logits = model(tokens, attention_mask=mask, position_ids=positions).logits.numpy()
    if kind == 'reward':
      return {'scores': logits[:, 0]}
    out = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=NEW,
                         eos_token_id=VOCABULARY + 1, pad_token_id=0)
  return {'logits': logits, 'greedy': out[:, tokens.shape[1]:].numpy()}


def main() -> None:
  """Records every model."""
  for name in MODELS:
    for kind in KINDS:
      model, folder = make(name, kind), HERE / f'{name}-{kind}'
      model.save_pretrained(folder)
      (folder / 'generation_config.json').unlink(missing_ok=True)
      np.savez_compressed(folder / 'expected.npz', **expected(model, kind))


if __name__ == '__main__':
  main()
