"""Where the time of a compiled function goes: a trace of one run, summed by primitive and layer."""

import collections
import gzip
import json
import pathlib
import re
import tempfile

import jax

# Instructions that only hold others, whose time is counted by itself.
_CONTAINERS = ("while", "call", "conditional", "tuple", "parameter", "get-tuple-element")
_INSTRUCTION = re.compile(r'%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]+)"')
_ROWS = 14
_LEAST = 0.01


def profile(function, *args) -> None:
  """Prints the shares of a jitted function's time, by primitive and then by primitive and layer.

  A fusion counts for the primitive that XLA named it after. Shares are of the time of all
  instructions, added over threads.
  """
  compiled = function.lower(*args).compile()
  jax.block_until_ready(compiled(*args))
  origin = dict(_INSTRUCTION.findall(compiled.as_text()))
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(compiled(*args))
    (trace,) = pathlib.Path(folder).glob("**/*.trace.json.gz")
    with gzip.open(trace) as file:
      events = json.load(file)["traceEvents"]
  seconds: dict[str, float] = collections.defaultdict(float)
  for event in events:
    name = event.get("name", "")
    if event.get("ph") == "X" and name in origin and not name.startswith(_CONTAINERS):
      seconds[_label(origin[name])] += event["dur"] / 1e6
  total = sum(seconds.values())
  if not total:
    raise RuntimeError("The trace holds no instruction of the compiled function.")
  kinds: dict[str, float] = collections.defaultdict(float)
  for label, spent in seconds.items():
    kinds[label.split()[0]] += spent
  for table in (kinds, seconds):
    for label, spent in sorted(table.items(), key=lambda item: -item[1])[:_ROWS]:
      if spent > _LEAST * total:
        print(f"  {spent / total:5.1%} {spent:7.3f} s  {label}", flush=True)
    print()


def _label(path: str) -> str:
  """The primitive, the pass it belongs to and the two innermost modules of an `op_name`."""
  *scopes, primitive = path.split("/")
  direction = "backward" if any("transpose(" in scope for scope in scopes) else "forward"
  modules = [scope for scope in scopes if "(" not in scope]
  modules = [scope for scope in modules if scope not in ("while", "body", "closed_call")]
  return f"{primitive} ({direction}, {'/'.join(modules[-2:]) or 'outside'})"
