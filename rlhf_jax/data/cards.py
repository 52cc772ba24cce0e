"""Data cards: what became of every row of a build, what there is in it, as JSON and as text.

In: what sources.gather read and rows.pieces laid out. Out: a dict for card.json, its paragraph for
the log and its table for `python -m rlhf_jax data`. Left out: samples of the data.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_jax.data import agreement
from rlhf_jax.data.records import Demonstration, Ranking, Record, Text
from rlhf_jax.data.rows import Limits, Pieces, quantiles
from rlhf_jax.data.sources import Gathered

_SHOWN = 10  # use cases that are named one by one, most frequent first
_LIMITS = {'text': 'length', 'prompt': 'prompt_length', 'response': 'response_length'}


def card(kind: str, gathered: Gathered, pieces: Pieces, split_of: Mapping[str, Sequence[int]],
         limits: Limits) -> dict[str, Any]:
  """The account: every record read is in a split, or counted with the reason why it is not.

  Args:
    split_of: 'train', 'heldout' -> indices of pieces.records.
  """
  found = described(kind, gathered) | {
    'refused': dict(sorted(pieces.refused.items())), 'cut': pieces.cut, 'tokens': pieces.lengths,
    'limits': {name: value for name, value in dataclasses.asdict(limits).items() if value},
    **halves(pieces.records, split_of)}
  if kind == 'rankings':
    found |= {'completions_removed': dict(sorted(pieces.removed.items())), 'pairs': pieces.pairs,
              'k': _histogram(len(completions) for _, completions, _ in pieces.tokens)}
  return found


def halves(records: Sequence[Record], split_of: Mapping[str, Sequence[int]]) -> dict[str, Any]:
  """How many records are on each side, and on neither."""
  return {'split': {name: len(indices) for name, indices in split_of.items()},
          'heldout_also_in_train': len(records) - sum(map(len, split_of.values()))}


def described(kind: str, gathered: Gathered) -> dict[str, Any]:
  """What a card says of records before they meet a tokenizer and limits."""
  records = gathered.records
  found: dict[str, Any] = {'kind': kind, 'sources': gathered.card, 'records': len(records)}
  if kind == 'text':
    return found
  categories = collections.Counter(record.category for record in records)
  if set(categories) != {''}:
    found['categories'] = {name or 'none': round(count / len(records), 4)
                           for name, count in categories.most_common()}
  found['prompts'] = len({record.prompt for record in records})
  found['customers'] = len({record.customer for record in records} - {''})
  if kind == 'rankings':
    named = [record for record in records if record.labeler]
    found['labelers'] = len({record.labeler for record in named})
    found['agreement'] = agreement.agreement(named)
  return found


def lengths(records: Sequence[Record]) -> dict[str, dict[str, dict[str, int]]]:
  """{'words', 'characters'} -> quantiles of texts, prompts and responses; for want of tokens."""
  texts: dict[str, list[str]] = collections.defaultdict(list)
  for record in records:
    texts['text' if isinstance(record, Text) else 'prompt'].append(
      record.text if isinstance(record, Text) else record.prompt)
    if isinstance(record, Demonstration | Ranking):
      texts['response'] += ([record.response] if isinstance(record, Demonstration)
                            else record.completions)
  return {unit: {what: quantiles([len(measure(text)) for text in found])
                 for what, found in texts.items()}
          for unit, measure in (('words', str.split), ('characters', str))}


def summary(card: Mapping[str, Any]) -> str:
  """A card as one paragraph."""
  return f'{card["kind"]}: ' + '; '.join(line.replace('\n', ' ') for line in lines(card))


def lines(card: Mapping[str, Any]) -> list[str]:
  """A card as lines: each source, what is left, lengths, labelers, use cases."""
  told = []
  for name, counts in card['sources'].items():
    removed = {what: counts[key] for what, key in (
      ('duplicates', 'duplicates'), ('with the long prefix of another', 'long_prefix_duplicates'))
               if counts[key]}
    sets = ', '.join(f'{count} {what}' for what, count in counts.get('sets', {}).items())
    told.append(f'{name}: {counts["read"]} rows read, {counts["kept"]} records kept'
                + (f' ({sets})' if sets else '') + _listed(', refused: ', counts['refused'])
                + _listed(', removed: ', removed)
                + _listed(', ', {'not taken': counts['not_taken']} if counts['not_taken'] else {}))
  told += _limited(card)
  told += [f'{what} {unit}: {_quantiles(found)}'
           + (f', {"rows of" if what == "text" else "limit"} {limit}' if limit else '')
           for unit in ('tokens', 'words', 'characters')
           for what, found in card.get(unit, {}).items()
           for limit in [card.get('limits', {}).get(_LIMITS[what])]]
  if card.get('labelers'):
    told.append(f'{card["labelers"]} labelers' + _agreement(card['agreement']))
  if card.get('customers'):
    told.append(f'{card["customers"]} customers')
  if card.get('categories'):
    shown = list(card['categories'].items())
    rest = sum(share for _, share in shown[_SHOWN:])
    told.append('use cases: ' + ', '.join(f'{name} {share:.1%}' for name, share in [
      *shown[:_SHOWN], *([(f'{len(shown) - _SHOWN} others', rest)] if rest else [])]))
  return told


def _limited(card: Mapping[str, Any]) -> list[str]:
  """What the limits and the split left."""
  if 'split' not in card:
    return []
  units = 'rows' if 'rows' in card else 'records'
  kept = card.get('rows', card['split'])
  told = [f'{kept["train"]} {units} to train on, {kept["heldout"]} held out']
  if card['heldout_also_in_train']:
    told.append(f'{card["heldout_also_in_train"]} left out, as their prompts are on the other side')
  cuts = {f'{what} ({value["share"]:.1%})': value['count']
          for what, value in card.get('cut', {}).items() if value['count']}
  told += [_listed('refused at the limits: ', card.get('refused', {})),
           _listed('cut at the limits: ', cuts),
           _listed('completions removed: ', card.get('completions_removed', {}))]
  pairs = card.get('pairs', {})
  if pairs.get('equal_by_truncation'):
    told.append(f'{pairs["equal_by_truncation"]} of {pairs["read"]} pairs made equal by truncation '
                'and removed')
  return [line for line in told if line]


def _listed(start: str, counts: Mapping[str, int]) -> str:
  return start + ', '.join(f'{count} {what}' for what, count in counts.items()) if counts else ''


def _quantiles(found: Mapping[str, int]) -> str:
  if not found:
    return 'none'
  return (f'median {found["p50"]}, 90 % up to {found["p90"]}, 99 % up to {found["p99"]}, all up to '
          f'{found["max"]}')


def _agreement(told: Mapping[str, Any]) -> str:
  if told['agreement'] is None:
    return ', no two of them on the same pair'
  ends = ' (95 %: {:.1%} to {:.1%})'.format(*told['agreement_ci']) if told['agreement_ci'] else ''
  return (f' agree on {told["agreement"]:.1%}{ends} of {told["pairs"]} '
          f'pairs that two of them ordered, {told["prompts"]} prompts')


def _histogram(values: Iterable[int]) -> dict[str, int]:
  counts = collections.Counter(values)
  return {str(value): counts[value] for value in sorted(counts)}
