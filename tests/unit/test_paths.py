"""Addresses of databases and servers, as people write them and as they are used."""

import os
from pathlib import Path

import pytest

from pipeline import paths
from pipeline.paths import prepare, tracking_server, tracking_uri, variables
from training.errors import UserError

GIVE_UP = "keepalives_idle=60&keepalives_interval=20&keepalives_count=3&tcp_user_timeout=120000"


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("postgresql://ann:pw@db:5432/mlflow", f"postgresql+psycopg2://ann:pw@db:5432/mlflow?{GIVE_UP}"),
        ("postgres://ann:p?w@db/mlflow", f"postgresql+psycopg2://ann:p?w@db/mlflow?{GIVE_UP}"),
        ("postgresql://db/mlflow?user=ann@db", f"postgresql+psycopg2://db/mlflow?user=ann@db&{GIVE_UP}"),
        ("postgresql://db/mlflow?keepalives=0", "postgresql+psycopg2://db/mlflow?keepalives=0"),
        ("postgresql+psycopg2://db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_a_silent_database_is_given_up(monkeypatch: pytest.MonkeyPatch, written: str, used: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", written)
    assert tracking_uri() == used
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variables()["MLFLOW_TRACKING_URI"])
    assert tracking_uri() == used, "a child process has the same address"
    assert tracking_server() == "" and "GATEHOUSE_MLFLOW_URL" not in variables()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("https://ann:p@ss:word@mlflow.example:5000/team/?x=1", "https://mlflow.example:5000/team"),
        ("https://token@mlflow.example", "https://mlflow.example"),
        ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
    ],
)
def test_an_mlflow_server_is_linked_to_without_credentials(
    monkeypatch: pytest.MonkeyPatch, written: str, shown: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", written)
    assert tracking_server() == shown and variables()["GATEHOUSE_MLFLOW_URL"] == shown


@pytest.mark.parametrize("name", ["h?c", "a b?c#d", "h%41x", "100%25"])
def test_a_home_that_dagster_would_misread_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("GATEHOUSE_HOME", str(tmp_path / name / "home"))
    with pytest.raises(UserError, match=r"home: Dagster cannot work in a path with \? or with %.*GATEHOUSE_HOME"):
        prepare()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["h 50%", "h#d", "h ü b", "100%/x"])
def test_a_home_with_other_odd_characters_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(os, "environ", os.environ | {"GATEHOUSE_HOME": str(tmp_path / name)})
    prepare()
    assert (tmp_path / name / "work").is_dir()


def test_a_project_in_a_path_with_a_percent_sign_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path / "100%" / "gatehouse")
    with pytest.raises(UserError, match=r"100%/gatehouse: Dagster cannot work in a path with %; move the project"):
        prepare()
    assert not list(tmp_path.iterdir())
