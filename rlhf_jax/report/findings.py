"""What the numbers of a workdir say: the claims of the paper's recipe held against results.json,
one row each.

In: `Contents`. Out: `Claim`s and the roles of the evaluated models. Left out: figures, HTML; no
claim is made where a number is missing.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rlhf_jax.data import agreement
from rlhf_jax.report.contents import Contents

PPO_WINS = 0.6  # a policy that wins less often has not learnt enough to speak of
HELDOUT_ACCURACY = 0.6
LOSS_RISE = 0.03


@dataclasses.dataclass(frozen=True)
class Claim:
  """A sentence, whether the numbers bear it out (None: their intervals leave it open), and the
  numbers.
  """
  text: str
  holds: bool | None
  numbers: str


@dataclasses.dataclass(frozen=True)
class Roles:
  """Which of the evaluated models is what."""
  against: str  # the baseline of every win rate, '' where nothing was evaluated
  pretrained: str = ''
  aligned: tuple[str, ...] = ()  # trained by PPO, sampled plainly
  # The aligned one that is spoken of first: with pretraining gradient where there is such a one.
  best: str = ''
  tricks: tuple[
    str, ...
  ] = ()  # the baseline with another temperature or the best of several samples


def roles(contents: Contents) -> Roles:
  """Reads off the configs what each evaluated model is."""
  if contents.evaluation is None:
    return Roles('')
  config = contents.evaluation.config
  against, models = config.get('against', ''), config.get('models') or {}
  base = (models.get(against) or {}).get('run')
  baseline = contents.run(base or '')
  start = baseline.config.get('init_from') if baseline else None
  pretrained, aligned, tricks = '', [], []
  for name, sampled in models.items():
    plain = (
      sampled.get('temperature') == 1 and sampled.get('best_of') == 1 and not sampled.get('prefix')
    )
    run = contents.run(sampled.get('run', ''))
    if name == against:
      continue
    if run is None:
      if plain and sampled.get('run') == start:  # the folder of a model
        pretrained = pretrained or name
    elif run.kind == 'PPO' and plain:
      aligned.append(name)
    elif run.name == base and not plain and not sampled.get('prefix'):
      tricks.append(name)
    elif run.kind == 'Language' and plain and not run.config.get('init_from'):
      pretrained = pretrained or name
  best = next((name for name in aligned if _mixes_text(contents, models[name])),
              aligned[0] if aligned else '')
  return Roles(against, pretrained, tuple(aligned), best, tuple(tricks))


def _mixes_text(contents: Contents, sampled: Mapping[str, Any]) -> bool:
  """Whether a PPO run had pretraining gradients, whatever it is called."""
  config = contents.run(sampled['run']).config
  return bool(config.get('ptx_coef') and config.get('ptx_ratio'))


def unjudged(contents: Contents) -> bool:
  """Whether the reward model alone says who wins, the one that PPO was trained to please."""
  models, told = contents.measured.get('models') or {}, roles(contents)
  return (models.get(told.best) or models.get(told.against) or {}).get('judge') == 'reward model'


def claims(contents: Contents) -> list[Claim]:
  """Every claim that this workdir's models allow; without a judge none about who is better."""
  models, told = contents.measured.get('models') or {}, roles(contents)
  found: list[Claim | None] = []
  if not unjudged(contents):
    if told.pretrained in models:
      found.append(_beyond(models, told, told.pretrained, below=True))
    if told.best in models:
      found.append(_beyond(models, told, told.best, below=False))
      entry = _wins(models, told, told.best)
      if entry:
        found.append(Claim(f'{told.best} wins at least {PPO_WINS:.0%} against {told.against}',
                           _decided(entry['low'], entry['high'], PPO_WINS), shown(entry)))
      found += [_better(contents, models, told, trick) for trick in told.tricks if trick in models]
    found += [_gold_gain(contents, models, told, trick) for trick in told.tricks
              if trick in models and (_sampled(contents, trick).get('best_of') or 1) > 1]
  found += _reward_claims(contents.measured.get('reward_model') or {})
  if told.best in models and told.against in models:
    found.append(_loss_claim(models, told))
  if told.against in models:
    found.append(_done_claim(models[told.against], told.against))
  return [claim for claim in found if claim is not None]


def verdict(contents: Contents) -> str:
  """One sentence for the top of the page."""
  models, told = contents.measured.get('models') or {}, roles(contents)
  entry = _wins(models, told, told.best) if told.best in models else None
  unfinished = [run.name for run in contents.runs if not run.finished]
  if entry and unjudged(contents):
    return (f'Nobody judged: on {percent(entry["mean"])} of {entry["n"]} held-out prompts (95 % '
            f'interval {bare(entry["low"])} to {percent(entry["high"])}) {told.best} scores higher '
            f'than {told.against} by the reward model that it was trained to please, which does '
            'not say that anybody would prefer it.')
  if entry:
    way = 'cannot be told from'
    if entry['low'] > 0.5:
      way = 'is preferred to'
    elif entry['high'] < 0.5:
      way = 'is preferred less often than'
    return (f'{told.best} {way} {told.against}: it wins {percent(entry["mean"])} of {entry["n"]} '
            f'held-out prompts (95 % interval {bare(entry["low"])} to {percent(entry["high"])}).')
  if unfinished:
    return f'Not finished: {", ".join(unfinished)}. What is there so far is shown below.'
  return 'No evaluation against a baseline is in this workdir.'


def percent(value: float | None, digits: int = 1) -> str:
  """0.7264 → '72.6 %'; '–' for None."""
  return '–' if value is None else f'{bare(value, digits)} %'


def bare(value: float | None, digits: int = 1) -> str:
  """0.7264 → '72.6', for the ends of an interval; −0.03 → '−3.0'."""
  return '–' if value is None else _signed(100 * value, digits)


