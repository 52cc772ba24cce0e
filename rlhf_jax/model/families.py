"""Which tensor of theirs is which of ours: the published decoders as tables.

Enter: the settings of a config.json, or a configs.Model. Leave: the other, and for each parameter
its name there and how it lies. A row reads: our path, their name ({} is the layer), layout. A row
whose parameter a model has not is skipped, so that one table serves a family.
Left out: reading and writing files (huggingface.py).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import configs
from rlhf_jax.configs import BadInput
from rlhf_jax.model import positions, transformer

# ----- how a tensor of theirs lies; ours is [in …, out …], a matrix first in, then out


@dataclass(frozen=True)
class Layout:
  """`shape` of theirs for a shape of ours; `read` (theirs, our shape, part) -> ours; `write` of all
  parts -> theirs.
  """
  shape: Callable[[tuple[int, ...]], tuple[int, ...]]
  read: Callable[[np.ndarray, tuple[int, ...], int], np.ndarray]
  write: Callable[[Sequence[np.ndarray]], np.ndarray]


def _reshaped(shape):
  """Theirs holds the same numbers in the same order."""
  return Layout(shape, lambda theirs, ours, part: theirs.reshape(ours),
                lambda parts: parts[0].reshape(shape(parts[0].shape)))


SAME = _reshaped(lambda s: s)
FLAT = _reshaped(lambda s: (math.prod(s),))  # a bias [heads, H]
ROW = _reshaped(lambda s: (1, *s))  # the scalar head
IN_OUT = _reshaped(lambda s: (math.prod(s[:-1]), s[-1]))  # [heads, H, D] as [in, out]
# [out, in] of torch.nn.Linear: our first axis goes in
LINEAR = Layout(lambda s: (math.prod(s[1:]), s[0]),
                lambda theirs, ours, part: theirs.T.reshape(ours),
                lambda parts: parts[0].reshape(parts[0].shape[0], -1).T)
# [out, in]: our last axis goes out
LINEAR_OUT = Layout(lambda s: (s[-1], math.prod(s[:-1])),
                    lambda theirs, ours, part: theirs.T.reshape(ours),
                    lambda parts: parts[0].reshape(-1, parts[0].shape[-1]).T)
# GPT-2: [in, out], query, key and value side by side
THIRDS = Layout(lambda s: (s[0], 3 * math.prod(s[1:])),
                lambda theirs, ours, part: np.split(theirs, 3, axis=1)[part].reshape(ours),
                lambda parts: np.concatenate([p.reshape(p.shape[0], -1) for p in parts], axis=1))
FLAT_THIRDS = Layout(lambda s: (3 * math.prod(s),),
                     lambda theirs, ours, part: np.split(theirs, 3)[part].reshape(ours),
                     lambda parts: np.concatenate([p.reshape(-1) for p in parts]))
# GPT-NeoX: [out, in], for each head its query, key and value
BY_HEAD = Layout(
  lambda s: (3 * math.prod(s[1:]), s[0]),
  lambda theirs, ours, part: np.moveaxis(
    theirs.reshape(ours[1], 3, ours[2], ours[0])[:, part], -1, 0),
  lambda parts: np.stack([np.moveaxis(p, 0, -1) for p in parts], axis=1).reshape(
    -1, parts[0].shape[0]))
FLAT_BY_HEAD = Layout(lambda s: (3 * math.prod(s),),
                      lambda theirs, ours, part: theirs.reshape(ours[0], 3, ours[1])[:, part],
                      lambda parts: np.stack(parts, axis=1).reshape(-1))


@dataclass(frozen=True)
class Row:
  """One parameter; `part` where several of ours are one of theirs. A name after ~ has no prefix."""
  ours: str
  theirs: str
  layout: Layout
  part: int = 0


# ----- the tables


def _rows(*rows: tuple) -> tuple[Row, ...]:
  return tuple(Row(*row) for row in rows)


GPT2 = _rows(
  ('embed/tokens', 'wte.weight', SAME),
  ('embed/positions', 'wpe.weight', SAME),
  ('blocks/norm_attention/scale', 'h.{}.ln_1.weight', SAME),
  ('blocks/norm_attention/bias', 'h.{}.ln_1.bias', SAME),
  ('blocks/attention/query/kernel', 'h.{}.attn.c_attn.weight', THIRDS, 0),
  ('blocks/attention/key/kernel', 'h.{}.attn.c_attn.weight', THIRDS, 1),
  ('blocks/attention/value/kernel', 'h.{}.attn.c_attn.weight', THIRDS, 2),
  ('blocks/attention/query/bias', 'h.{}.attn.c_attn.bias', FLAT_THIRDS, 0),
  ('blocks/attention/key/bias', 'h.{}.attn.c_attn.bias', FLAT_THIRDS, 1),
  ('blocks/attention/value/bias', 'h.{}.attn.c_attn.bias', FLAT_THIRDS, 2),
  ('blocks/attention/out/kernel', 'h.{}.attn.c_proj.weight', IN_OUT),
  ('blocks/attention/out/bias', 'h.{}.attn.c_proj.bias', SAME),
  ('blocks/norm_mlp/scale', 'h.{}.ln_2.weight', SAME),
  ('blocks/norm_mlp/bias', 'h.{}.ln_2.bias', SAME),
  ('blocks/mlp/up/kernel', 'h.{}.mlp.c_fc.weight', SAME),
  ('blocks/mlp/up/bias', 'h.{}.mlp.c_fc.bias', SAME),
  ('blocks/mlp/down/kernel', 'h.{}.mlp.c_proj.weight', SAME),
  ('blocks/mlp/down/bias', 'h.{}.mlp.c_proj.bias', SAME),
  ('norm/scale', 'ln_f.weight', SAME),
  ('norm/bias', 'ln_f.bias', SAME),
  ('unembed/tokens', '~lm_head.weight', SAME),
  ('head/kernel', '~score.weight', ROW))

NEOX = _rows(
  ('embed/tokens', 'embed_in.weight', SAME),
  ('blocks/norm_attention/scale', 'layers.{}.input_layernorm.weight', SAME),
  ('blocks/norm_attention/bias', 'layers.{}.input_layernorm.bias', SAME),
  ('blocks/attention/query/kernel', 'layers.{}.attention.query_key_value.weight', BY_HEAD, 0),
  ('blocks/attention/key/kernel', 'layers.{}.attention.query_key_value.weight', BY_HEAD, 1),
  ('blocks/attention/value/kernel', 'layers.{}.attention.query_key_value.weight', BY_HEAD, 2),
  ('blocks/attention/query/bias', 'layers.{}.attention.query_key_value.bias', FLAT_BY_HEAD, 0),
  ('blocks/attention/key/bias', 'layers.{}.attention.query_key_value.bias', FLAT_BY_HEAD, 1),
  ('blocks/attention/value/bias', 'layers.{}.attention.query_key_value.bias', FLAT_BY_HEAD, 2),
  ('blocks/attention/out/kernel', 'layers.{}.attention.dense.weight', LINEAR_OUT),
  ('blocks/attention/out/bias', 'layers.{}.attention.dense.bias', SAME),
  ('blocks/norm_mlp/scale', 'layers.{}.post_attention_layernorm.weight', SAME),
  ('blocks/norm_mlp/bias', 'layers.{}.post_attention_layernorm.bias', SAME),
  ('blocks/mlp/up/kernel', 'layers.{}.mlp.dense_h_to_4h.weight', LINEAR),
  ('blocks/mlp/up/bias', 'layers.{}.mlp.dense_h_to_4h.bias', SAME),
  ('blocks/mlp/down/kernel', 'layers.{}.mlp.dense_4h_to_h.weight', LINEAR),
  ('blocks/mlp/down/bias', 'layers.{}.mlp.dense_4h_to_h.bias', SAME),
  ('norm/scale', 'final_layer_norm.weight', SAME),
  ('norm/bias', 'final_layer_norm.bias', SAME),
  ('unembed/tokens', '~embed_out.weight', SAME),
  ('head/kernel', '~score.weight', ROW))

LLAMA = _rows(  # and Qwen2, Qwen3
  ('embed/tokens', 'embed_tokens.weight', SAME),
  ('blocks/norm_attention/scale', 'layers.{}.input_layernorm.weight', SAME),
  ('blocks/attention/query/kernel', 'layers.{}.self_attn.q_proj.weight', LINEAR),
  ('blocks/attention/key/kernel', 'layers.{}.self_attn.k_proj.weight', LINEAR),
  ('blocks/attention/value/kernel', 'layers.{}.self_attn.v_proj.weight', LINEAR),
  ('blocks/attention/query/bias', 'layers.{}.self_attn.q_proj.bias', FLAT),
  ('blocks/attention/key/bias', 'layers.{}.self_attn.k_proj.bias', FLAT),
  ('blocks/attention/value/bias', 'layers.{}.self_attn.v_proj.bias', FLAT),
  ('blocks/attention/query_norm/scale', 'layers.{}.self_attn.q_norm.weight', SAME),
  ('blocks/attention/key_norm/scale', 'layers.{}.self_attn.k_norm.weight', SAME),
  ('blocks/attention/out/kernel', 'layers.{}.self_attn.o_proj.weight', LINEAR_OUT),
  ('blocks/norm_mlp/scale', 'layers.{}.post_attention_layernorm.weight', SAME),
  ('blocks/mlp/up/kernel', 'layers.{}.mlp.up_proj.weight', LINEAR),
  ('blocks/mlp/gate/kernel', 'layers.{}.mlp.gate_proj.weight', LINEAR),
  ('blocks/mlp/down/kernel', 'layers.{}.mlp.down_proj.weight', LINEAR),
  ('norm/scale', 'norm.weight', SAME),
  ('unembed/tokens', '~lm_head.weight', SAME),
  ('head/kernel', '~score.weight', ROW))


# ----- config.json ↔ configs.Model


@dataclass(frozen=True)
class Settings:
  """A config.json whose mistakes are told with file and field."""
  file: Path
  values: Mapping[str, Any]

  def number(self, *names: str, default: float | None = None) -> Any:
    """The first of `names` that is given. Raises BadInput: none is, or it is no number."""
    for name in names:
      value = self.values.get(name)
      if value is not None:
        if isinstance(value, bool) or not isinstance(value, int | float):
          raise BadInput(f'{self.file}: field {name!r}: expected a number, found {value!r}')
        return value
    if default is None:
      raise BadInput(f'{self.file}: field {names[0]!r} is missing')
    return default

  def refuse(self, name: str, allowed: Any, default: Any) -> None:
    """Raises BadInput where a setting has another value than the one the decoder has."""
    value = self.values.get(name, default)
    if value is not None and value != allowed:
      raise BadInput(f'{self.file}: field {name!r} is {value!r}; only {allowed!r} is known')

  def activation(self, name: str, default: str) -> str:
    """Ours for an activation of theirs."""
    value = self.values.get(name) or default
    if value not in _ACTIVATIONS:
      raise BadInput(f'{self.file}: field {name!r}: {value!r} is not known; known are '
                     f'{", ".join(_ACTIVATIONS)}')
    return _ACTIVATIONS[value]

  def rope(self, base: str = 'rope_theta') -> dict[str, Any]:
    """Rotary fields of configs.Model, from `rope_parameters` or the older fields."""
    # Of both transformers takes the older name's, which is what people add by hand.
    given = self.values.get('rope_scaling') or self.values.get('rope_parameters') or {}
    if not isinstance(given, Mapping):
      raise BadInput(f'{self.file}: field \'rope_scaling\': expected an object, found {given!r}')
    inner = Settings(self.file, given)
    kind = given.get('rope_type', given.get('type', 'default'))
    if kind not in _ROPES:
      raise BadInput(f'{self.file}: rope type {kind!r} is not known; known are {", ".join(_ROPES)}')
    theta = inner.number('rope_theta', default=self.number(base, 'rope_theta', default=10000.0))
    return {'rope_theta': float(theta),
            'rope_scaling': tuple(float(inner.number(name)) for name in _ROPES[kind])}


_ACTIVATIONS = {'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_exact',
                'silu': 'silu', 'swish': 'silu'}
_NAMES = {'gelu': 'gelu_new', 'gelu_exact': 'gelu', 'silu': 'silu'}
_ROPES = {'default': (), 'linear': ('factor',),
          'llama3': ('factor', 'low_freq_factor', 'high_freq_factor',
                     'original_max_position_embeddings')}


def _rope_settings(model: configs.Model) -> dict[str, Any]:
  kind = next(name for name, fields in _ROPES.items() if len(fields) == len(model.rope_scaling))
  numbers = dict(zip(_ROPES[kind], model.rope_scaling, strict=True))
  if 'original_max_position_embeddings' in numbers:
    numbers['original_max_position_embeddings'] = int(numbers['original_max_position_embeddings'])
  return {'rope_theta': model.rope_theta,
          'rope_scaling': {'rope_type': kind, **numbers} if numbers else None}


def _read_gpt2(given: Settings) -> configs.Model:
  given.refuse('scale_attn_weights', True, True)
  given.refuse('scale_attn_by_inverse_layer_idx', False, False)
  given.refuse('add_cross_attention', False, False)
  width = given.number('n_embd')
  return configs.Model(
    layers=given.number('n_layer'), width=width, heads=given.number('n_head'),
    mlp=given.number('n_inner', default=4 * width), vocabulary=given.number('vocab_size'),
    context=given.number('n_positions', 'n_ctx'), positions='learned',
    norm_epsilon=given.number('layer_norm_epsilon', default=1e-5),
    activation=given.activation('activation_function', 'gelu_new'),
    tied=given.values.get('tie_word_embeddings', True))


def _write_gpt2(model: configs.Model) -> dict[str, Any]:
  return {
    'n_layer': model.layers, 'n_embd': model.width, 'n_head': model.heads,
    'n_inner': model.mlp or 4 * model.width, 'vocab_size': model.vocabulary,
    'n_positions': model.context, 'layer_norm_epsilon': model.norm_epsilon,
    'activation_function': _NAMES[model.activation], 'tie_word_embeddings': model.tied,
    'resid_pdrop': 0.0, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0}


def _read_neox(given: Settings) -> configs.Model:
  given.refuse('attention_bias', True, True)
  rope = given.rope('rotary_emb_base')
  inner = Settings(given.file, given.values.get('rope_parameters') or {})
  share = inner.number('partial_rotary_factor', default=given.number(
    'rotary_pct', 'partial_rotary_factor', default=0.25))
  return configs.Model(
    layers=given.number('num_hidden_layers'), width=given.number('hidden_size'),
    heads=given.number('num_attention_heads'), mlp=given.number('intermediate_size'),
    vocabulary=given.number('vocab_size'), context=given.number('max_position_embeddings'),
    norm_epsilon=given.number('layer_norm_eps', default=1e-5), rotary=float(share), **rope,
    activation=given.activation('hidden_act', 'gelu'),
    parallel=given.values.get('use_parallel_residual', True),
    tied=given.values.get('tie_word_embeddings', False))


def _write_neox(model: configs.Model) -> dict[str, Any]:
  return {
    'num_hidden_layers': model.layers, 'hidden_size': model.width,
    'num_attention_heads': model.heads, 'intermediate_size': model.mlp or 4 * model.width,
    'vocab_size': model.vocabulary, 'max_position_embeddings': model.context,
    'layer_norm_eps': model.norm_epsilon, 'rotary_pct': model.rotary,
    'rotary_emb_base': model.rope_theta, **_rope_settings(model),
    'hidden_act': _NAMES[model.activation], 'use_parallel_residual': model.parallel,
    'attention_bias': True, 'tie_word_embeddings': model.tied, 'attention_dropout': 0.0,
    'hidden_dropout': 0.0}


def _llama_reader(**fixed: Any) -> Callable[[Settings], configs.Model]:
  def read(given: Settings) -> configs.Model:
    given.refuse('mlp_bias', False, False)
    given.refuse('use_sliding_window', False, False)
    if not fixed.get('qkv_bias'):  # Qwen2 has them whatever the field says
      given.refuse('attention_bias', False, False)
    heads, width = given.number('num_attention_heads'), given.number('hidden_size')
    return configs.Model(
      layers=given.number('num_hidden_layers'), width=width, heads=heads,
      kv_heads=given.number('num_key_value_heads', default=heads),
      head_size=given.number('head_dim', default=width // heads),
      mlp=given.number('intermediate_size'), vocabulary=given.number('vocab_size'),
      context=given.number('max_position_embeddings'), norm='rms',
      norm_epsilon=given.number('rms_norm_eps', default=1e-6), gated=True, bias=False,
      activation=given.activation('hidden_act', 'silu'), **given.rope(),
      tied=given.values.get('tie_word_embeddings', False), **fixed)
  return read


def _write_llama(model: configs.Model) -> dict[str, Any]:
  return {
    'num_hidden_layers': model.layers, 'hidden_size': model.width,
    'num_attention_heads': model.heads, 'num_key_value_heads': transformer.kv_heads(model),
    'head_dim': positions.head_size(model), 'intermediate_size': model.mlp or 4 * model.width,
    'vocab_size': model.vocabulary, 'max_position_embeddings': model.context,
    'rms_norm_eps': model.norm_epsilon, **_rope_settings(model),
    'hidden_act': _NAMES[model.activation], 'attention_bias': False, 'mlp_bias': False,
    'tie_word_embeddings': model.tied, 'attention_dropout': 0.0}


@dataclass(frozen=True)
class Family:
  """An architecture of transformers. `fixed`: the fields of configs.Model that it has no choice in;
  `buffers`: patterns of tensors in old files that are no parameters.
  """
  name: str
  language: str
  reward: str
  prefix: str
  unembedding: str
  table: tuple[Row, ...]
  read: Callable[[Settings], configs.Model]
  write: Callable[[configs.Model], dict[str, Any]]
  fixed: Mapping[str, Any]
  buffers: tuple[str, ...] = (r'rotary_emb\.inv_freq',)

  def differs(self, model: configs.Model) -> str:
    """Why a model is none of this family; '' if it is one."""
    model = dataclasses.replace(model, kv_heads=transformer.kv_heads(model),
                                head_size=positions.head_size(model))
    for name, wanted in self.fixed.items():
      expected = wanted(model) if callable(wanted) else wanted
      if getattr(model, name) != expected:
        return f'{name} is {getattr(model, name)!r}, not {expected!r}'
    return ''


_ALL_HEADS = {'kv_heads': lambda m: m.heads, 'head_size': lambda m: m.width // m.heads}
_GPT = {'norm': 'layer', 'gated': False, 'bias': True, 'qk_norm': False, 'window': 0, **_ALL_HEADS}
_LLAMA = {'norm': 'rms', 'gated': True, 'bias': False, 'positions': 'rope', 'rotary': 1.0,
          'parallel': False, 'window': 0}
FAMILIES = (
  Family('gpt2', 'GPT2LMHeadModel', 'GPT2ForSequenceClassification', 'transformer.',
         'lm_head.weight', GPT2, _read_gpt2, _write_gpt2,
         {'positions': 'learned', 'parallel': False, **_GPT},
         (r'attn\.bias', r'attn\.masked_bias')),
  Family('gpt_neox', 'GPTNeoXForCausalLM', 'GPTNeoXForSequenceClassification', 'gpt_neox.',
         'embed_out.weight', NEOX, _read_neox, _write_neox, {'positions': 'rope', **_GPT},
         (r'attention\.bias', r'attention\.masked_bias', r'rotary_emb\.inv_freq')),
  Family('llama', 'LlamaForCausalLM', 'LlamaForSequenceClassification', 'model.',
         'lm_head.weight', LLAMA, _llama_reader(), _write_llama,
         {'qkv_bias': False, 'qk_norm': False, **_LLAMA}),
  Family('qwen2', 'Qwen2ForCausalLM', 'Qwen2ForSequenceClassification', 'model.',
         'lm_head.weight', LLAMA, _llama_reader(qkv_bias=True), _write_llama,
         {'qkv_bias': True, 'qk_norm': False, **_LLAMA,
          'head_size': lambda m: m.width // m.heads}),
  Family('qwen3', 'Qwen3ForCausalLM', 'Qwen3ForSequenceClassification', 'model.',
         'lm_head.weight', LLAMA, _llama_reader(qk_norm=True), _write_llama,
         {'qkv_bias': False, 'qk_norm': True, **_LLAMA}))
