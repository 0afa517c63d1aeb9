"""What a compiled program moves, read from its text with loops multiplied out."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16} | {
  f"{kind}{bits}": max(1, bits // 8) for kind in "suf" for bits in (4, 8, 16, 32, 64)
}
_SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+|f8\w+)\[([\d,]*)\]")
_COUNT = re.compile(r"[su]32\[\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|async_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Instructions that move nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_FREE |= {"call", "after-all", "partition-id", "iota", "async-start", "async-done", "opt-barrier"}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of exchange along one set of mesh axes.

  Attributes:
    kind: of KINDS.
    axes: mesh axes between whose devices data go.
    devices: how many take part in each.
    calls: a step.
    received: bytes that each device gets from others in all calls of a step.
  """

  kind: str
  axes: tuple[str, ...]
  devices: int
  calls: int
  received: float


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a program: its name, type, operation and the rest."""

  name: str
  type: str
  operation: str
  rest: str


class Program:
  """The computations of a compiled module and how often each runs.

  Attributes:
    unknown: loops whose length is not known before they run; they count once.
  """

  def __init__(self, text: str):
    """Parses what `Compiled.as_text()` gives."""
    self._computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    entry = ""
    for line in text.splitlines():
      if found := _COMPUTATION.match(line):
        current = self._computations[found[1]] = []
        entry = found[1] if line.startswith("ENTRY") else entry
      elif found := _INSTRUCTION.match(line):
        current.append(Instruction(*found.groups()))
    if not entry:
      raise ValueError("The compiled program has no entry; its text has another form.")
    self.unknown = 0
    self._times: dict[str, float] = collections.defaultdict(float)
    # Of these, within loops of unknown length.
    self._turns: dict[str, float] = collections.defaultdict(float)
    self._fused: set[str] = set()
    self._visit(entry, 1.0, False)

  def _visit(self, name: str, times: float, asked: bool) -> None:
    self._times[name] += times
    self._turns[name] += times * asked
    for line in self._computations.get(name, ()):
      inner, inner_asked = times, asked
      if line.operation == "while":
        trips = self._trips(line)
        self.unknown += trips is None
        inner *= trips or 1
        inner_asked |= trips is None
      called = _CALLED.findall(line.rest)
      for branches in _BRANCHES.findall(line.rest):
        called += [branch.strip(" %") for branch in branches.split(",")]
      for each in called:
        if line.operation in ("fusion", "reduce", "scatter", "sort", "map", "select-and-scatter"):
          self._fused.add(each)
        self._visit(each, inner, inner_asked)

  def _trips(self, loop: Instruction) -> int | None:
    """How often a loop runs: as XLA notes it, or the constant below which its counter stays."""
    if known := _TRIPS.search(loop.rest):
      return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", loop.rest)
    lines = self._computations.get(condition[1], []) if condition else []
    limits = [x.rest for x in lines if x.operation == "constant" and _COUNT.match(x.type)]
    below = [x for x in self._unwrapped(lines) if x.operation == "compare"]
    if len(limits) == len(below) == 1 and "direction=LT" in below[0].rest:
      return int(limits[0].split(")")[0])
    return None

  def _unwrapped(self, lines: list[Instruction]) -> list[Instruction]:
    """The lines, with those of fusions in place of these."""
    found = []
    for line in lines:
      called = _CALLED.search(line.rest) if line.operation == "fusion" else None
      found += self._computations.get(called[1], []) if called else [line]
    return found

  def lines(self) -> Iterator[tuple[Instruction, float, str]]:
    """Every instruction that runs, how often in a step, and the computation it is in."""
    for name, lines in self._computations.items():
      if times := self._times.get(name):
        yield from ((line, times, name) for line in lines)

  def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
    """What devices exchange, by kind and axes.

    Args:
      mesh: sizes of the axes, in the order of the devices.
    """
    sums: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for line, times, _ in self.lines():
      kind = line.operation.removesuffix("-start")
      if kind not in KINDS:
        continue
      axes, devices = axes_of(line, mesh)
      if devices < 2:
        continue
      sums[kind, axes, devices][0] += times
      sums[kind, axes, devices][1] += times * _received(kind, line.type, devices, line.operation)
    return [
      Collective(kind, axes, devices, round(calls), received)
      for (kind, axes, devices), (calls, received) in sorted(sums.items())
    ]

  def moved(self) -> tuple[float, float]:
    """Bytes read from and written to memory, if every operation and fusion does so once.

    A slice that a loop reads of a stack, or writes into one, counts as itself; so do rows that are
    gathered from a table.

    Returns:
      All of them, and those of one turn of every loop of unknown length, which are among them.
    """
    total = turn = 0.0
    for line, times, where in self.lines():
      if where in self._fused or line.operation in _FREE:
        continue
      touched = self._touched(line, where)
      total += times * touched
      turn += self._turns[where] * touched
    return total, turn

  def _touched(self, line: Instruction, where: str) -> float:
    types = {x.name: x.type for x in self._computations[where]}
    operands = [size_of(types[name]) for name in _operands(line) if name in types]
    result = size_of(line.type)
    if line.operation.endswith("-done"):
      return 0.0
    if line.operation.endswith("-start"):
      return 2.0 * sum(operands)
    if line.operation in ("dynamic-slice", "gather"):
      return 2 * result
    if line.operation == "dynamic-update-slice":
      return 2 * (operands[1] if len(operands) > 1 else result)
    if line.operation != "fusion":
      return result + sum(operands)
    sliced = self._sliced(line)
    read = sum(sliced[i][0] if i in sliced else size for i, size in enumerate(operands))
    return read + max(result - sum(kept for _, kept in sliced.values()), 0.0)

  def _sliced(self, fusion: Instruction) -> dict[int, tuple[float, float]]:
    """The operands of which a fusion touches slices alone, by position.

    Returns:
      Bytes read of each, and bytes that stay as they are where it is written in place.
    """
    called = _CALLED.search(fusion.rest)
    inside = self._computations.get(called[1], []) if called else []
    uses: dict[str, list[Instruction]] = collections.defaultdict(list)
    for line in inside:
      for name in set(_operands(line)):
        uses[name].append(line)
    sizes = {x.name: size_of(x.type) for x in inside}
    found = {}
    for x in inside:
      parts = [self._slice(use, x.name, sizes) for use in uses[x.name]]
      if x.operation == "parameter" and parts and None not in parts:
        read, kept = (float(sum(part)) for part in zip(*filter(None, parts)))
        found[int(x.rest.split(")")[0])] = min(read, sizes[x.name]), kept
    return found

  def _slice(
    self, use: Instruction, name: str, sizes: Mapping[str, int]
  ) -> tuple[float, float] | None:
    """What one use of a parameter of a fusion touches, as `_sliced`; None for all of it."""
    operands = _operands(use)
    places = [i for i, operand in enumerate(operands) if operand == name]
    if use.operation in ("dynamic-slice", "gather") and places == [0]:
      return size_of(use.type), 0.0
    if use.operation == "dynamic-update-slice" and places == [0]:
      return sizes[operands[1]], sizes[name] - sizes[operands[1]]
    if use.operation == "fusion":  # TPUs have fusions in fusions.
      nested = self._sliced(use)
      if nested.keys() >= set(places):
        return sum(nested[i][0] for i in places), sum(nested[i][1] for i in places)
    return None


def _operands(line: Instruction) -> list[str]:
  """Names of what an instruction takes."""
  return re.findall(r"%([\w.-]+)", line.rest.split("), ")[0])


def size_of(type_: str) -> int:
  """Bytes of all arrays of a type as the program's text writes it."""
  return sum(
    _BYTES.get(kind, 1) * math.prod(int(x) for x in dimensions.split(",") if x)
    for kind, dimensions in _SHAPE.findall(type_)
  )


