"""Every test keeps its state in a folder of its own. What costs seconds and is the same for all is made once."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from xdist.scheduler import LoadFileScheduling

from tests import warm

pytest_plugins = ["tests.promises", "tests.unit.worlds"]
ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
_SHARE_MODELS = ("tests/e2e/test_browser.py", "tests/e2e/test_chain.py"), ("tests/unit/evaluation/models/",)
# What takes longest begins first, or one process would be busy long after the other. The first one builds the smoke
# chain; the others of e2e come when it is there.
_FIRST = (
    "tests/e2e/test_browser.py",
    "tests/e2e/test_chain.py",
    "tests/unit/evaluation/models/",
    "tests/integration/test_bypass.py",
    "tests/integration/test_export_probe.py",
    "tests/integration/test_rejudging.py",
    "tests/integration/test_tracker.py",
    "tests/integration/test_launcher.py",
    "tests/unit/lmkernels/test_fp8.py",
    "tests/integration/test_bad_input.py",
    "tests/integration/test_hostile_files.py",
    "tests/e2e/test_controls.py",
    "tests/e2e/test_postgresql.py",
    "tests/e2e/test_untrained.py",
    "tests/integration/",
    *(f"tests/chaos/test_{name}.py" for name in ("servers", "faults_in_training", "tracker", "exact_training")),
    *(f"tests/chaos/test_{name}.py" for name in ("processes", "nights")),
)
# Hundreds of processes import the same modules: compiled once, and fingerprinted once, they start twice as fast.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.pop("COLUMNS", None)  # what a command prints must not be wrapped by the width of whoever runs the tests


# What the recipe check found good stays so until the code, a library or the recipe changes; every check costs seconds.
_CHECKS = ROOT / ".pytest_cache" / "checks"
_DATABASES = ROOT / ".pytest_cache" / "mlflow"


def share_checks(home: Path) -> None:
    """Let a home know the recipe checks of the tests before."""
    if home.is_file() or (home / "checks").exists():
        return
    _CHECKS.mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    (home / "checks").symlink_to(_CHECKS)


def share_database(path: Path) -> None:
    """Put an empty MLflow database where there is none: a copy, because MLflow makes one in some 1,700 statements."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    copied = path.with_name(f".{path.name}.copy")
    shutil.copyfile(_empty_database(), copied)
    copied.replace(path)


@cache
def _empty_database() -> Path:
    from pipeline.tracking.database import prepared

    path = _DATABASES / f"{version('mlflow')}.db"
    with prepared(f"sqlite:///{path}"):
        return path


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """A folder that is built by the first test that needs it, of whichever process, and read by all of this run."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, outcome = root / name, root / f"{name}.outcome"
    with FileLock(root / f"{name}.lock"):
        if not outcome.exists():
            outcome.write_text("it could not be built; the test that tried says why")
            build(folder)
            outcome.write_text("built")
        assert outcome.read_text() == "built", f"{name}: {outcome.read_text()}"
    return folder


def environment(home: Path, **extra: str) -> dict[str, str]:
    """What a shell that followed the README would have, with another home."""
    share_checks(home)
    if not home.is_file():
        share_database(home / "mlflow" / "mlflow.db")
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("GATEHOUSE_", "DAGSTER_", "MLFLOW_"))
    }
    return {
        **own,
        "PATH": f"{BIN}{os.pathsep}{own['PATH']}",
        "GATEHOUSE_HOME": str(home),
        "GATEHOUSE_DAGSTER": str(home / "dagster"),
        "DAGSTER_HOME": str(ROOT),
        "DAGSTER_MODULE_NAME": "pipeline.definitions",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        **extra,
    }


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GATEHOUSE_DAGSTER", str(tmp_path / "home" / "dagster"))


@pytest.fixture
def forked_jobs() -> Iterator[None]:
    """Jobs that a test's launcher starts are forked: the test is about what they make, not about their processes."""
    with warm.warm_jobs():
        yield


class _ByFile(LoadFileScheduling):
    """A file stays in one process, and so do the files that share models: those are trained once."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((group[0] for group in _SHARE_MODELS if file.startswith(group)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _ByFile(config, log)


def pytest_collection_finish() -> None:
    """Let torch compute in one thread: the tests' models are small, and threads that wait for each other spin."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest where several processes share the tests; the order within a file stays."""
    if hasattr(config, "workerinput"):
        items.sort(
            key=lambda item: next((rank for rank, file in enumerate(_FIRST) if item.nodeid.startswith(file)), 99)
        )
