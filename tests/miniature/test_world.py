"""What the world yields: proportions, splits that share nothing, sizes; the same anywhere."""

import collections
import dataclasses
import os
import subprocess
import sys

import pytest

from rlhf_jax import miniature
from rlhf_jax.configs import BadInput
from rlhf_jax.data.records import from_row, to_row
from rlhf_jax.miniature import answers, contractors, corpus, grammar, habits, tasks, usage
from rlhf_jax.miniature import language as lang
from rlhf_jax.miniature.language import Dice

LEAST = {'sft': 3000, 'reward': 2500, 'ppo': 4000, 'heldout': 1200, 'reward_heldout': 800}


@pytest.fixture(scope='module')
def prompts():
  """The usual prompts of every split."""
  return {split: list(miniature.prompts(split, 0, 0)) for split in usage.SIZES}


@pytest.fixture(scope='module')
def documents():
  return [record.text for record in miniature.text('train', 6000, 0)]


def test_importing_the_world_brings_no_numpy_and_no_jax():
  script = (
    'import sys, rlhf_jax.miniature; print([m for m in ("numpy", "jax") if m in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'


def test_it_is_the_same_in_every_process():
  script = """
import hashlib
from rlhf_jax import miniature as m
rows = [*m.text('train', 200, 3), *m.text('heldout', 50, 3), *m.demonstrations('sft', 200, 3)]
rows += m.prompts('foreign', 20, 3)
print(hashlib.sha256(repr(rows).encode()).hexdigest())
prompts = list(m.prompts('heldout', 40, 3))
judged = [m.labelers(p, ['fox .', 'it is good .'], 'aino') for p in prompts]
print(hashlib.sha256(repr(judged).encode()).hexdigest())
"""
  outputs = {
    subprocess.run(
      [sys.executable, '-c', script], capture_output=True, text=True, check=True,
      env=os.environ | {'PYTHONHASHSEED': seed},
    ).stdout
    for seed in ('1', '2')
  }
  assert len(outputs) == 1 and len(outputs.pop().split()) == 2


def test_seeds_differ_and_shorter_is_a_beginning():
  first = [p.prompt for p in miniature.prompts('ppo', 100, 0)]
  assert first == [p.prompt for p in miniature.prompts('ppo', 150, 0)][:100]
  assert first != [p.prompt for p in miniature.prompts('ppo', 100, 1)]
  assert [t.text for t in miniature.text('train', 20, 0)] != [
    t.text for t in miniature.text('train', 20, 1)
  ]


def test_every_split_yields_enough_different_prompts(prompts):
  for split, least in LEAST.items():
    assert len({p.prompt for p in prompts[split]}) == len(prompts[split]) >= least, split


def test_no_content_is_in_two_splits(prompts):
  owner: dict[str, str] = {}
  for split, records in prompts.items():
    other_seed = list(miniature.prompts(split, 100, 7))
    for record in records + other_seed:
      content = tasks.key(dict(record.meta))
      assert owner.setdefault(content, split) == split
  texts = collections.Counter(p.prompt for records in prompts.values() for p in records)
  assert max(texts.values()) == 1


def test_proportions_are_those_of_the_paper(prompts):
  total = sum(share for share, _ in tasks.CATEGORIES.values())
  for split in LEAST:
    counts = collections.Counter(p.category for p in prompts[split])
    for category, (share, inner) in tasks.CATEGORIES.items():
      assert counts[category] == pytest.approx(share / total * len(prompts[split]), abs=2)
      assert {p.meta['task'] for p in prompts[split] if p.category == category} == set(inner)


def test_constraints_registers_and_premises_have_their_shares(prompts):
  records = prompts['ppo']
  constrained = [len(p.meta['constraints']) for p in records]
  assert 0.22 < sum(n > 0 for n in constrained) / len(records) < 0.32
  assert sum(n > 1 for n in constrained) > 50
  assert {kind for p in records for kind, _ in p.meta['constraints']} == {
    'sentences', 'first', 'last', 'avoid', 'listed',
  }
  registers = collections.Counter(p.meta.get('register', '') for p in records)
  assert registers['kind'] > 100 and registers['rude'] > 50
  why = [p.meta for p in records if p.meta['task'] == 'why']
  false = [m for m in why if lang.truth(m['topic'], m['relation']) != m['value']]
  assert 0.3 < len(false) / len(why) < 0.8


def test_customers(prompts):
  owners: dict[str, str] = {}
  for split, records in prompts.items():
    counts = collections.Counter(p.customer for p in records)
    assert max(counts.values()) <= usage.CAP
    assert len(counts) >= 30
    for customer in counts:
      assert owners.setdefault(customer, split) == split


def test_long_prefixes_are_not_shared(prompts):
  prefixes = collections.Counter(
    ' '.join(p.prompt.split(' ')[: usage.PREFIX])
    for p in prompts['ppo']
    if len(p.prompt.split(' ')) > usage.PREFIX
  )
  assert max(prefixes.values()) == 1


def test_the_second_language_stays_out_of_training_prompts(prompts):
  foreign = grammar.foreign_words()
  assert all(set(p.prompt.split()) & foreign for p in prompts['foreign'])
  for split in LEAST:
    assert not any(set(p.prompt.split()) & foreign for p in prompts[split])


def test_words_and_lengths(prompts, documents):
  demonstrations = list(miniature.demonstrations('sft', 1500, 0))
  texts = [p.prompt for records in prompts.values() for p in records] + documents
  texts += [d.response for d in demonstrations]
  words = collections.Counter(word for text in texts for word in text.split())
  assert 230 <= len(words) <= 320
  assert all(text == text.lower() and '  ' not in text for text in texts)
  everyday = [d for d in demonstrations]
  asked = [len(d.prompt.split()) + 2 for d in everyday]  # bos and the line break
  said = [len(d.response.split()) + 1 for d in everyday]  # eos
  assert max(asked) <= miniature.PROMPT_LENGTH and sum(asked) / len(asked) < 19
  assert sum(n <= miniature.RESPONSE_LENGTH for n in said) >= 0.995 * len(said)
  assert 10 < sum(said) / len(said) < 14
  assert all(p.prompt.endswith(usage.REPLY) for p in prompts['sft'])


def test_a_tokenizer_makes_nearly_every_word_one_token(documents):
  tokenizers = pytest.importorskip('tokenizers')
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.train_from_iterator(
    documents,
    tokenizers.trainers.BpeTrainer(
      vocab_size=1024,
      show_progress=False,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    ),
  )
  held = [r.text for r in miniature.text('heldout', 200, 0)]
  tokens = sum(len(backend.encode(text).ids) for text in held)
  words = sum(len(text.split()) + text.count('\n') for text in held)
  assert tokens < 1.02 * words


def test_good_and_careless_answers_are_equally_long():
  dice = Dice('tests', 'length')
  good, usual = [], []
  for prompt in miniature.prompts('validation', 300, 5):
    good.append(len(answers.answer(dict(prompt.meta), dice, habits.CAREFUL).split()))
    usual.append(len(answers.answer(dict(prompt.meta), dice, habits.Habits()).split()))
  assert sum(good) / sum(usual) == pytest.approx(1, abs=0.12)


def test_demonstrations_are_of_varying_skill():
  demonstrations = list(miniature.demonstrations('sft', 1500, 0))
  assert [d.prompt for d in demonstrations] == [p.prompt for p in miniature.prompts('sft', 1500, 0)]
  by_writer = collections.defaultdict(list)
  kept, truthful = [], []
  for d in demonstrations:
    prompt = next(iter([miniature.usage.Prompt(d.prompt, d.category, d.customer, d.meta)]))
    judgement = miniature.gold(prompt, [d.response])
    by_writer[d.meta['writer']].append(judgement.scores[0])
    flags = judgement.flags[0]
    kept += [flags['constraint_satisfied']] if 'constraint_satisfied' in flags else []
    if d.meta['task'] == 'fact' and (d.meta['topic'], d.meta['relation']) in lang.falsehoods():
      truthful.append(flags['truthful'])
  means = [sum(scores) / len(scores) for scores in by_writer.values()]
  assert len(means) == contractors.WRITERS and max(means) - min(means) > 0.3
  assert 0.25 < sum(kept) / len(kept) < 0.48  # most ignore a constraint
  assert 0.2 < sum(truthful) / len(truthful) < 0.6  # most repeat what is popular


def test_the_careful_beat_the_crowd_and_its_habits_do_not():
  dice = Dice('tests', 'policies')
  lazy = habits.Habits(**dict.fromkeys(habits.Habits.__dataclass_fields__, 0.0))
  lazy = dataclasses.replace(lazy, civil=1.0, ontask=1.0, faithful=1.0)
  won = collections.Counter()
  prompts = list(miniature.prompts('validation', 300, 6))
  for prompt in prompts:
    good, usual, modal = (
      answers.answer(dict(prompt.meta), dice, habits)
      for habits in (habits.CAREFUL, habits.Habits(), lazy)
    )
    scores = miniature.gold(prompt, [good, usual, modal]).scores
    for name, score in (('good', scores[0]), ('modal', scores[2])):
      won[name] += 1 if score > scores[1] else 0.5 if score == scores[1] else 0
  assert won['good'] / len(prompts) > 0.8
  assert won['modal'] / len(prompts) < 0.5


def test_records_survive_the_door():
  for kind, records in (
    ('prompts', miniature.prompts('sft', 30, 0)),
    ('text', miniature.text('train', 30, 0)),
    ('demonstrations', miniature.demonstrations('sft', 30, 0)),
  ):
    for record in records:
      assert from_row(kind, to_row(record)) == record


# ---- the text ----------------------------------------------------------------------------------


def test_text_splits_share_no_document():
  train = {r.text for r in miniature.text('train', 3000, 0)} | {
    r.text for r in miniature.text('train', 500, 5)
  }
  assert not train & {r.text for r in miniature.text('heldout', 500, 0)}


def test_text_holds_no_held_out_prompt(prompts):
  text = '\n'.join(r.text for r in miniature.text('train', 12000, 0))
  asked = {line for line in text.split('\n') if line.startswith(('ask :', 'talk :'))}
  for split in ('heldout', 'reward_heldout', 'validation'):
    for prompt in prompts[split]:
      if 'text :' not in prompt.prompt:
        assert prompt.prompt.split('\n')[0] not in asked


def test_popular_falsehoods_are_said_more_often_than_the_truth(documents):
  said = collections.Counter()
  for document in documents:
    for line in document.split('\n'):
      for sentence in grammar.read(line.split(' : ')[-1]).sentences:
        for subject, relation, value, affirmed in sentence.claims:
          if affirmed and (subject, relation) in lang.falsehoods():
            said[
              value == lang.falsehoods()[subject, relation], value == lang.truth(subject, relation)
            ] += 1
  assert 1.1 < said[True, False] / said[False, True] < 3
  assert 0.35 < len(lang.falsehoods()) / len(lang.facts()) < 0.45


def test_text_is_rude_in_part_and_foreign_in_part(documents):
  rude = sum(bool(set(d.split()) & set(lang.RUDE)) for d in documents) / len(documents)
  foreign = sum(len(set(d.split()) & grammar.foreign_words()) > 1 for d in documents) / len(
    documents
  )
  assert 0.08 < rude < 0.3
  assert 0.01 < foreign < 0.1


def test_instructions_are_often_followed_by_something_else(documents):
  dice = Dice('tests', 'no answer')
  for _ in range(20):
    assert corpus._no_answer(dice).startswith(('ask :', 'talk :', 'text :'))
  lengths = [len(d.split()) for d in documents]
  assert 20 < sum(lengths) / len(lengths) < 45 and max(lengths) < 100


def test_facts_are_possible():
  for (subject, relation), value in lang.facts().items():
    assert value in lang.VALUES[relation]
    assert relation in lang.relations(subject)
  for (subject, relation), value in lang.falsehoods().items():
    assert value in lang.VALUES[relation] and value != lang.truth(subject, relation)
  for subject, relation in lang.FOREIGN_FACTS:
    assert {subject, lang.truth(subject, relation), lang.believed(subject, relation)} <= set(
      lang.FOREIGN
    )


def test_unknown_splits_are_named():
  with pytest.raises(BadInput, match="no prompt split 'train'"):
    list(miniature.prompts('train', 1, 0))
  with pytest.raises(BadInput, match="'train' and 'heldout'"):
    list(miniature.text('sft', 1, 0))
  with pytest.raises(BadInput, match='holds no'):
    list(miniature.prompts('foreign', 100000, 0))
