"""Addresses of databases and servers, as people write them and as they are used."""

import pytest

from pipeline.environment import tracking_server, tracking_uri, variables

GIVE_UP = "keepalives_idle=60&keepalives_interval=20&keepalives_count=3&tcp_user_timeout=120000"


@pytest.mark.parametrize(("written", "used"), [
    ("postgresql://ann:pw@db:5432/mlflow", f"postgresql+psycopg2://ann:pw@db:5432/mlflow?{GIVE_UP}"),
    ("postgres://ann:p?w@db/mlflow", f"postgresql+psycopg2://ann:p?w@db/mlflow?{GIVE_UP}"),
    ("postgresql://db/mlflow?user=ann@db", f"postgresql+psycopg2://db/mlflow?user=ann@db&{GIVE_UP}"),
    ("postgresql://db/mlflow?keepalives=0", "postgresql+psycopg2://db/mlflow?keepalives=0"),
    ("postgresql+psycopg2://db/mlflow", "postgresql+psycopg2://db/mlflow"),
    ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
])
def test_a_silent_database_is_given_up(monkeypatch: pytest.MonkeyPatch, written: str, used: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", written)
    assert tracking_uri() == used
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variables()["MLFLOW_TRACKING_URI"])
    assert tracking_uri() == used, "a child process has the same address"
    assert tracking_server() == "" and "GATEHOUSE_MLFLOW_URL" not in variables()


@pytest.mark.parametrize(("written", "shown"), [
    ("https://ann:p@ss:word@mlflow.example:5000/team/?x=1", "https://mlflow.example:5000/team"),
    ("https://token@mlflow.example", "https://mlflow.example"),
    ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
])
def test_an_mlflow_server_is_linked_to_without_credentials(monkeypatch: pytest.MonkeyPatch, written: str,
                                                           shown: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", written)
    assert tracking_server() == shown and variables()["GATEHOUSE_MLFLOW_URL"] == shown
