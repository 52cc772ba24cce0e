"""The report of a workdir: one HTML page that needs nothing but itself.

In: the files of a workdir. Out: DIR/report.html. A section whose files are not there yet says so.
Left out: anything that would have to load a model.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe

from rlhf_jax.configs import BadInput
from rlhf_jax.data import store
from rlhf_jax.report import figures, findings, study
from rlhf_jax.report.contents import Contents, Run, read

SAMPLES = 20
# Panels of a run's curves: title -> metrics drawn in it. A metric of an evaluation inside the run
# may have a prefix.
PANELS: Mapping[str, Mapping[str, Sequence[str]]] = {
  'Language': {
    'loss, nats a token': ('loss', 'validation_loss', 'pretraining_loss'),
    'reward-model score': ('reward',),
    'gradient norm': ('gradient_norm',),
  },
  'Reward': {
    'loss': ('loss', 'validation_loss', 'heldout_loss'),
    'share of pairs ordered right': ('accuracy', 'validation_accuracy', 'heldout_accuracy'),
    'gradient norm': ('gradient_norm',),
  },
  'PPO': {
    'reward-model score': ('score', 'proxy'),
    'KL from the reference, nats': ('kl', 'kl_k3'),
    'win rate against the start': ('win_rate',),
    'judge’s score': ('gold',),
    'entropy, nats a token': ('entropy',),
    'response length, tokens': ('response_length',),
    'share ended by eos': ('eos_rate',),
    'distinct word pairs': ('distinct_2',),
    'pretraining loss': ('ptx_loss',),
    'explained variance': ('explained_variance',),
    'clip fraction': ('clip_fraction',),
    'KL coefficient': ('kl_coef',),
  },
}
CURVES_OF = ('loss', 'score')  # of other kinds nothing is drawn


def write(workdir: pathlib.Path | str) -> pathlib.Path:
  """Writes DIR/report.html from the other files of DIR and returns its path. Of a sweep that is the
  study, and DIR/runs.html the page of the runs that its points rest on; of a sweep that was stopped
  before that, how far it is and those runs.

  Raises: BadInput if there is no run in DIR.
  """
  workdir, path = store.path(workdir), store.path(workdir) / 'report.html'
  if study.is_sweep(workdir):
    contents = read(workdir, without=study.points(workdir))
    if contents.runs:
      store.write(workdir / 'runs.html', page(contents))
    store.write(path, study.page(workdir, _environment()))
    return path
  points = study.stopped(workdir)
  contents = read(workdir, without=points)
  if not contents.runs and not points:
    raise BadInput(
      f'{workdir}: no run is in there (no RUN/config.json); give the --workdir of a run'
    )
  store.write(path, page(contents, points))
  return path


def page(contents: Contents, points: Mapping[str, str] | None = None) -> str:
  """The HTML.

  Args:
    points: of a sweep that was stopped: point -> how far it is. `contents` is without them.
  """
  told = findings.roles(contents)
  models = contents.measured.get('models') or {}
  return _environment().get_template('page.html').render(
    title=store.absolute(contents.workdir).name,
    contents=contents,
    roles=told,
    models=models,
    verdict=_progress(points) if points else findings.verdict(contents),
    points=points or {},
    claims=findings.claims(contents),
    unjudged=findings.unjudged(contents),
    wins=f'win_rate_vs_{told.against}',
    reward=contents.measured.get('reward_model') or {},
    labelers=contents.measured.get('labelers') or {},
    flags=_flags(models),
    categories=_categories(models),
    shade=shade,
    sources=_sources(contents.cards),
    samples=_samples(contents, told),
    drawn=_figures(contents, told, models),
    total=sum(run.seconds or 0 for run in contents.runs),
  )


def _progress(points: Mapping[str, str]) -> str:
  """What is said of a stopped sweep."""
  states = list(points.values())
  failed = states.count('failed')
  return (f'A sweep on its way: {states.count("finished")} of {len(states)} points finished'
          f'{f", {failed} failed" if failed else ""}. Start the same command again to go on.')


def _environment() -> jinja2.Environment:
  loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
  environment = jinja2.Environment(
    loader=loader,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {
    'number': number, 'fixed': fixed, 'percent': findings.percent, 'bare': findings.bare,
    'clock': clock, 'pretty': pretty}
  return environment


def number(value: Any, digits: int = 3) -> str:
  """A number for people: at least `digits` significant ones, no exponent where that is readable;
  '–' for None."""
  if value is None:
    return '–'
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  if isinstance(value, int):
    return f'{value:,}'.replace(',', '\u202f')
  if value == 0 or not math.isfinite(value):
    return str(value)
  if not 1e-4 <= abs(value) < 1e6:
    return f'{value:.{digits - 1}e}'
  return f'{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}'


def fixed(value: float | None, digits: int = 2) -> str:
  """A number of a column, with as many decimals as its neighbours; '–' for None."""
  text = '–' if value is None else f'{value:.{digits}f}'.replace('-', '−')
  return text.removeprefix('−') if value is not None and round(value, digits) == 0 else text


def clock(seconds: float | None) -> str:
  """75 → '1 min 15 s'; '–' for None."""
  if seconds is None:
    return '–'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours} h {minutes} min'
    if hours
    else f'{minutes} min {rest} s'
    if minutes
    else f'{seconds:.1f} s'
  )


def pretty(value: Any) -> str:
  """JSON for people."""
  return json.dumps(value, indent=1, ensure_ascii=False)


def shade(share: float | None) -> str:
  """Background of a win-rate cell: blue above one half, orange below, stronger the further away."""
  if share is None:
    return ''
  strength = min(abs(share - 0.5) * 1.4, 0.6)
  return f'background: rgba({"63,127,191" if share > 0.5 else "217,130,43"},{strength:.2f})'


def _flags(models: Mapping[str, Any]) -> list[str]:
  """The rates that any model has, named ones first."""
  first = ['hallucination_rate', 'truthful_rate', 'truthful_informative_rate', 'rude_rate',
           'constraint_rate']
  found = {name for entry in models.values() for name in entry
           if name.endswith('_rate') and name != 'eos_rate' and entry[name] is not None}
  return [name for name in first if name in found] + sorted(found - set(first))


def _categories(models: Mapping[str, Any]) -> list[str]:
  """Categories of the prompts, most frequent first."""
  counts: dict[str, int] = {}
  for entry in models.values():
    for name, cell in (entry.get('by_category') or {}).items():
      counts[name] = max(counts.get(name, 0), cell.get('n') or 0)
  return sorted(counts, key=lambda name: (-counts[name], name))


def _sources(cards: Mapping[str, Any]) -> list[dict[str, Any]]:
  """What became of the rows of each source, and of all sources of a card together."""
  found = []
  for name, card in cards.items():
    sources = card.get('sources')
    if not isinstance(sources, dict):
      continue
    for source, counts in sources.items():
      left = {**(counts.get('refused') or {}), 'duplicates': counts.get('duplicates'),
              'long-prefix duplicates': counts.get('long_prefix_duplicates'),
              'not taken': counts.get('not_taken')}
      found.append({'data': name, 'source': source, 'read': counts.get('read'),
                    'kept': counts.get('kept'), 'left_out': _counted(left), 'cut': []})
    shares = [f'{what} {findings.percent(entry.get("share"))}'
              for what, entry in (card.get('cut') or {}).items() if isinstance(entry, dict)]
    refused = _counted(card.get('refused') or {})
    # Rows of text are packed: there the records of both splits are what was kept.
    kept = card.get('split' if card.get('kind') == 'text' else 'rows') or {}
    if shares or refused:
      found.append({'data': name, 'source': 'all together', 'read': card.get('records'),
                    'kept': sum(kept.values()) or None, 'left_out': refused,
                    'cut': shares})
  return found


def _counted(counts: Mapping[str, Any]) -> list[str]:
  return [f'{reason}: {number(count)}' for reason, count in counts.items() if count]


def _samples(contents: Contents, told: findings.Roles) -> dict[str, Any]:
  """The first rows of every plainly sampled model beside each other: the pretrained one, the
  baseline, the aligned ones; without an evaluation the last rows of a PPO run's samples.jsonl."""
  for run in [contents.evaluation] if contents.evaluation else []:
    names = [name for name in (told.pretrained, told.against, *told.aligned)
             if run.evaluations.get(name)]
    if told.against in names and told.best in names:
      by_id = [{row.get('id'): row for row in run.evaluations[name]} for name in names]
      return {
        'names': names,
        'rows': [(row.get('prompt', ''), [rows.get(row.get('id')) for rows in by_id])
                 for row in run.evaluations[told.best][:SAMPLES]],
      }
  for run in contents.of_kind('PPO'):
    if run.samples:
      return {
        'names': [run.name],
        'rows': [(row.get('prompt', ''), [row]) for row in run.samples[-SAMPLES:]],
      }
  return {}


