"""The one decoder: GPT-2/3 to Llama by configuration, with an unembedding or a scalar head.

Enter: a configs.Model, a tree of parameters, tokens. Leave: final hidden states, and the keys and
values of every layer.
Letters: B batch, T query time, S key time, D width, N heads, G key/value heads, H head size, F mlp,
V vocabulary rows.
Left out: mixture of experts, encoder-decoder.

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
from rlhf_jax.model.attention import attend, causal, has_kernel
from rlhf_jax.model.norms import normalize
from rlhf_jax.model.positions import head_size, rotary_size, rotate, turns
from rlhf_jax.model.sharding import constrain, looked_up

Params = Any
TABLE_MULTIPLE = 64  # the embedding table's rows are padded to it: it divides over a mesh


def kv_heads(config: configs.Model) -> int:
  """G: config.kv_heads, or as many as query heads."""
  return config.kv_heads or config.heads


def table_rows(config: configs.Model) -> int:
  """V: ids rounded up to a multiple of 64; the rows above config.vocabulary have probability 0."""
  return -(-config.vocabulary // TABLE_MULTIPLE) * TABLE_MULTIPLE


def sizes(config: configs.Model) -> dict[str, int]:
  """The sizes that a mesh must divide, as meshes.check_divides takes them."""
  return {
    'model.width (width)': config.width, 'model.heads (heads)': config.heads,
    'model.kv_heads (kv_heads)': kv_heads(config),
    'model.mlp (mlp)': config.mlp or 4 * config.width,
    'rows of the table (vocabulary)': table_rows(config)}


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
    y = normalize(x.astype(jnp.float32), scale, self.config.norm == 'layer',
                  self.config.norm_epsilon)
    if self.config.norm == 'layer' and self.config.bias:
      y = y + self.param('bias', named(nn.initializers.zeros, (None,)), (x.shape[-1],))
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
    kernel = self.param('kernel', named(nn.initializers.normal(self.std), self.axes), self.shape)
    # Two-dimensional on purpose: XLA on CPU is up to 3 x slower at dots over (batch, time).
    lead, inner = x.shape[:x.ndim - self.inputs], math.prod(self.shape[:self.inputs])
    y = x.reshape(-1, inner) @ kernel.astype(x.dtype).reshape(inner, -1)
    y = y.reshape(*lead, *self.shape[self.inputs:])
    if self.bias:
      bias = self.param('bias', named(nn.initializers.zeros, self.axes[self.inputs:]),
                        self.shape[self.inputs:])
      y = y + jnp.broadcast_to(bias, y.shape).astype(x.dtype)  # cast last: a float32 gradient
    return y


def every(x: chex.Array) -> chex.Array:
  """All positions of [B, T, …]: what `take` is where nobody asks for fewer."""
  return x


class Attention(nn.Module):
  """Masked attention over the given keys, over a cache that takes this call's keys at `index`, or
  with index None over keys that several rows have before their own.

  Keys and values are [B, G, S, H], in the cache too: no step of decoding has to transpose them.
  `take` says for which positions of x an output is wanted; without a mask a kernel is causal.
  """

  config: configs.Model

  @nn.compact
  def __call__(self, x, turn, mask, cache, index, take=every):
    config = self.config
    size, groups, std = head_size(config), kv_heads(config), config.init_std
    project = functools.partial(Project, inputs=1, std=std, bias=config.bias or config.qkv_bias)
    ask = every if mask is None else take
    asked = ask(x)
    query = project((config.width, config.heads, size), ('width', 'heads', None),
                    name='query')(asked)
    key = project((config.width, groups, size), ('width', 'kv_heads', None), name='key')(x)
    value = project((config.width, groups, size), ('width', 'kv_heads', None), name='value')(x)
    if config.qk_norm:
      query = Norm(config, name='query_norm')(query)
      key = Norm(config, name='key_norm')(key)
    if config.positions == 'rope':
      query, key = rotate(query, *map(ask, turn)), rotate(key, *turn)
    if mask is None:
      given = (constrain(x, 'batch', None, 'heads', None) for x in (query, key, value))
      out, made = take(causal(*given)), None
    else:
      key, value = made = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [B, G, S, H]
      if cache is not None and index is None:  # what stands before several rows
        before = lambda c: jnp.repeat(c, x.shape[0] // c.shape[0], axis=0)
        key, value = (jnp.concatenate([before(old), new], axis=2)
                      for old, new in zip(cache, made, strict=True))
      elif cache is not None:
        layer, slot = index if isinstance(index, tuple) else ((), index)
        put = lambda c, new: jax.lax.dynamic_update_slice(
          c, new.astype(c.dtype).reshape(*[1] * len(layer), *new.shape), (*layer, 0, 0, slot, 0))
        made = put(cache[0], key), put(cache[1], value)
        whole = made if not layer else [
          jax.lax.dynamic_index_in_dim(c, *layer, keepdims=False) for c in made]
        key, value = (c[:, :, :mask.shape[2]] for c in whole)
      # Scanned layers stay whole: what pieces are worth on the chips those are for is not known.
      known = take is every and (cache is None or index is None) and not config.scan
      out = attend(query, key, value, take(mask), key.shape[2] - x.shape[1] if known else None)
    out = constrain(out, 'batch', None, 'heads', None)
    out = Project((config.heads, size, config.width), ('heads', None, 'width'), 2,
                  std / (2 * config.layers)**0.5, config.bias, name='out')(out)
    return out, made


class Mlp(nn.Module):
  """Two projections with an activation between, the first gated where the config says so."""

  config: configs.Model

  @nn.compact
  def __call__(self, x):
    config = self.config
    hidden = config.mlp or 4 * config.width
    activation = jax.checkpoint({  # what it saves of itself for the backward pass costs more
      'gelu': functools.partial(jax.nn.gelu, approximate=True), 'silu': jax.nn.silu,
      'gelu_exact': functools.partial(jax.nn.gelu, approximate=False)
    }[config.activation])
    project = functools.partial(Project, inputs=1, std=config.init_std, bias=config.bias)
    up = project((config.width, hidden), ('width', 'mlp'), name='up')(x)
    if config.gated:
      up = up * activation(project((config.width, hidden), ('width', 'mlp'), name='gate')(x))
    else:
      up = activation(up)
    return Project((hidden, config.width), ('mlp', 'width'), 1,
                   config.init_std / (2 * config.layers)**0.5, config.bias, name='down')(up)


class Block(nn.Module):
  """Pre-norm attention and MLP, one after the other or side by side, with residual dropout; for all
  positions of x, or those that `take` picks.
  """

  config: configs.Model

  @nn.compact
  def __call__(self, x, turn, mask, cache=None, index=0, dropout=False, take=every):
    drop = nn.Dropout(self.config.dropout, deterministic=not dropout)
    norm_mlp, mlp = Norm(self.config, name='norm_mlp'), Mlp(self.config, name='mlp')
    read = Norm(self.config, name='norm_attention')(x)
    out, cache = Attention(self.config, name='attention')(read, turn, mask, cache, index, take)
    x = take(x)
    if self.config.parallel:
      x = x + drop(out) + drop(mlp(norm_mlp(x)))
    else:
      x = x + drop(out)
      x = x + drop(mlp(norm_mlp(x)))
    return constrain(x, 'batch', None, None), cache


# ----- parameters


def _parts(config: configs.Model, scalar: bool, key: chex.PRNGKey) -> Params:
  """All parameters as flax boxes that carry the logical axes."""
  keys = jax.random.split(key, 4)
  x = jnp.zeros((1, 2, config.width))
  turn, mask = (jnp.ones((1, 2, 1, rotary_size(config) // 2)),) * 2, jnp.ones((1, 2, 2), bool)
  one = lambda k: Block(config).init(k, x, turn, mask)['params']
  blocks = jax.vmap(one)(jax.random.split(keys[0], config.layers))
  blocks = jax.tree.map(lambda b: b.replace(names=(None, *b.names)), blocks,
                        is_leaf=lambda b: isinstance(b, Named))
  normal = nn.initializers.normal(config.init_std)
  table = named(normal, ('vocabulary', 'width'))
  params = {
    'embed': {'tokens': table(keys[1], (table_rows(config), config.width))}, 'blocks': blocks,
    'norm': Norm(config).init(keys[0], x)['params']}
  if config.positions == 'learned':
    params['embed']['positions'] = named(normal, (None, 'width'))(
      keys[2], (config.context, config.width))
  if scalar:  # std 1/√(D+1): Stiennon et al. 2020
    head = nn.initializers.normal((config.width + 1)**-0.5)
    params['head'] = {
      'kernel': named(head, (None,))(keys[3], (config.width,)),
      'bias': named(nn.initializers.zeros, ())(keys[3], ())}
  elif not config.tied:
    params['unembed'] = {'tokens': table(keys[3], (table_rows(config), config.width))}
  return params


def init(config: configs.Model, key: chex.PRNGKey, scalar: bool = False) -> Params:
  """Random float32 parameters; with `scalar` a head of one number, not the unembedding."""
  configs.check_model(config)
  return nn.meta.unbox(_parts(config, scalar, key))


def axes(config: configs.Model, scalar: bool = False) -> Any:
  """The logical axis names of every parameter: init()'s tree with tuples in place of arrays."""
  boxed = jax.eval_shape(functools.partial(_parts, config, scalar), jax.random.key(0))
  return jax.tree.map(lambda b: b.names, boxed, is_leaf=lambda b: isinstance(b, Named))


