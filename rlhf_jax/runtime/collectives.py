"""Bytes that a compiled program moves between devices, loops multiplied through.

Enter: optimized HLO as text. Leave: bytes a device sends, by kind and by phase (flops.PHASES).
A collective among g devices is priced as a ring: an all-gather of a result of S bytes, a
reduce-scatter of an operand of S and an all-to-all cost S·(g−1)/g, an all-reduce twice that, a
permutation S.
Left out: which of it is hidden behind arithmetic, and over which links it goes. What cannot be read
is refused: a walk that misses a loop would show a frugal program where there is none.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from rlhf_jax.runtime.flops import Incomplete, phase

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2,
          'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8}
_COLLECTIVE = re.compile(rf'^({"|".join(KINDS)}|collective-broadcast|ragged-all-to-all)(-start)?$')
_INSTRUCTION = re.compile(r'^(?:ROOT )?%?([\w.\-]+) = ')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_TOUCHED = ('f8e4m3fn', 'f8e5m2')  # of a byte


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO."""
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str  # attributes and metadata
  inside: str  # the text between the parentheses

  def attribute(self, key: str) -> str:
    """The computation that `key=%name` names; '' if there is none."""
    found = re.search(rf'\b{key}=%?([\w.\-]+)', self.rest)
    return found[1] if found else ''


@dataclasses.dataclass
class Moved:
  """Bytes a device sends: {phase: {kind: bytes}}."""
  phases: dict[str, dict[str, float]]

  def of(self, name: str) -> float:
    """All kinds of one phase."""
    return sum(self.phases.get(name, {}).values())

  @property
  def total(self) -> float:
    """All of it."""
    return sum(map(self.of, self.phases))


def count(text: str, otherwise: str = 'training') -> Moved:
  """What one execution of a program moves.

  Args:
    text: of the optimized module, partitioned for one device.
    otherwise: the phase of what stands in no scope.

  Raises:
    Incomplete: a loop whose count is not in the text, a collective that is not understood, or one
      that the walk from the entry did not meet.
  """
  program = Program(text, otherwise)
  phases: dict[str, dict[str, float]] = {}
  program.walk(program.entry, 1.0, otherwise, None, phases)
  missed = {name for name in program.computations if program.speaks(name)} - program.met
  if missed:
    raise Incomplete(f'computations with collectives that were not met: {sorted(missed)[:3]}')
  return Moved(phases)


