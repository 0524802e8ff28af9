"""Promises and the trials that could break them. `make chaos` makes the full counts and prints one table.

A test names its promise and asks for trials; the run decides how many:

    @pytest.mark.promise("A killed job that is started again ends in the same bytes")
    def test_kill(promise: Promise) -> None:
        for trial in promise.trials(quick=2, full=50):
            with trial:
                ... trial.random ...

Each trial has its own seed, so that a failed one can be run again. A failure is counted and the next trial begins; the
test fails in the end, and names the trials.

The full counts take hours. With `--kept`, what passed is noted as soon as it did, and a run that was interrupted goes
on from there: on the same code nothing is tried again. The code of a test is all that is tracked but texts, results and
the other modules in tests/chaos: where one of them is mended, only its own tests are made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pytest

_PROPERTY, _MODULE = "promise", "module"
_ROOT = Path(__file__).resolve().parent.parent
_OTHER = (":!benchmarks/results", ":!*.md", ":!tests/chaos/test_*.py")
Row = tuple[str, int, int, float]
_NO_FAILURE = (pytest.skip.Exception, KeyboardInterrupt, SystemExit, GeneratorExit)


class Trial:
    """One attempt to break a promise.

    Attributes:
        number: From 0 on.
        random: Seeded with the promise and the number.
    """

    def __init__(self, promise: Promise, number: int) -> None:
        self.number = number
        self.random = random.Random(f"{promise.text} {number}")
        self._promise = promise

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._promise.made += 1
        if kind is None or issubclass(kind, _NO_FAILURE):
            return False
        told = "".join(traceback.format_exception(kind, error, trace))
        self._promise.failures.append(f"trial {self.number}: {told}")
        return True


@dataclass
class Promise:
    """What is promised, and how often it was tried."""

    text: str
    full: bool
    made: int = 0
    failures: list[str] = field(default_factory=list)

    def trials(self, quick: int, full: int) -> Iterator[Trial]:
        """Trials to make: `quick` of them in CI, `full` of them under `make chaos`."""
        for number in range(full if self.full else quick):
            yield Trial(self, number)
        assert not self.failures, (
            f"{len(self.failures)} of {self.made} trials broke the promise: {self.text}\n\n"
            + "\n".join(self.failures[:3])
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`: as many trials as `make chaos` makes; `--table`: where its table goes."""
    parser.addoption("--full", action="store_true", help="make all trials of the promises in tests/chaos")
    parser.addoption("--table", type=Path, help="write the table of promises to this Markdown file")
    parser.addoption(
        "--kept", type=Path, help="with --full: note in this file what passed, and leave out what did on the same code"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect what the tests report, also those of other processes (`-n 2`)."""
    config.pluginmanager.register(_Results(config))


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Iterator[Promise]:
    """The promise that a test's marker names."""
    marker = request.node.get_closest_marker("promise")
    assert marker is not None, f"{request.node.nodeid} needs @pytest.mark.promise"
    text = marker.args[0].format(**getattr(getattr(request.node, "callspec", None), "params", {}))
    made = Promise(text, request.config.getoption("--full"))
    started = time.monotonic()
    yield made
    row = (made.text, made.made, len(made.failures), time.monotonic() - started)
    request.node.user_properties += [(_MODULE, module_digest(request.node.path)), (_PROPERTY, row)]


def code_digest() -> str:
    """Digest of the checkout but for texts, results and the modules in tests/chaos; empty where git cannot tell."""
    staged, changed, untracked = (
        subprocess.run(["git", *command, "--", ".", *_OTHER], cwd=_ROOT, capture_output=True)
        for command in (["ls-files", "--stage"], ["diff"], ["ls-files", "-z", "--others", "--exclude-standard"])
    )
    if staged.returncode or changed.returncode or untracked.returncode:
        return ""
    digest = hashlib.sha256(staged.stdout + changed.stdout)
    for name in filter(None, untracked.stdout.decode().split("\0")):
        digest.update(name.encode() + (_ROOT / name).read_bytes())
    return digest.hexdigest()


@functools.cache
def module_digest(path: Path) -> str:
    """Digest of a test's module as it was when this process first asked, which is when it was collected."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _noted(path: Path, code: str, root: Path) -> dict[str, Row]:
    """What a file says has passed on this code; a line cut short or of another form says nothing."""
    found: dict[str, Row] = {}
    for line in path.read_text().splitlines() if code and path.exists() else ():
        with suppress(ValueError, KeyError):
            note = json.loads(line)
            if (note["code"], note["module"]) == (code, module_digest(root / note["test"].split("::")[0])):
                found[note["test"]] = note["row"]
    return found


class _Results:
    """Makes the table of promises out of the tests' reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._broken: set[str] = set()
        self._kept: Path | None = config.getoption("--kept") if config.getoption("--full") else None
        self._code = code_digest() if self._kept else ""
        self._rows = _noted(self._kept, self._code, config.rootpath) if self._kept else {}
        self._passed = frozenset(self._rows)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items if self._kept else ():
            module_digest(item.path)
        left_out = [item for item in items if item.nodeid in self._passed]
        items[:] = [item for item in items if item.nodeid not in self._passed]
        self._config.hook.pytest_deselected(items=left_out)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._passed and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "promise" not in report.keywords:
            return
        self._rows.setdefault(report.nodeid, (report.nodeid, 0, 0, 0.0))
        if report.failed:
            self._broken.add(report.nodeid)
        properties = dict(report.user_properties)
        if report.when == "teardown" and _PROPERTY in properties:
            self._rows[report.nodeid] = properties[_PROPERTY]
            self._keep(report.nodeid, properties[_MODULE], properties[_PROPERTY])

    def _keep(self, test: str, module: str, row: Row) -> None:
        """Note what passed; the tests' own processes (`-n 2`) leave that to the one that hears of all."""
        passed = row[1] and test not in self._broken
        if self._kept and passed and not hasattr(self._config, "workerinput") and self._code == code_digest():
            self._kept.parent.mkdir(exist_ok=True)
            with self._kept.open("a") as file:  # on a line of its own, even after one that was cut short
                file.write("\n" + json.dumps({"code": self._code, "module": module, "test": test, "row": row}) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        if not self._rows:
            return
        rows = []
        for node, (text, made, failures, seconds) in sorted(self._rows.items()):
            broken = max(failures, int(node in self._broken))
            rows.append(f"| {text} | {made:,} | {broken if made or broken else 'skipped'} | {seconds:.0f} s |")
        table = "\n".join(["| promise | trials | failures | time |", "|---|--:|--:|--:|", *rows]) + "\n"
        if self._config.getoption("--full"):
            terminalreporter.section("promises")
            terminalreporter.write(table)
        target = self._config.getoption("--table")
        if target and exitstatus != pytest.ExitCode.INTERRUPTED:  # half a table would look like a whole one
            target.write_text(table)