def with_scalar_head(config: configs.Model, params: Params, key: chex.PRNGKey,
                     zero: bool = False) -> Params:
  """The trunk of a language model with a fresh scalar head, std 1/√(D+1) or zero (a value head
  without a reward model).
  """
  scale = 0.0 if zero else (config.width + 1)**-0.5
  trunk = {k: v for k, v in params.items() if k not in ('unembed', 'head')}
  kernel = scale * jax.random.normal(key, (config.width,))
  return trunk | {'head': {'kernel': kernel, 'bias': jnp.zeros(())}}


def unembedding(params: Params, dtype: Any = None) -> chex.Array:
  """[V, D]: the table of a tied model, or its own; gathered over `fsdp`."""
  table = params['unembed' if 'unembed' in params else 'embed']['tokens']
  return constrain(table.astype(dtype or table.dtype), 'vocabulary', None)


# ----- forward


def unstacked(config: configs.Model, params: Params) -> Params:
  """`params` with a list of layers in the place of stacked ones, unless they are scanned; before a
  loop, not in each step. By a split, since the gradients of slices would be padded and added.
  """
  if config.scan or isinstance(params['blocks'], list):
    return params
  parts = jax.tree.map(lambda p: jax.lax.split(p, (1,) * config.layers), params['blocks'])
  layer = lambda i: jax.tree.map(lambda p, parts: parts[i][0], params['blocks'], parts)
  return params | {'blocks': [layer(i) for i in range(config.layers)]}


