"""Fixtures of the judging tests."""

from pathlib import Path

import pytest

from tests.unit.gates.worlds import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
