"""The one decoder: GPT-2/3 to Llama by configuration, with an unembedding or a scalar head.

Enter: a configs.Model, a tree of parameters, tokens. Leave: final hidden states, and the keys and
values of every layer.
Letters: B batch, T query time, S key time, D width, N heads, G key/value heads, H head size, F mlp,
V vocabulary rows.
Left out: mixture of experts, encoder-decoder, fused attention kernels (the mask is explicit, so
padding is free to be anywhere).

Layers are stacked [L, ...] whether they are scanned or unrolled, so checkpoints do not depend on
that choice.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax import configs
from rlhf_jax.model.sharding import constrain

Params = Any
TABLE_MULTIPLE = (
  64  # rows of the embedding table are padded to this, so that it divides over a mesh
)


def head_size(config: configs.Model) -> int:
  """H: config.head_size, or width / heads."""
  return config.head_size or config.width // config.heads


def kv_heads(config: configs.Model) -> int:
  """G: config.kv_heads, or as many as query heads."""
  return config.kv_heads or config.heads


def table_rows(config: configs.Model) -> int:
  """V: ids rounded up to a multiple of 64; the rows above config.vocabulary have probability 0."""
  return -(-config.vocabulary // TABLE_MULTIPLE) * TABLE_MULTIPLE


def sizes(config: configs.Model) -> dict[str, int]:
  """The sizes that a mesh must divide, as sharding.check_divides takes them."""
  return {
    'model.width (width)': config.width, 'model.heads (heads)': config.heads,
    'model.kv_heads (kv_heads)': kv_heads(config),
    'model.mlp (mlp)': config.mlp or 4 * config.width,
    'rows of the table (vocabulary)': table_rows(config)}


def check(config: configs.Model) -> None:
  """Raises BadInput for a shape that cannot be."""
  if config.vocabulary < 1:
    raise configs.BadInput('model.vocabulary: expected a positive number of ids')
  if not config.head_size and config.width % config.heads:
    raise configs.BadInput(
      f'model.heads = {config.heads} does not divide model.width = {config.width}')
  if config.heads % kv_heads(config):
    raise configs.BadInput(
      f'model.kv_heads = {config.kv_heads} does not divide model.heads = {config.heads}')
  if config.positions == 'rope' and head_size(config) % 2:
    raise configs.BadInput(f'rotary positions need an even head size, found {head_size(config)}')
  for name, allowed in (('norm', ('layer', 'rms')), ('positions', ('rope', 'learned')),
                        ('activation', ('gelu', 'gelu_exact', 'silu')), ('compute', ('float32',
                                                                                     'bfloat16'))):
    if getattr(config, name) not in allowed:
      raise configs.BadInput(f'model.{name} = {getattr(config, name)!r}: expected one of {allowed}')


# ----- modules


@flax.struct.dataclass
class Named(nn.meta.AxisMetadata):
  """A parameter with its logical axes; unlike nn.Partitioned it never constrains the sharding."""
  value: Any
  names: tuple[str | None, ...] = flax.struct.field(pytree_node=False)

  def unbox(self):
    return self.value

  def replace_boxed(self, value):
    return self.replace(value=value)

  def add_axis(self, index, params):
    return self.replace(names=(*self.names[:index], None, *self.names[index:]))

  def remove_axis(self, index, params):
    return self.replace(names=(*self.names[:index], *self.names[index + 1:]))


def named(initializer: Callable, names: tuple[str | None, ...]) -> Callable:
  """`initializer`, its result boxed with the logical axes."""
  return lambda *arguments: Named(initializer(*arguments), names)


class Norm(nn.Module):
  """Layer norm or root-mean-square norm, computed in float32."""

  config: configs.Model

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', named(nn.initializers.ones, (None,)), (x.shape[-1],))
    y = x.astype(jnp.float32)
    if self.config.norm == 'layer':
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.norm_epsilon) *
         scale)
    if self.config.norm == 'layer' and self.config.bias:
      y = y + self.param('bias', named(nn.initializers.zeros, (None,)),
                         (x.shape[-1],))
    return y.astype(x.dtype)


class Project(nn.Module):
  """x[..., in] · kernel[in, *out] + bias, in the compute type."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  inputs: int  # how many trailing axes of x are contracted
  std: float
  bias: bool

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', named(nn.initializers.normal(self.std), self.axes),
                        self.shape)
    # Two-dimensional on purpose: XLA on CPU is up to 3 x slower at dots that contract (batch,
    # time).
    lead, inner = x.shape[:x.ndim - self.inputs], math.prod(self.shape[:self.inputs])
    y = x.reshape(-1, inner) @ kernel.astype(x.dtype).reshape(inner, -1)
    y = y.reshape(*lead, *self.shape[self.inputs:])
    if self.bias:
      bias = self.param('bias', named(nn.initializers.zeros,
                                                     self.axes[self.inputs:]),
                        self.shape[self.inputs:])
      y = y + bias.astype(x.dtype)
    return y