def _figures(contents: Contents, told: findings.Roles, models: Mapping[str, Any]) -> dict[str, Any]:
  """Every figure that the files allow, ready for the page; and what captions say of them."""
  drawn: dict[str, Any] = {'curves': {}}
  rates = {name: entry.get(f'win_rate_vs_{told.against}') or {} for name, entry in models.items()}
  if any(entry.get('mean') is not None for entry in rates.values()):
    drawn['wins'] = figures.win_rates(rates, told.against)
  if sum(entry.get('kl') is not None for entry in models.values()) > 1:
    drawn['gold'] = figures.gold_over_kl(models)
  for run in contents.runs:
    panels = _panels(run)
    if panels:
      drawn['curves'][run.name] = figures.curves(
        [row.get('step', i) for i, row in enumerate(run.metrics)], panels
      )
  paths = {run.name: _columns(run, 'kl', 'score') for run in contents.of_kind('PPO')}
  paths = {name: path for name, path in paths.items() if len(path[0]) > 1}
  if paths:
    drawn['path'] = figures.reward_over_kl(paths)
    drawn['updates'] = {name: len(path[0]) for name, path in paths.items()}
  table = (contents.measured.get('reward_model') or {}).get('reliability')
  if table:
    drawn['reliability'] = figures.reliability(table)
    drawn['reliability_pairs'] = sum(row['n'] for row in table)
  return {name: markupsafe.Markup(value) if isinstance(value, str) else
          {key: markupsafe.Markup(svg) for key, svg in value.items()} if name == 'curves' else value
          for name, value in drawn.items()}


def _panels(run: Run) -> dict[str, list[tuple[str, list[Any]]]]:
  """Title -> [(metric, its values)] of what the run has measured at least twice."""
  panels: dict[str, list[tuple[str, list[Any]]]] = {}
  known = {key: None for row in run.metrics for key in row}
  for title, wanted in PANELS.get(run.kind, {}).items():
    for name in wanted:
      for key in known:
        if key != name and not (key.endswith(name) and key[:-len(name)] in PREFIXES):
          continue
        values = [_finite(row.get(key)) for row in run.metrics]
        if sum(value is not None for value in values) > 1:
          panels.setdefault(title, []).append((key, values))
  return panels


PREFIXES = ('evaluation_', 'evaluation/', 'eval_', 'eval/')


def _columns(run: Run, *names: str) -> tuple[list[float], ...]:
  rows = [row for row in run.metrics if all(_finite(row.get(name)) is not None for name in names)]
  return tuple([row[name] for row in rows] for name in names)


def _finite(value: Any) -> float | None:
  good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  return float(value) if good else None