class Program:
  """The computations of a module, and the walk through them."""

  def __init__(self, text: str, otherwise: str):
    self.otherwise = otherwise
    self.computations: dict[str, dict[str, str]] = {}
    self.entry, self.met = '', set()
    lines: dict[str, str] | None = None
    for line in text.splitlines():
      if lines is None:
        found = _COMPUTATION.match(line) if line[:1] not in (' ', '') else None
        if found and not line.startswith('HloModule'):
          lines = self.computations[found[2]] = {}
          self.entry = found[2] if found[1] else self.entry
      elif line.startswith('}'):
        lines = None
      else:
        line = line.strip()
        named = _INSTRUCTION.match(line)
        if named:
          lines[named[1]] = line
    if not self.entry:
      raise Incomplete('the text is no HLO module')
    self.started = {_channel(instruction) for name in self.computations if self._starts(name)
                    for instruction in self.instructions(name).values()}

  def _starts(self, name: str) -> bool:
    return any('AsyncCollectiveStart' in line for line in self.computations[name].values())

  @functools.cache  # noqa: B019
  def instructions(self, name: str) -> dict[str, Instruction]:
    """A computation, read."""
    return {key: _read(key, line) for key, line in self.computations[name].items()}

  @functools.cache  # noqa: B019
  def speaks(self, name: str) -> bool:
    """Whether there is a collective in a computation or in what it calls."""
    return any(_COLLECTIVE.match(i.opcode) or any(map(self.speaks, self.called(i)))
               for i in self.instructions(name).values())

  def called(self, instruction: Instruction) -> list[str]:
    """Names of the computations an instruction runs; reducers among them."""
    if instruction.opcode in ('async-update', 'async-done'):
      return []  # counted at the start
    found = re.findall(r'\b(?:condition|body|calls|to_apply|true_computation|false_computation)='
                       r'%?([\w.\-]+)', instruction.rest)
    for several in re.findall(r'\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}',
                              instruction.rest):
      found += [name.strip().lstrip('%') for name in several.split(',')]
    return [name for name in found if name in self.computations]

  def walk(self, name: str, times: float, around: str, caller: '_Call | None',
           phases: dict) -> None:
    """Adds what a computation, called in the phase `around`, moves when it runs `times` times."""
    self.met.add(name)
    for instruction in self.instructions(name).values():
      if _COLLECTIVE.match(instruction.opcode):
        self._add(instruction, name, times, around, phases)
        continue
      inner = [called for called in self.called(instruction) if self.speaks(called)]
      if not inner:
        continue
      here = self._phase(instruction, name, around)
      if instruction.opcode == 'while':
        trips = self.trips(instruction, name, caller)
        for called in inner:
          call = _Call(name, instruction, instruction.attribute('body'), caller)
          self.walk(called, times * trips, here, call, phases)
      elif instruction.opcode == 'conditional':
        self._dearest(inner, times, here, phases)
      else:
        for called in inner:
          self.walk(called, times, here, None, phases)

  def _dearest(self, branches: list[str], times: float, around: str, phases: dict) -> None:
    """Of several branches the one that moves most."""
    told = []
    for branch in branches:
      told.append({})
      self.walk(branch, times, around, None, told[-1])
    for name, kinds in max(told, key=lambda found: Moved(found).total).items():
      for kind, size in kinds.items():
        phases.setdefault(name, {}).setdefault(kind, 0.0)
        phases[name][kind] += size

  def _add(self, instruction: Instruction, computation: str, times: float, around: str,
           phases: dict) -> None:
    if 'chain_id=' in instruction.rest and not self._starts(computation):
      # An asynchronous collective is spread over fusions it runs beside, some of them in loops that
      # it only overlaps: it is one, where it starts.
      if _channel(instruction) not in self.started:
        raise Incomplete(f'{instruction.name} goes on, and no start of it is in the text')
      return
    kind, size = _moved(instruction, 'all-reduce-scatter' in computation)
    where = phases.setdefault(self._phase(instruction, computation, around), {})
    where[kind] = where.get(kind, 0.0) + times * size

  def _phase(self, instruction: Instruction, computation: str, around: str) -> str:
    """By the name stack of an instruction; of one that carries an argument's name, by that of the
    first it goes to which has one (weights gathered for decoding are such); else what is around.
    """
    waiting, seen = [instruction], {instruction.name}
    while waiting:
      first = waiting.pop(0)
      path = re.search(r'op_name="(jit\([^"]*)"', first.rest)
      if path:
        return phase(path[1], self.otherwise)
      for user in self.instructions(computation).values():
        if first.name in user.operands and user.name not in seen:
          seen.add(user.name)
          waiting.append(user)
    return around

  def trips(self, loop: Instruction, name: str, caller: '_Call | None') -> int:
    """How often a loop runs at most: its known count, or (limit − start) / step of its counter."""
    known = re.search(r'known_trip_count[^0-9]*(\d+)', loop.rest)
    if known:
      return int(known[1])
    body = loop.attribute('body')
    inside = _Call(name, loop, body, caller)
    for index, limit in self._limits(loop.attribute('condition'), inside):
      start = self._constant(name, self._element(name, loop.operands[0], index), caller)
      step = self._step(body, index, inside)
      if start is not None and step:
        return max(0, math.ceil((limit - start) / step))
    raise Incomplete(f'the count of the loop {loop.name} is not in the text')

  def _limits(self, condition: str, call: '_Call') -> Iterator[tuple[int, int]]:
    """(index of the counter in the loop's tuple, limit) of every `counter < constant` in it."""
    for made in self.instructions(condition).values():
      if made.opcode == 'fusion':
        fused = made.attribute('calls')
        yield from self._limits(fused, _Call(condition, made, fused, call))
      if made.opcode == 'compare' and 'direction=LT' in made.rest:
        limit = self._constant(condition, made.operands[1], call)
        counter, *_ = self._follow(condition, made.operands[0], call)
        if limit is not None and counter and counter.opcode == 'get-tuple-element':
          yield _index(counter), limit

  def _step(self, body: str, index: int, call: '_Call') -> int | None:
    """What a loop's body adds to its counter."""
    made, where, inside = self._follow(body, self._element(body, self._root(body), index), call)
    part = None
    if made and made.opcode == 'get-tuple-element':  # one of several results of a fusion
      part, made = _index(made), self.instructions(where).get(made.operands[0])
    if made and made.opcode == 'fusion':
      fused = made.attribute('calls')
      inside = _Call(where, made, fused, inside)
      root = self._root(fused)
      root = root if part is None else self._element(fused, root, part)
      made, where, inside = self._follow(fused, root, inside)
    if made is None or made.opcode != 'add':
      return None
    found = [self._constant(where, operand, inside) for operand in made.operands]
    found = [step for step in found if step is not None]
    return found[0] if len(found) == 1 else None

  def _constant(self, computation: str, name: str, call: '_Call | None') -> int | None:
    """The integer an instruction always is; through copies, fusions and loops that only pass it."""
    made, computation, call = self._follow(computation, name, call)
    if made is None:
      return None
    if made.opcode == 'constant':
      return int(made.inside) if re.fullmatch(r'-?\d+', made.inside) else None
    if made.opcode != 'get-tuple-element' or call is None:
      return None
    source = self.instructions(computation).get(made.operands[0])
    if source is None or source.opcode != 'parameter':
      return None
    index = _index(made)
    passed = self._element(call.inside, self._root(call.inside), index)
    kept, *_ = self._follow(call.inside, passed, None)
    if kept is None or kept.opcode != 'get-tuple-element' or _index(kept) != index:
      return None  # the loop changes it
    outside = self._element(call.computation, call.instruction.operands[0], index)
    return self._constant(call.computation, outside, call.caller)

  def _follow(self, computation: str, name: str, call: '_Call | None'
              ) -> tuple[Instruction | None, str, '_Call | None']:
    """The instruction that makes a value, behind copies and out of fusions, and where it stands."""
    while True:
      made = self.instructions(computation).get(name)
      if made and made.opcode in ('copy', 'bitcast', 'convert'):
        name = made.operands[0]
      elif made and made.opcode == 'parameter' and call and call.instruction.opcode == 'fusion':
        computation, name, call = (call.computation, call.instruction.operands[int(made.inside)],
                                   call.caller)
      else:
        return made, computation, call

  def _element(self, computation: str, name: str, index: int) -> str:
    """The instruction behind element `index` of a tuple; '' if it is no plain tuple."""
    made = self.instructions(computation).get(name)
    while made and made.opcode in ('copy', 'opt-barrier'):
      made = self.instructions(computation).get(made.operands[0])
    return made.operands[index] if made and made.opcode == 'tuple' else ''

  def _root(self, computation: str) -> str:
    return next(name for name, line in self.computations[computation].items()
                if line.startswith('ROOT '))