def with_room(cache: Any, length: int) -> Any:
  """The keys and values of a prefill with `length` more slots."""
  return jax.tree.map(
    lambda c: jnp.pad(c, [(0, length * (axis == c.ndim - 2)) for axis in range(c.ndim)]), cache)


def run_blocks(config: configs.Model, params: Params, tokens: chex.Array, positions: chex.Array,
               mask: chex.Array | None, cache: Any = None, index: int | chex.Array | None = 0,
               dropout_key: chex.PRNGKey | None = None, keep_cache: bool = False,
               take: Callable[[chex.Array], chex.Array] = every) -> tuple[chex.Array, Any]:
  """Embeds, runs every block and the final norm.

  Args:
    params: stacked layers, or a list of them (`unstacked`).
    tokens, positions: int [B, T].
    mask: bool [B, T, S], true where a query may look; None: at what stands before it, in a fused
      kernel, of rows without padding on their left; then no cache.
    cache: per layer (key, value) of [B, G, S or more, H] to write into at `index`; with index None,
      of [B / K, G, S − T, H], what each K rows have before them; or None: the queries' own keys.
    keep_cache: return the keys and values when `cache` is None (prefill).
    take: [B, T, …] -> [B, T', …], the positions whose hidden states are wanted: the last layer
      computes no other (all layers do if config.scan).

  Returns:
    hidden [B, T', D] in the compute type; the layers' keys and values (a list, or stacked [L, ...]
    if config.scan), None where no cache is written or kept.
  """
  dtype = jnp.dtype(config.compute)
  x = looked_up(params['embed']['tokens'], tokens, dtype, 'vocabulary')
  if config.positions == 'learned':
    x = x + looked_up(params['embed']['positions'], positions, dtype, None)
  x = constrain(x, 'batch', None, None)
  turn = turns(config, positions) if config.positions == 'rope' else None
  banded, band = None, None
  if config.window:  # slots of a row are contiguous, so their distance is that of positions
    start = mask.shape[2] - tokens.shape[1] if index is None else index
    slots = start + jnp.arange(tokens.shape[1])[:, None] - jnp.arange(mask.shape[2])
    band = slots < config.window
    banded = (jnp.arange(config.layers) + 1) % config.window_every == 0
  dropout = dropout_key is not None and config.dropout > 0
  layer_keys = jax.random.split(dropout_key, config.layers) if dropout else None
  keep = keep_cache or (cache is not None and index is not None)

  def block(x, layer, take=every, index=index):
    weights, layer_cache, key, narrow = layer
    look = mask if narrow is None else mask & (band | ~narrow)
    x, made = Block(config).apply({'params': weights}, x, turn, look, layer_cache, index, dropout,
                                  take, rngs={'dropout': key} if dropout else None)
    return x, made if keep else None

  saving = jax.checkpoint if config.remat else lambda function: function
  if config.scan and cache is not None and index is not None:
    # In place: as outputs of a scan the caches of all layers would be copied, at every token.
    def one(carry, layer):
      number, weights, narrow = layer
      return block(carry[0], (weights, carry[1], None, narrow), index=((number,), index)), None

    (x, made), _ = jax.lax.scan(one, (x, cache), (jnp.arange(config.layers), params['blocks'],
                                                  banded))
    x = take(x)
  elif config.scan:
    x, made = jax.lax.scan(saving(block), x, (params['blocks'], cache, layer_keys, banded))
    x = take(x)
  else:
    made, last = [], functools.partial(block, take=take)
    for i, weights in enumerate(unstacked(config, params)['blocks']):
      x, layer_made = saving(last if i == config.layers - 1 else block)(
        x, (weights, None if cache is None else cache[i], layer_keys[i] if dropout else None,
            None if banded is None else banded[i]))
      made.append(layer_made)
  return Norm(config).apply({'params': params['norm']}, x), made if keep else None


