"""A lock's holder is named to the next one; who only asks about a lock stands in nobody's way."""

import fcntl
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import Timeout

from pipeline.jobs.locks import CLEANING, LOCK_FILE, building, held, in_turn, is_held, plain_lock
from tests.patience import at_most
from training.errors import Busy, StoreError


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


@pytest.mark.parametrize("lock", ["in_turn", "plain_lock"])
def test_a_plain_lock_is_waited_for_and_freed_by_a_kill(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "plain.lock"
    code = (
        "import sys, time; from pathlib import Path; from pipeline.jobs import locks\n"
        f"with locks.{lock}(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout), plain_lock(path, 0.1):
            pass
        holder.send_signal(signal.SIGKILL)
        with plain_lock(path, 20):
            assert path.exists()


def test_a_plain_lock_in_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = "file/plain.lock: .*; the folder of Gatehouse's state must be writable"
    with pytest.raises(StoreError, match=message), in_turn(tmp_path / "file" / "plain.lock"):
        pass


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
