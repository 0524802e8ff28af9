"""A lock's holder is named to the next one; who only asks about a lock stands in nobody's way."""

import fcntl
import threading
import time
from pathlib import Path

import pytest

from pipeline.jobs.locks import CLEANING, LOCK_FILE, building, held, is_held
from tests.patience import at_most
from training.errors import Busy


def test_a_held_lock_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path, "run 1a2b3c4d", "%s"):
        assert is_held(path)
        with at_most(2), pytest.raises(Busy, match="run 1a2b3c4d"), held(path, "another run", "%s"):
            pass
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


def test_a_build_waits_until_what_was_left_running_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "tiny" / "tokenizer" / LOCK_FILE
    cleaning, cleaned = threading.Event(), threading.Event()

    def clean() -> None:
        with held(path, CLEANING, "%s"):
            cleaning.set()
            time.sleep(1)
            cleaned.set()

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    assert cleaning.wait(60)
    with building(tmp_path, "tiny", "tokenizer", "a run that is started again"):
        assert cleaned.is_set()
    cleaner.join()
