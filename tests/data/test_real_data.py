"""Real files, where the folder beside the project has them: what each source is known to hold."""

import importlib.util
import pathlib

import pytest

from rlhf_jax.configs import Source
from rlhf_jax.data import builders, readers
from rlhf_jax.data.builders import Place

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT.parent / 'shared' / 'data'
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason='no folder ../shared/data')


def counts(name, reader, kind):
  found, reading = readers.read_file(DATA / name, reader, kind, False)
  return len(found), reading.rows, dict(reading.refused), dict(reading.sets)


@pytest.mark.parametrize(('name', 'reader', 'kind', 'expected'), [
  ('c4_wiki_demo/c4_demo.jsonl', 'jsonl', 'text', (300, 300, {}, {})),
  ('tinystories_sample/tinystories_1000.json', 'json_list', 'text', (1000, 1000, {}, {})),
  ('tinyshakespeare/input.txt', 'plain', 'text', (7222, 7222, {}, {})),
  ('self_instruct/seed_tasks.jsonl', 'self_instruct', 'demonstrations', (175, 175, {}, {})),
  ('dolly_open_qa/chinkara-open_qa.jsonl', 'dolly', 'demonstrations', (3742, 3742, {}, {})),
  ('hh_rlhf/harmless-base.test.jsonl.gz', 'hh_rlhf', 'rankings',
   (2307, 2312, {'no common prompt': 5}, {})),
  ('hh_rlhf/helpful-base.test.jsonl.gz', 'hh_rlhf', 'rankings',
   (2343, 2354, {'no common prompt': 9, 'equal completions': 2}, {})),
  ('openai_summarize_comparisons/batch0_cnndm.jsonl.gz', 'openai_summarize', 'rankings',
   (117, 437, {'intransitive set': 6}, {'sets of 4': 63, 'pairs': 54, 'intransitive sets': 1})),
  ('openai_summarize_comparisons/batch18.jsonl.gz', 'openai_summarize', 'rankings',
   (143, 674, {'intransitive set': 12}, {'sets of 4': 104, 'pairs': 39, 'intransitive sets': 2})),
  ('openai_summarize_comparisons/batch13.jsonl.gz', 'openai_summarize', 'rankings',
   (1097, 1097, {}, {'pairs': 1097})),
  # No judge voted on every two of three models: the sets follow from what was voted on.
  ('mt_bench_votes/human.jsonl', 'mt_bench', 'rankings',
   (1252, 3355, {'not of the first turn': 1666, 'equal completions': 17, 'all ranks tied': 317},
    {'pairs': 1161, 'sets of 3': 81, 'sets of 4': 9, 'sets of 5': 1})),
])
def test_every_row_of_a_source_is_accounted_for(name, reader, kind, expected):
  assert counts(name, reader, kind) == expected


def experiment():
  path = ROOT / 'experiments' / 'real_text.py'
  spec = importlib.util.spec_from_file_location('real_text', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_sources_of_the_experiment_are_built(tmp_path):
  module = experiment()
  place, gpt = Place(tmp_path, DATA), module.runs['gpt']
  tokenizer = builders.tokenizer_for(gpt.tokenizer, gpt.data, place, heldout=gpt.heldout)
  assert tokenizer.vocabulary == gpt.tokenizer.vocabulary
  limits = {'prompt_length': 96, 'response_length': 48, 'prompt_cut': 'head', 'k_max': 4,
            'length': 128}
  cards = {name: builders.build(getattr(module, name), tokenizer, place, builders.Limits(**limits),
                                heldout=0.1).card
           for name in ('text', 'demonstrations', 'rankings')}
  for card in cards.values():
    assert card['rows']['train'] > 100 and card['rows']['heldout'] > 5
    assert card['records'] == (sum(card['refused'].values()) + sum(card['split'].values())
                               + card['heldout_also_in_train'])
    for source in card['sources'].values():
      assert source['records'] == sum(source[name] for name in (
        'kept', 'duplicates', 'long_prefix_duplicates', 'not_taken'))
  assert cards['rankings']['k']['4'] > 90 and cards['rankings']['labelers'] > 20
  assert 0 < cards['rankings']['cut']['completions']['share'] < 0.8
  assert cards['demonstrations']['refused'].keys() == {'response too long'}


def test_evaluation_prompts_are_none_of_those_trained_on():
  module, place = experiment(), Place(DATA, DATA)
  prompts = {name: {record.prompt for record in builders.read(tuple(
    Source('prompts', source.files, source.reader) for source in getattr(module, name)), place)[0]}
    for name in ('rankings', 'prompts', 'heldout_rankings', 'heldout_prompts')}
  trained = prompts['rankings'] | prompts['prompts']
  assert not trained & (prompts['heldout_rankings'] | prompts['heldout_prompts'])
