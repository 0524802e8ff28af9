"""A lock's holder is named to the next one; who only asks about a lock stands in nobody's way."""

import fcntl
import threading
import time
from pathlib import Path

import pytest

from pipeline.locks import held, is_held
from training.errors import Busy


def test_a_held_lock_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path, "run 1a2b3c4d", "%s"):
        assert is_held(path)
        started = time.monotonic()
        with pytest.raises(Busy, match="run 1a2b3c4d"), held(path, "another run", "%s"):
            pass
        assert time.monotonic() - started < 2
    assert is_held(path) is False


def test_a_question_about_a_lock_hinders_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as asked:
        fcntl.flock(asked, fcntl.LOCK_EX)
        answered = threading.Timer(0.05, fcntl.flock, (asked, fcntl.LOCK_UN))
        answered.start()
        with held(path, "a run", "%s"):
            assert is_held(path)
        answered.join()
