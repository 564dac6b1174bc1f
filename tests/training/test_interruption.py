"""Signals as requests. What a second one does to a process is in `tests/test_resume.py`."""

import os
import signal
import time

import pytest

from common.training.interruption import Interruption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_a_request(number, code):
    said: list[str] = []
    before = signal.getsignal(number)
    with Interruption(said.append) as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), number)
        assert interruption.requested
        assert interruption.signalled()
        assert interruption.exit_code == code
    assert len(said) == 1
    assert signal.getsignal(number) is before


def test_time_that_is_up_is_a_request_that_cuts_no_decoding_short():
    with Interruption(lambda text: None, max_minutes=0.001) as interruption:
        assert not interruption.requested
        time.sleep(0.1)
        assert interruption.requested
        assert not interruption.signalled()
        assert interruption.exit_code == 0
