"""Three tiny models that differ in every option, rows padded on both sides, a stub tokenizer."""

import dataclasses

import numpy as np
import pytest

from rlhf_jax import configs

VOCABULARY, PROMPT, RESPONSE = 37, 6, 5
SHAPES = {
  # Weights far larger than a real start, so that no term of the model is negligible.
  'gpt': configs.Model(layers=2, width=20, heads=2, head_size=6, mlp=44, vocabulary=VOCABULARY,
                       context=24, positions='learned', init_std=0.3),
  'llama': configs.Model(layers=2, width=24, heads=4, kv_heads=2, head_size=8, mlp=40,
                         vocabulary=VOCABULARY, context=24, norm='rms', activation='silu',
                         gated=True, positions='rope', bias=False, tied=False, init_std=0.3,
                         norm_epsilon=1e-6),
  # GPT-3: dense and locally banded layers alternate (Brown et al. 2020, §2.1).
  'gpt3': configs.Model(layers=3, width=20, heads=2, mlp=28, vocabulary=VOCABULARY, context=24,
                        positions='learned', init_std=0.3, window=3, window_every=2),
}


@pytest.fixture(scope='package', autouse=True)
def _quick(quick_compilation):
  return


@dataclasses.dataclass(frozen=True)
class Case:
  """A model, its parameters, and the same with a scalar head."""
  config: configs.Model
  params: dict
  scalar: dict


@pytest.fixture(scope='session')
def cases(random_params):
  """{'gpt', 'llama', 'gpt3'} -> Case."""
  return {
    name: Case(config, random_params(config, False, 1), random_params(config, True, 2))
    for name, config in SHAPES.items()
  }


@pytest.fixture(params=list(SHAPES))
def case(request, cases):
  return cases[request.param]


@pytest.fixture(scope='session')
def rows():
  """tokens, valid [7, P+R]: prompts of 1 … P tokens, responses of 1 … R, padding around both."""
  random = np.random.default_rng(0)
  tokens = random.integers(3, VOCABULARY, (7, PROMPT + RESPONSE)).astype(np.int32)
  slots = np.arange(PROMPT + RESPONSE)
  starts, ends = np.array([0, 1, 2, 3, 4, 5, 5]), np.array([11, 7, 8, 9, 10, 7, 11])
  valid = (slots >= starts[:, None]) & (slots < ends[:, None])
  return np.where(valid, tokens, 0), valid


class StubTokenizer:
  """A word is a number, its id is that plus 3; <pad>, <bos>, <eos> are 0, 1, 2."""
  pad, bos, eos, vocabulary = 0, 1, 2, VOCABULARY
  ends, start = (2,), [1]

  def encode(self, text):
    return [int(word) + 3 for word in text.split()]

  def encode_prompt(self, text):
    return [self.bos, *self.encode(text)]

  def encode_response(self, prompt, response):
    return self.encode(response)

  def decode(self, ids):
    words = []
    for i in ids:
      if i == self.eos:
        break
      if i > 2:
        words.append(str(int(i) - 3))
    return ' '.join(words)


@pytest.fixture(scope='session')
def tokenizer():
  return StubTokenizer()
