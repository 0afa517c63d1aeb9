"""The start of the engine, with a Ray that fails."""

import os
import signal
import socket
import sys
import types

import pytest

from d4s_jax.curation import pipeline


@pytest.fixture
def started(monkeypatch):
  """Calls of a Ray that fails to start as often as `started.fails` says."""
  ray = types.ModuleType("ray")
  ray.calls, ray.fails = [], 0

  def init(**options):
    ray.calls.append(options)
    if len(ray.calls) <= ray.fails:
      raise Exception("The current node timed out\nduring startup.")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

  ray.init, ray.shutdown, ray.is_initialized = init, lambda: None, lambda: False
  monkeypatch.setitem(sys.modules, "ray", ray)
  monkeypatch.delenv("RAY_ADDRESS", raising=False)
  # Put back afterwards.
  monkeypatch.setenv("RAY_NUM_REDIS_GET_RETRIES", "")
  monkeypatch.delenv("RAY_NUM_REDIS_GET_RETRIES")
  return ray


def test_a_busy_machine_is_given_more_than_one_chance(started):
  started.fails = 2
  stop = signal.getsignal(signal.SIGTERM)
  with pipeline._engine() as engine:
    assert engine is started and len(started.calls) == 3
    assert signal.getsignal(signal.SIGTERM) == stop
  # Nothing listens beyond this machine.
  assert started.calls[0]["_node_ip_address"] == "127.0.0.1"
  assert started.calls[0]["include_dashboard"] is False
  assert "RAY_NUM_REDIS_GET_RETRIES" not in os.environ


def test_an_engine_that_does_not_start_is_told_in_one_line(started):
  started.fails = 9
  with pytest.raises(ConnectionError, match="timed out during startup.*RAY_ADDRESS right, or this"):
    with pipeline._engine():
      raise AssertionError


def test_without_ray_the_remedy_is_told(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(ValueError, match="pip install -e '.\\[curation\\]'"):
    with pipeline._engine():
      raise AssertionError


def test_a_cluster_that_is_not_there_is_told_before_ray_waits_for_it(started, monkeypatch):
  for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:99999"):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConnectionError, match="can't be reached.*expected HOST:PORT of a running"):
      with pipeline._engine():
        raise AssertionError
  assert not started.calls


def test_a_cluster_that_is_no_ray_is_given_one_chance(started, monkeypatch):
  started.fails = 9
  with socket.create_server(("127.0.0.1", 0)) as other:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{other.getsockname()[1]}")
    with pytest.raises(ConnectionError, match="is RAY_ADDRESS right"):
      with pipeline._engine():
        raise AssertionError
  assert len(started.calls) == 1 and os.environ["RAY_NUM_REDIS_GET_RETRIES"] == "2"
