"""Parts of a stage's work: in a pool or in one process, after any kill, and what a part that cannot be done says."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from training.errors import RecipeError, SourceError
from training.job.events import EventReader, EventWriter
from training.job.parts import Part, Pool
from training.specs.execution import Execution

MEGABYTES = 40 * 2**20  # enough for a pool


def square(number: int, folder: Path) -> dict[str, Any]:
    (folder / "deep").mkdir()
    (folder / "deep" / "square.txt").write_text(str(number**2))
    (folder / "process.txt").write_text(str(os.getpid()))
    return {"root": number}


def refuse(number: int, folder: Path) -> dict[str, Any]:
    (folder / "half.txt").write_text("half")
    if number == 3:
        raise SourceError("three.jsonl:7: no text; repair it")
    return {}


def fill_the_disk(number: int, folder: Path) -> dict[str, Any]:
    raise OSError(errno.ENOSPC, "No space left on device", str(folder))


def divide(number: int, folder: Path) -> dict[str, Any]:
    return {"share": 1 / (number - 2)}


def die_at_three(number: int, folder: Path) -> dict[str, Any]:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def die_once(number: int, folder: Path) -> dict[str, Any]:
    mark = folder.parent.parent / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os._exit(9)
    return {"number": number}


def allocate(number: int, folder: Path) -> dict[str, Any]:
    return {"length": len(bytearray(number * 10**9))}


def pool(folder: Path, processes: int = 2, **execution: int) -> Pool:
    return Pool(folder, Execution(threads=processes, **execution), EventWriter(folder / "events.jsonl"))


def parts(count: int = 6) -> list[Part[int]]:
    return [Part(f"{number:05d}", number, MEGABYTES, f"{number}.parquet") for number in range(count)]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_parts(tmp_path: Path, processes: int) -> None:
    done = pool(tmp_path, processes).run("square", square, parts())
    assert [finished.result for finished in done] == [{"root": number} for number in range(6)]
    assert [(finished.folder / "deep" / "square.txt").read_text() for finished in done] == [
        "0",
        "1",
        "4",
        "9",
        "16",
        "25",
    ]
    ran_in = {(finished.folder / "process.txt").read_text() for finished in done}
    assert (ran_in == {str(os.getpid())}) == (processes == 1)
    assert len(ran_in) <= processes


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    first = pool(tmp_path).run("square", square, parts(4))
    written = {finished.folder: (finished.folder / "process.txt").stat().st_mtime_ns for finished in first}
    done = pool(tmp_path).run("square", square, parts(6))
    assert {finished.folder: (finished.folder / "process.txt").stat().st_mtime_ns for finished in done[:4]} == written
    last = [event for event in EventReader(tmp_path / "events.jsonl").poll() if event["kind"] == "progress"][-1]
    assert (last["done"], last["total"], last["unit"]) == (251.7, 251.7, "MB")
    assert "168 MB were done before" in last["note"]


def test_a_refusal_stops_the_step_and_half_a_part_is_no_part(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"three\.jsonl:7"):
        pool(tmp_path).run("refuse", refuse, parts())
    assert not (tmp_path / "parts" / "refuse" / "00003").exists()
    left = tmp_path / "parts" / "refuse" / "00003.0.unfinished"
    left.mkdir()
    done = pool(tmp_path, 1).run("refuse", square, parts())
    assert done[3].result == {"root": 3}
    assert not left.exists() and not (done[3].folder / "half.txt").exists()


def test_errors_keep_what_they_say(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as full:
        pool(tmp_path).run("fill", fill_the_disk, parts())
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match=r"2\.parquet:\n(.*\n)*ZeroDivisionError"):
        pool(tmp_path).run("divide", divide, parts(4))


def test_a_part_that_always_kills_its_process_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"3\.parquet: 3 processes died .* signal 9 \(SIGKILL\)"):
        pool(tmp_path).run("die", die_at_three, parts())
    assert {path.name for path in (tmp_path / "parts" / "die").iterdir()} >= {"00000", "00001", "00002"}


def test_a_process_that_dies_once_loses_nothing(tmp_path: Path) -> None:
    done = pool(tmp_path).run("die", die_once, parts())
    assert [finished.result["number"] for finished in done] == list(range(6))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process holds")
def test_a_process_gets_no_more_memory_than_the_launcher_says(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        pool(tmp_path, memory_megabytes=500).run("allocate", allocate, parts(2))


def test_a_killed_job_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            from training.job.events import EventWriter
            from training.job.parts import Part, Pool
            from training.specs.execution import Execution

            def work(number, folder):
                time.sleep(0.5 if number < 4 else 600)
                return {"number": number}

            if __name__ == "__main__":
                parts = [Part(str(number), number, 40 * 2**20) for number in range(8)]
                Pool(Path(sys.argv[1]), Execution(threads=2), EventWriter(None)).run("slow", work, parts)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    job = subprocess.Popen([sys.executable, tmp_path / "slow.py", tmp_path], env=environment)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("parts/slow/*/record.json"))) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    workers = psutil.Process(job.pid).children(recursive=True)
    assert len(workers) >= 2
    job.kill()
    job.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive

    (tmp_path / "parts" / "square").symlink_to(tmp_path / "parts" / "slow")
    done = pool(tmp_path, 1).run("square", square, [Part(str(number), number, 1) for number in range(6)])
    assert [finished.result for finished in done] == [
        *({"number": number} for number in range(4)),
        *({"root": number} for number in (4, 5)),
    ]


def test_parts_are_taken_in_their_order_as_soon_as_they_are_done(tmp_path: Path) -> None:
    taken: list[int] = []
    pool(tmp_path, 3).run("square", square, parts(), take=lambda done: taken.append(done.result["root"]))
    assert taken == list(range(6))


def test_what_was_made_of_another_state_is_made_again(tmp_path: Path) -> None:
    def parts_of(states: str) -> list[Part[int]]:
        return [Part(str(number), number, 1, state=state) for number, state in enumerate(states)]

    first = pool(tmp_path, 1).run("square", square, parts_of("ab"))
    before = [(done.folder / "process.txt").stat().st_ino for done in first]
    again = pool(tmp_path, 1).run("square", square, parts_of("ac"))
    after = [(done.folder / "process.txt").stat().st_ino for done in again]
    assert after[0] == before[0] and after[1] != before[1]