def hidden(config: configs.Model, params: Params, tokens: chex.Array, valid: chex.Array,
           dropout_key: chex.PRNGKey | None = None,
           take: Callable[[chex.Array], chex.Array] = every) -> chex.Array:
  """Final hidden states [B, T', D] of whole sequences; padding (valid false) may be on either side.

  Positions count valid tokens, so left padding changes nothing; a row's valid tokens stand side by
  side. `take` as `run_blocks` has it.
  """
  chex.assert_equal_shape([tokens, valid])
  length, positions = tokens.shape[1], jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  run = functools.partial(run_blocks, config, params, dropout_key=dropout_key)
  if not has_kernel(config, length):
    look = jnp.tril(jnp.ones((length, length), bool)) & valid[:, None, :]
    return run(tokens, positions, look, take=take)[0]
  # The kernel knows no padding: rows are turned until they begin with a valid token, and back.
  places, first = jnp.arange(length), jnp.argmax(valid, axis=1)[:, None]
  turned = lambda x, by: jnp.take_along_axis(
    x, ((places + by) % length).reshape(*x.shape[:2], *[1] * (x.ndim - 2)), axis=1)
  return run(turned(tokens, first), turned(positions, first), None,
             take=lambda x: take(turned(x, -first)))[0]


def scalars(params: Params, hidden_states: chex.Array) -> chex.Array:
  """The scalar head at every position: float32 [..., T]."""
  return hidden_states.astype(jnp.float32) @ params['head']['kernel'] + params['head']['bias']
