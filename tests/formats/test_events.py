"""Files of TensorBoard, read by the code of another package."""

import math
import struct

import numpy as np
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from d4s_jax.formats.events import Events


def masked(contents):
  found = crc32c(contents)
  return ((found >> 15 | found << 17) + 0xA282EAD8) % 2**32


def read(file):
  contents, found = file.read_bytes(), []
  while contents:
    length, check = struct.unpack("<QI", contents[:12])
    assert check == masked(contents[:8])
    event = contents[12 : 12 + length]
    assert struct.unpack("<I", contents[12 + length : 16 + length]) == (masked(event),)
    contents = contents[16 + length :]
    found.append(Event.FromString(event))
  return found


def test_another_package_reads_what_was_written(tmp_path):
  events = Events(tmp_path / "board", 300)
  events.write(301, {"train/loss": 0.1, "train/größe": -1e30})
  (file,) = (tmp_path / "board").glob("events.out.tfevents.*")
  version, begin, *rest = read(file)  # Before it is closed.
  assert version.file_version == "brain.Event:2" and version.wall_time > 1.7e9
  # From this step on, what came before is forgotten.
  assert begin.step == 301 and begin.session_log.status == SessionLog.START
  events.write(10**6, {"heldout/psnr": math.nan})
  events.close()
  *_, first, last = read(file)
  assert [first] == rest and (first.step, last.step) == (301, 10**6)
  values = {value.tag: value.simple_value for value in first.summary.value}
  assert values == {"train/loss": np.float32(0.1), "train/größe": np.float32(-1e30)}
  assert math.isnan(last.summary.value[0].simple_value)
