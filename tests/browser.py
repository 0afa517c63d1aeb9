"""A headless Chromium that tests drive through its debugging protocol: real pointers and keys."""

import contextlib
import itertools
import json
import pathlib
import shutil
import subprocess
import time

import pytest

BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")
FLAGS = (
  *("--headless", "--no-sandbox", "--no-first-run", "--disable-background-networking"),
  *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)


class Tab:
  """One page."""

  def __init__(self, socket):
    self._socket, self._numbers = socket, itertools.count(1)

  def call(self, method: str, **parameters):
    """Sends one command and waits for its result."""
    number = next(self._numbers)
    self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
    while True:
      message = json.loads(self._socket.recv())
      if message.get("id") == number:
        assert "error" not in message, message
        return message["result"]

  def run(self, script: str):
    """The value of an expression, awaited."""
    result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in result, result
    return result["result"].get("value")

  def wait(self, condition: str, seconds: float = 30):
    """Waits until an expression is true, and returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      if value := self.run(condition):
        return value
      time.sleep(0.05)
    raise AssertionError(f"{condition} did not come true; {self.run('window.failed')}")

  def key(self, code: str, key: str, seconds: float = 0.0):
    """Presses a key, for so long."""
    self.call("Input.dispatchKeyEvent", type="keyDown", code=code, key=key)
    time.sleep(seconds)
    self.call("Input.dispatchKeyEvent", type="keyUp", code=code, key=key)

  def drag(self, start, end, button: str = "left"):
    """Drags the mouse along a line."""
    held = {"left": 1, "right": 2}[button]
    common = {"button": button, "clickCount": 1}
    self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **common)
    for share in (0.5, 1.0):
      x, y = (a + share * (b - a) for a, b in zip(start, end))
      self.call(
        "Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button=button, buttons=held
      )
    self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **common)

  def touch(self, kind: str, *points):
    """A touch event: "touchStart", "touchMove" or "touchEnd"."""
    places = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
    self.call("Input.dispatchTouchEvent", type=kind, touchPoints=places)

  def memory(self) -> float:
    """Bytes of JavaScript that are in use, after collecting what is not, buffers included."""
    self.call("HeapProfiler.collectGarbage")
    usage = self.call("Runtime.getHeapUsage")
    return usage["usedSize"] + usage.get("backingStorageSize", 0)


def resident(folder: pathlib.Path) -> dict[str, float]:
  """Bytes that the processes of `open_tab(..., folder)` have in memory, by what they are."""
  found: dict[str, float] = {}
  for place in pathlib.Path("/proc").iterdir():
    with contextlib.suppress(OSError, ValueError, StopIteration):
      command = (place / "cmdline").read_text().replace("\0", " ")
      if str(folder / "profile") not in command:
        continue
      kind = command.partition("--type=")[2].partition(" ")[0] or "browser"
      line = next(x for x in (place / "status").read_text().splitlines() if x.startswith("VmRSS"))
      found[kind] = found.get(kind, 0) + 1024 * int(line.split()[1])
  return found


@contextlib.contextmanager
def open_tab(address: str, folder: pathlib.Path, width: int = 900, height: int = 600):
  """A tab that shows an address; downloads go to the folder."""
  import websocket

  profile = folder / "profile"
  command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0"]
  command += [f"--window-size={width},{height}", "--remote-allow-origins=*", "about:blank"]
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
  try:
    assert process.stderr is not None
    line = next(line for line in process.stderr if "DevTools listening on" in line)
    base = line.split()[-1].split("/devtools")[0].replace("ws://", "http://")
    import urllib.request

    with urllib.request.urlopen(f"{base}/json") as answer:
      targets = json.load(answer)
    place = next(x["webSocketDebuggerUrl"] for x in targets if x["type"] == "page")
    socket = websocket.create_connection(place, timeout=120)
    tab = Tab(socket)
    tab.call("Page.enable")
    tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    tab.call("Page.navigate", url=address)
    yield tab
    socket.close()
  finally:
    process.kill()
    process.wait()
    process.stderr.close()