def _received(kind: str, type_: str, devices: int, operation: str) -> float:
  """Bytes that a device gets from others in one call, from the type of the result."""
  sizes = [size_of(match[0]) for match in re.finditer(_SHAPE, type_)]
  # The result of an asynchronous start is a tuple of the operands, then the results.
  if operation == "all-gather-start":
    size = sum(sizes[len(sizes) // 2 :])
  elif operation == "collective-permute-start":
    size = max(sizes)
  else:
    size = sum(sizes)
  share = (devices - 1) / devices
  return {
    "all-gather": size * share,
    "all-reduce": 2 * size * share,
    "reduce-scatter": size * (devices - 1),
    "all-to-all": size * share,
    "collective-permute": float(size),
  }[kind]


def axes_of(exchange: Instruction, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
  """The mesh axes along which a group of devices lies, and how many devices it has."""
  shape = tuple(mesh.values())
  kind = exchange.operation.removesuffix("-start")
  group = _group(exchange.rest, kind, math.prod(shape))
  if len(group) < 2:
    return (), 1
  places = np.stack(np.unravel_index(group, shape))
  axes = tuple(name for name, place in zip(mesh, places) if len(set(place.tolist())) > 1)
  return axes, len(group)


def _group(rest: str, kind: str, devices: int) -> np.ndarray:
  """The first group of devices of an exchange, in any of the forms that XLA writes.

  Raises:
    ValueError: it is another form.
  """
  if kind == "collective-permute":
    pairs = re.search(r"source_target_pairs=\{\{([\d,]*)\}", rest)
    return np.asarray([int(x) for x in pairs[1].split(",")] if pairs else [])
  found = re.search(r"replica_groups=(\S+?(?:, device_ids=\(\S+\))?(?: \{[^}]*\})?)(?:, |$)", rest)
  text = found[1] if found else ""
  if text in ("", "{}"):
    return np.arange(devices)
  if listed := re.fullmatch(r"\{\{([\d,]+)\}.*", text):
    return np.asarray([int(x) for x in listed[1].split(",")])
  if iota := re.fullmatch(r"\[([\d,]+)\]<=(\[\S+)", text):
    return _iota(iota[2]).reshape(_numbers(iota[1]))[0]
  if named := re.fullmatch(r"mesh\[(\S+)\](?:, device_ids=\((\S+)\))? \{([^}:()]*)\}", text):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    ids = _iota(named[2]) if named[2] else np.arange(math.prod(sizes.values()))
    wanted = re.findall(r"'(\w+)'", named[3])
    # The others at their first place.
    index = tuple(slice(None) if name in wanted else 0 for name in sizes)
    return ids.reshape(tuple(sizes.values()))[index].ravel()
  raise ValueError(f"Groups of devices of an unknown form: {text[:200]}.")


def _iota(text: str) -> np.ndarray:
  """Device numbers in order, cut into a shape and transposed: `[2,4]T(1,0)`."""
  parsed = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  if not parsed:
    raise ValueError(f"Device numbers of an unknown form: {text[:200]}.")
  shape = _numbers(parsed[1])
  ids = np.arange(math.prod(shape)).reshape(shape)
  return (ids.transpose(_numbers(parsed[2])) if parsed[2] else ids).ravel()


def _numbers(text: str) -> list[int]:
  return [int(x) for x in text.split(",")]
