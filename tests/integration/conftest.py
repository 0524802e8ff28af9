"""What several modules of integration tests begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import warm
from tests.conftest import built_once
from tests.integration.workspaces import DATA, Workspace, workspace


@pytest.fixture(scope="session")
def data_chain(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A user whose data stages are built and promoted. Built once; tests work on copies."""

    def build(folder: Path) -> None:
        with warm.stand_in() as python:
            done = workspace(folder, python).run("--select", DATA)
        assert done.returncode == 0, done.stdout

    return Workspace(built_once(tmp_path_factory, "data_chain", build))