@dataclasses.dataclass(frozen=True)
class _Call:
  """A loop or a fusion, where it stands, and the computation inside it."""
  computation: str
  instruction: Instruction
  inside: str
  caller: '_Call | None'


def _channel(instruction: Instruction) -> str:
  found = re.search(r'channel_id=(\d+)', instruction.rest)
  return found[1] if found else ''


def _index(made: Instruction) -> int:
  """Of a get-tuple-element."""
  return int(re.search(r'index=(\d+)', made.rest)[1])


def _moved(instruction: Instruction, scattered: bool) -> tuple[str, float]:
  """(kind, bytes a device sends) of a collective; `scattered`: an all-reduce of which each device
  keeps a part.
  """
  kind = instruction.opcode.removesuffix('-start')
  if kind not in KINDS:
    raise Incomplete(f'no rule for {instruction.opcode} {instruction.name}')
  parts = sizes(instruction.shape)
  if instruction.opcode != kind and kind != 'all-reduce':
    given = len(instruction.operands)  # (operands, results, …); several where XLA combined them
    parts = parts[:given] if kind == 'collective-permute' else parts[given:2 * given]
  size = sum(parts)
  if kind == 'collective-permute':
    return kind, size
  group = _group(instruction.rest)
  if kind == 'all-reduce' and scattered:
    return 'reduce-scatter', size * (group - 1) / group
  factor = {'all-reduce': 2 * (group - 1) / group, 'reduce-scatter': group - 1.0}
  return kind, size * factor.get(kind, (group - 1) / group)


def _group(rest: str) -> int:
  """Devices that take part in a collective together."""
  named = re.search(r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? ?\{([^}]*)\}',
                    rest)
  if named:
    axes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", named[1])}
    group = 1
    for name, part in re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", named[2]):
      group *= int(part) if part else axes[name]
    return group
  iota = re.search(r'replica_groups=\[([\d,]+)\]', rest)
  if iota:
    return int(iota[1].split(',')[-1])
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', rest)
  if listed:
    return listed[1].count(',') + 1
  raise Incomplete(f'replica groups that are not understood: {rest[:120]}')


def sizes(shape: str) -> list[float]:
  """Bytes of each array of a shape or of a tuple of them."""
  found = []
  for kind, dimensions in re.findall(r'\b([a-z]+\d*\w*)\[([\d,]*)\]', shape):
    if kind not in _BYTES and kind not in _TOUCHED:
      raise Incomplete(f'no size is known of {kind}')
    count_ = math.prod(int(n) for n in dimensions.split(',') if n)
    found.append(count_ * _BYTES.get(kind, 1))
  return found


def _read(name: str, line: str) -> Instruction:
  text = line[line.index(' = ') + 3:]
  end = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
  opening = text.index('(', end)
  closing = _closing(text, opening)
  inside = text[opening + 1:closing]
  operands = tuple(re.findall(r'%([\w.\-]+)', inside))
  return Instruction(name, text[:end], text[end:opening].strip(), operands, text[closing + 1:],
                     inside)


def _closing(text: str, opening: int) -> int:
  """Index of the parenthesis that closes the one at `opening`."""
  depth = 0
  for i in range(opening, len(text)):
    if text[i] == '(':
      depth += 1
    elif text[i] == ')':
      depth -= 1
      if not depth:
        return i
  raise Incomplete(f'a line that does not end: {text[:80]}')
