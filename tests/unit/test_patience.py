"""Limits that a busy machine stretches, and that what hangs meets all the same."""

from __future__ import annotations

import sys
import time

import pytest

from tests import patience
from tests.patience import Patience, at_most, run_command


@pytest.mark.parametrize(("share", "seconds"), [(1.0, 10), (0.25, 40)])
def test_the_clock_goes_as_slowly_as_the_machine_is_busy(
    monkeypatch: pytest.MonkeyPatch, share: float, seconds: int
) -> None:
    now = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience, "_share", lambda: share)
    limit = Patience(10)
    while not limit.is_over():
        now[0] += 1
    assert now[0] == seconds + 1


def test_a_block_that_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_share", lambda: 1.0)
    with at_most(30):
        pass
    with pytest.raises(AssertionError, match="not 0.1 s at most"), at_most(0.1):
        time.sleep(0.3)


def test_a_command_that_goes_on_talking_is_no_hang() -> None:
    code = "import time\nfor number in range(6): print(number, flush=True); time.sleep(0.3)"
    done = run_command([sys.executable, "-c", code], silent_seconds=1)
    assert (done.returncode, done.stdout.split()) == (0, list("012345"))


def test_a_command_that_hangs_fails_with_what_it_said() -> None:
    code = "import time; print('before', flush=True); time.sleep(600)"
    with pytest.raises(AssertionError, match="hangs; it said:\nbefore"):
        run_command([sys.executable, "-c", code], silent_seconds=1)
