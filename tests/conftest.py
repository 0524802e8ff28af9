"""Every test keeps its state in a folder of its own."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

pytest_plugins = ["tests.promises", "tests.unit.worlds"]
ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
_SHARE_MODELS = ("tests/e2e/", "tests/unit/evaluation/models/")
# Hundreds of processes import the same modules: compiled once, and fingerprinted once, they start twice as fast.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.pop("COLUMNS", None)  # what a command prints must not be wrapped by the width of whoever runs the tests


# What the recipe check found good stays so until the code, a library or the recipe changes; every check costs seconds.
_CHECKS = ROOT / ".pytest_cache" / "checks"


def share_checks(home: Path) -> None:
    """Let a home know the recipe checks of the tests before."""
    if home.is_file() or (home / "checks").exists():
        return
    _CHECKS.mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    (home / "checks").symlink_to(_CHECKS)


def environment(home: Path, **extra: str) -> dict[str, str]:
    """What a shell that followed the README would have, with another home."""
    share_checks(home)
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


class _ByFile(LoadFileScheduling):
    """A file stays in one process, and so do the files that share models: those are trained once."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((folder for folder in _SHARE_MODELS if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _ByFile(config, log)
