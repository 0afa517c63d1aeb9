"""What a run makes of signals."""

import os
import signal

import pytest

from d4s_jax.training.interrupt import StopRequest


def test_any_number_of_sigterms_is_one_request_and_a_second_ctrl_c_ends_at_once():
  handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  # Pytest's own would be right too; whatever it is, it is what comes back.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with StopRequest() as stop:
      assert not stop.requested
      for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
      assert stop.requested
      os.kill(os.getpid(), signal.SIGINT)
      with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is handlers[0]
  finally:
    signal.signal(signal.SIGINT, handlers[1])
