"""Nothing waits for a receiver of records that is slow or gone."""

from __future__ import annotations

import threading
import time

import pytest

from xftrain.train import send_queue
from xftrain.train.send_queue import SendQueue


def test_records_are_sent_in_their_order() -> None:
    sent: list[int] = []
    records = SendQueue("Server")
    for number in range(100):
        records.put(lambda number=number: sent.append(number))
    records.close(lambda: sent.append(-1), 10)
    assert sent == [*range(100), -1]


def test_a_receiver_that_hangs_holds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    gone = threading.Event()
    records = SendQueue("Server")
    begin = time.monotonic()
    for _ in range(3):
        records.put(lambda: gone.wait(60) and None)
    records.close(lambda: None, 0.2)
    gone.set()
    assert time.monotonic() - begin < 5
    assert "Server has not received all records within 0.2 s." in caplog.text


def test_after_a_failure_there_is_a_pause_and_the_last_record_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, tried = [0.0], []
    monkeypatch.setattr(send_queue.time, "monotonic", lambda: now[0])
    records = SendQueue("Server")

    def fail(at: float) -> None:
        now[0] = at
        tried.append(at)
        raise ConnectionError("gone")

    # the pauses: until 10, then until 11 + 20, then until 32 + 40
    for at in (0.0, 5.0, 11.0, 15.0, 32.0):
        now[0] = at
        records._attempt(lambda at=at: fail(at))
    assert tried == [0.0, 11.0, 32.0]
    ended: list[str] = []
    records.close(lambda: ended.append("end"), 10)
    assert ended == ["end"]
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2 and warned[1] == "Server has not received 5 records."


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send_queue, "_MAX_WAITING", 3)
    gate, sent = threading.Event(), []
    records = SendQueue("Server")
    for number in range(10):
        records.put(lambda number=number: (gate.wait(10), sent.append(number))[1])
    gate.set()
    records.close(lambda: None, 10)
    assert sent == sorted(sent) and 3 <= len(sent) <= 4