def rotate(x: chex.Array, angles: chex.Array) -> chex.Array:
  """Rotary positions, half-split form: x [B, T, heads, H], angles [B, T, H/2]."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin],
                         axis=-1).astype(x.dtype)


class Attention(nn.Module):
  """Masked attention over the given keys, or over a cache that takes this call's keys at
  `index`.
  """

  config: configs.Model

  @nn.compact
  def __call__(self, x, angles, mask, cache, index):
    config = self.config
    size, groups, std = head_size(config), kv_heads(config), config.init_std
    project = functools.partial(Project, inputs=1, std=std, bias=config.bias)
    query = project((config.width, config.heads, size), ('width', 'heads', None), name='query')(x)
    key = project((config.width, groups, size), ('width', 'kv_heads', None), name='key')(x)
    value = project((config.width, groups, size), ('width', 'kv_heads', None), name='value')(x)
    if config.positions == 'rope':
      query, key = rotate(query, angles), rotate(key, angles)
    if cache is not None:
      key = jax.lax.dynamic_update_slice_in_dim(cache[0], key.astype(cache[0].dtype), index, axis=1)
      value = jax.lax.dynamic_update_slice_in_dim(cache[1], value.astype(cache[1].dtype), index,
                                                  axis=1)
    # Heads stay on `tensor` through scores, weights and output; otherwise the backward pass
    # reshards float32 scores.
    query = query.reshape(*query.shape[:2], groups, config.heads // groups, size)
    scores = jnp.einsum('btgnh,bsgh->bgnts', query, key, preferred_element_type=jnp.float32)
    scores = constrain(scores * size**-0.5, 'batch', 'kv_heads', None, None, None)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
    weights = constrain(weights.astype(x.dtype), 'batch', 'kv_heads', None, None, None)
    out = jnp.einsum('bgnts,bsgh->btgnh', weights, value).reshape(*x.shape[:2], config.heads, size)
    out = constrain(out, 'batch', None, 'heads', None)
    out = Project((config.heads, size, config.width), ('heads', None, 'width'), 2,
                  std / (2 * config.layers)**0.5, config.bias, name='out')(out)
    return out, (key, value)


class Mlp(nn.Module):
  """Two projections with an activation between, the first gated where the config says so."""

  config: configs.Model

  @nn.compact
  def __call__(self, x):
    config = self.config
    hidden = config.mlp or 4 * config.width
    activation = {
      'gelu': functools.partial(jax.nn.gelu, approximate=True), 'silu': jax.nn.silu,
      'gelu_exact': functools.partial(jax.nn.gelu, approximate=False)
    }[config.activation]
    project = functools.partial(Project, inputs=1, std=config.init_std, bias=config.bias)
    up = project((config.width, hidden), ('width', 'mlp'), name='up')(x)
    if config.gated:
      up = up * activation(project((config.width, hidden), ('width', 'mlp'), name='gate')(x))
    else:
      up = activation(up)
    return Project((hidden, config.width), ('mlp', 'width'), 1,
                   config.init_std / (2 * config.layers)**0.5, config.bias, name='down')(up)


class Block(nn.Module):
  """Pre-norm attention and MLP, with residual dropout."""

  config: configs.Model

  @nn.compact
  def __call__(self, x, angles, mask, cache=None, index=0, dropout=False):
    drop = nn.Dropout(self.config.dropout, deterministic=not dropout)
    out, cache = Attention(self.config, name='attention')(Norm(self.config,
                                                               name='norm_attention')(x), angles,
                                                          mask, cache, index)
    x = x + drop(out)
    x = x + drop(Mlp(self.config, name='mlp')(Norm(self.config, name='norm_mlp')(x)))
    return constrain(x, 'batch', None, None), cache


# ----- parameters


def _parts(config: configs.Model, scalar: bool, key: chex.PRNGKey) -> Params:
  """All parameters as flax boxes that carry the logical axes."""
  keys = jax.random.split(key, 4)
  x = jnp.zeros((1, 2, config.width))
  angles, mask = jnp.zeros((1, 2, head_size(config) // 2)), jnp.ones((1, 2, 2), bool)
  one = lambda k: Block(config).init(k, x, angles, mask)['params']
  blocks = jax.vmap(one)(jax.random.split(keys[0], config.layers))
  blocks = jax.tree.map(lambda b: b.replace(names=(None, *b.names)), blocks,
                        is_leaf=lambda b: isinstance(b, Named))
  normal = nn.initializers.normal(config.init_std)
  table = named(normal, ('vocabulary', None))
  params = {
    'embed': {'tokens': table(keys[1], (table_rows(config), config.width))}, 'blocks': blocks,
    'norm': Norm(config).init(keys[0], x)['params']
  }
  if config.positions == 'learned':
    params['embed']['positions'] = named(normal, (None, 'width'))(
      keys[2], (config.context, config.width))
  if scalar:  # std 1/√(D+1): Stiennon et al. 2020
    head = nn.initializers.normal((config.width + 1)**-0.5)
    params['head'] = {
      'kernel': named(head, (None,))(keys[3], (config.width,)),
      'bias': named(nn.initializers.zeros, ())(keys[3], ())
    }
  elif not config.tied:
    params['unembed'] = {'tokens': table(keys[3], (table_rows(config), config.width))}
  return params


def init(config: configs.Model, key: chex.PRNGKey, scalar: bool = False) -> Params:
  """Random float32 parameters; `scalar` puts a head of one number in the place of the
  unembedding.
  """
  check(config)
  return nn.meta.unbox(_parts(config, scalar, key))


def axes(config: configs.Model, scalar: bool = False) -> Any:
  """The logical axis names of every parameter: the same tree as init(), tuples in the place of
  arrays.
  """
  boxed = jax.eval_shape(functools.partial(_parts, config, scalar), jax.random.key(0))
  return jax.tree.map(lambda b: b.names, boxed, is_leaf=lambda b: isinstance(b, Named))


def with_scalar_head(config: configs.Model, params: Params, key: chex.PRNGKey,
                     zero: bool = False) -> Params:
  """The trunk of a language model with a fresh scalar head, std 1/√(D+1) or zero (a value head
  without a reward model).
  """
  scale = 0.0 if zero else (config.width + 1)**-0.5
  trunk = {k: v for k, v in params.items() if k not in ('unembed', 'head')}
  return trunk | {
    'head': {'kernel': scale * jax.random.normal(key, (config.width,)), 'bias': jnp.zeros(())}
  }


def unembedding(params: Params) -> chex.Array:
  """[V, D]: the table of a tied model, or its own."""
  return params['unembed']['tokens'] if 'unembed' in params else params['embed']['tokens']


# ----- forward


def _angles(config: configs.Model, positions: chex.Array) -> chex.Array:
  size = head_size(config)
  frequencies = config.rope_theta**(-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
  return positions.astype(jnp.float32)[..., None] * frequencies


def run_blocks(config: configs.Model, params: Params, tokens: chex.Array, positions: chex.Array,
               mask: chex.Array, cache: Any = None, index: int | chex.Array = 0,
               dropout_key: chex.PRNGKey | None = None,
               keep_cache: bool = False) -> tuple[chex.Array, Any]:
  """Embeds, runs every block and the final norm.

  Args:
    tokens, positions: int [B, T].
    mask: bool [B, T, S], true where a query may look.
    cache: per layer (key, value) of [B, S, G, H] to write into at `index`, or None: the queries'
      own keys.
    keep_cache: return the keys and values when `cache` is None (prefill).

  Returns:
    hidden [B, T, D] in the compute type; the layers' keys and values (a list, or stacked [L, ...]
    if config.scan).
  """
  dtype = jnp.dtype(config.compute)
  x = params['embed']['tokens'].astype(dtype)[tokens]
  if config.positions == 'learned':
    x = x + params['embed']['positions'].astype(dtype)[positions]
  x = constrain(x, 'batch', None, None)
  angles = _angles(config, positions)
  dropout = dropout_key is not None and config.dropout > 0
  layer_keys = jax.random.split(dropout_key, config.layers) if dropout else None
  keep = keep_cache or cache is not None

  def block(x, layer):
    weights, layer_cache, key = layer
    x, made = Block(config).apply({'params': weights}, x, angles, mask, layer_cache, index, dropout,
                                  rngs={'dropout': key} if dropout else None)
    return x, made if keep else None

  if config.remat and not keep:
    block = jax.checkpoint(block)
  if config.scan:
    x, made = jax.lax.scan(block, x, (params['blocks'], cache, layer_keys))
  else:
    made = []
    for i in range(config.layers):
      weights = jax.tree.map(lambda p, i=i: p[i], params['blocks'])
      x, layer_made = block(
        x, (weights, None if cache is None else cache[i], layer_keys[i] if dropout else None))
      made.append(layer_made)
  return Norm(config).apply({'params': params['norm']}, x), made if keep else None


def hidden(config: configs.Model, params: Params, tokens: chex.Array, valid: chex.Array,
           dropout_key: chex.PRNGKey | None = None) -> chex.Array:
  """Final hidden states [B, T, D] of whole sequences; padding (valid false) may be on either side.

  Positions count valid tokens, so left padding changes nothing.
  """
  chex.assert_equal_shape([tokens, valid])
  positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
  return run_blocks(config, params, tokens, positions, causal & valid[:, None, :],
                    dropout_key=dropout_key)[0]


def scalars(params: Params, hidden_states: chex.Array) -> chex.Array:
  """The scalar head at every position: float32 [..., T]."""
  head = params['head']
  return hidden_states.astype(jnp.float32) @ head['kernel'] + head['bias']