def _signed(value: float, digits: int, plus: bool = False) -> str:
  """A number with a true minus, and none before 0."""
  return f'{value:{"+" if plus else ""}z.{digits}f}'.replace('-', '−')


def shown(entry: Mapping[str, Any]) -> str:
  """A win rate with its interval."""
  return f'{percent(entry["mean"])} [{bare(entry["low"])}, {bare(entry["high"])}]'


def _sampled(contents: Contents, name: str) -> Mapping[str, Any]:
  return (contents.evaluation.config.get('models') or {}).get(name) or {}


def _wins(models: Mapping[str, Any], told: Roles, name: str) -> Mapping[str, Any] | None:
  entry = models[name].get(f'win_rate_vs_{told.against}')
  return entry if entry and entry.get('mean') is not None else None


def _beyond(models: Mapping[str, Any], told: Roles, name: str, below: bool) -> Claim | None:
  """Its interval does not touch the baseline's own against itself; open where it does."""
  entry = _wins(models, told, name)
  if not entry:
    return None
  base = _wins(models, told, told.against) if told.against in models else None
  holds = None
  if entry['high'] < (base['low'] if base else 0.5):
    holds = below
  elif entry['low'] > (base['high'] if base else 0.5):
    holds = not below
  numbers = shown(entry) + (f'; {told.against} against itself {shown(base)}' if base else '')
  return Claim(
    f'{name} is {"worse" if below else "better"} than {told.against}, intervals apart',
    holds,
    numbers,
  )


def _decided(low: float, high: float, edge: float) -> bool | None:
  """Whether an interval lies above an edge; None where it holds it."""
  return None if low < edge <= high else low >= edge


def _paired(contents: Contents, one: str, other: str, value: Callable[[Any], float | None]
            ) -> tuple[float, list[float]] | None:
  """What `one` has more than `other` on the prompts of both, and its interval over prompts."""
  rows = contents.evaluation.evaluations
  found = [{row['id']: value(row.get('judgement') or {}) for row in rows.get(name, [])
            if row.get('id') is not None} for name in (one, other)]
  both = [(found[0][key], found[1][key]) for key in found[0] if key in found[1]]
  told = [a - b for a, b in both if None not in (a, b)]
  if len(told) < 2:  # one prompt cannot be redrawn
    return None
  return agreement.ratio_interval(told)


def _more(contents: Contents, text: str, one: str, other: str, key: str, numbers: str,
          show: Callable[[float], str]) -> Claim:
  """That `one` has more: by the rows of both, prompt by prompt."""
  paired = _paired(contents, one, other, lambda judgement: judgement.get(key))
  if paired is None:
    return Claim(text, None, numbers + '; not there prompt by prompt')
  mean, (low, high) = paired
  return Claim(text, None if low <= 0 < high else low > 0,
               f'{numbers}; prompt by prompt {show(mean)} more [{show(low)}, {show(high)}]')


def _better(contents: Contents, models: Mapping[str, Any], told: Roles, trick: str
            ) -> Claim | None:
  entry, other = _wins(models, told, told.best), _wins(models, told, trick)
  if not entry or not other:
    return None
  text = f'{told.best} wins more than {trick}: what it learnt is more than sampling'
  return _more(contents, text, told.best, trick, 'win', f'{shown(entry)} against {shown(other)}',
               bare)


def _gold_gain(contents: Contents, models: Mapping[str, Any], told: Roles, trick: str
               ) -> Claim | None:
  gold, base = models[trick].get('gold'), (models.get(told.against) or {}).get('gold')
  if gold is None or base is None:
    return None
  return _more(contents, f'{trick} gains in the judge’s score: the reward model is good enough to '
               'train against', trick, told.against, 'score',
               f'{_signed(gold, 3)} against {_signed(base, 3)}',
               lambda score: _signed(score, 3))


def _reward_claims(entry: Mapping[str, Any]) -> list[Claim]:
  share = entry.get('accuracy_heldout_labelers')
  if share is None:
    return []
  ends = entry.get('accuracy_heldout_labelers_ci')
  return [Claim(f'the reward model predicts held-out labelers above {HELDOUT_ACCURACY:.0%}',
                _decided(*ends, HELDOUT_ACCURACY) if ends else None,
                percent(share) + (f' [{bare(ends[0])}, {bare(ends[1])}]' if ends else ''))]


def _loss_claim(models: Mapping[str, Any], told: Roles) -> Claim | None:
  entry = models[told.best]
  loss, base = entry.get('pretraining_loss'), models[told.against].get('pretraining_loss')
  if loss is None or not base:
    return None
  ends = entry.get('pretraining_loss_change_ci')
  above = _decided(*ends, LOSS_RISE) if ends else None
  shown_ends = ' [{}, {}]'.format(*(_signed(100 * end, 1, True) for end in ends)) if ends else ''
  return Claim(
    f'the pretraining loss of {told.best} is within {LOSS_RISE:.0%} of {told.against}’s',
    None if above is None else not above,
    f'{loss:.3f} against {base:.3f} nats a token '
    f'({_signed(100 * (loss / base - 1), 1, True)} %{shown_ends})',
  )


def _done_claim(entry: Mapping[str, Any], name: str) -> Claim | None:
  """A judge that flags failed tasks says whether every category is done at all."""
  cells = entry.get('by_category') or {}
  done = {category: 1 - cell['fails_task_rate'] for category, cell in cells.items()
          if cell.get('fails_task_rate') is not None}
  if not done:
    return None
  worst = min(done, key=done.get)
  return Claim(f'{name} does every category at least sometimes', done[worst] > 0,
               f'least often {worst}: {percent(done[worst])}')
