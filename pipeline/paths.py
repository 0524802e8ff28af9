"""Where Gatehouse keeps its state, and the environment variables that the tools around it read.

`python -m pipeline.paths` prints the variables as shell exports; `env.sh` evaluates them.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from training.errors import StoreError, UserError

DATABASES = ("GATEHOUSE_POSTGRES_URL", "MLFLOW_TRACKING_URI")
"""Variables that may hold a password; jobs don't get them."""
ROOT = Path(__file__).resolve().parent.parent
_SERVER = re.compile(r"(https?://)(?:[^/]*@)?([^?#]*)")
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")
_DATABASE_USER = re.compile(r"^[^:]+://(?:[^:/]*(?::[^@]*)?@)?")
# Without these a connection waits up to two hours for a server that went away without closing it.
_GIVE_UP = "keepalives_idle=60&keepalives_interval=20&keepalives_count=3&tcp_user_timeout=120000"


def home() -> Path:
    """The one folder of all state: `$GATEHOUSE_HOME`, by default `.gatehouse` in the project."""
    return Path(os.environ.get("GATEHOUSE_HOME", ROOT / ".gatehouse")).expanduser().absolute()


def store_root() -> str:
    """Root of the store: `$GATEHOUSE_STORE` (a folder or an s3:// URL), by default a folder of the home."""
    return os.environ.get("GATEHOUSE_STORE") or str(home() / "store")


def work() -> Path:
    """Folder of the attempts: events, logs, checkpoints. Local, or on a file system that the jobs share."""
    return home() / "work"


def runs() -> Path:
    """Folder of the locks that running Dagster runs hold."""
    return home() / "runs"


def tracking_uri() -> str:
    """MLflow's tracking store: `$MLFLOW_TRACKING_URI`, by default SQLite in the home."""
    return _with_driver(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}")


def tracking_server() -> str:
    """Address of the MLflow server that `$MLFLOW_TRACKING_URI` names, without credentials; empty for a database."""
    server = _SERVER.match(tracking_uri())
    return (server[1] + server[2]).rstrip("/") if server else ""


def dagster_url() -> str:
    """Where links to Dagster lead: `$GATEHOUSE_DAGSTER_URL`, by default where `gatehouse up` serves it."""
    return os.environ.get("GATEHOUSE_DAGSTER_URL", "http://127.0.0.1:3000")


def mlflow_url() -> str:
    """Where links to MLflow lead: `$GATEHOUSE_MLFLOW_URL`, by default where `gatehouse up` serves it."""
    return os.environ.get("GATEHOUSE_MLFLOW_URL", "http://127.0.0.1:5000")


def _with_driver(address: str) -> str:
    """A PostgreSQL address with the driver that Dagster works with; SQLAlchemy's own choice is another one.

    A connection is given up after two minutes of silence, unless the address says otherwise.
    """
    with_driver = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", address)
    if with_driver == address or "keepalives" in address or "tcp_user_timeout" in address:
        return with_driver

    # A ? in the password begins no options.
    separator = "&" if "?" in _DATABASE_USER.sub("", address) else "?"
    return f"{with_driver}{separator}{_GIVE_UP}"


def variables() -> dict[str, str]:
    """The environment of every process of Gatehouse; what is set already wins."""
    defaults = {
        "GATEHOUSE_HOME": str(home()),
        "GATEHOUSE_DAGSTER": str(home() / "dagster"),
        "DAGSTER_HOME": str(ROOT),
        "DAGSTER_MODULE_NAME": "pipeline.definitions",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    if server := tracking_server():
        defaults["GATEHOUSE_MLFLOW_URL"] = server

    # Dagster and MLflow read these two as they are, so the driver and the time limits go into them.
    databases = {name: _with_driver(os.environ[name]) for name in DATABASES if os.environ.get(name)}
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | databases


def prepare() -> None:
    """Set the variables in this process and make the folders that they name.

    Raises:
        UserError: Dagster's databases cannot work with a path.
        StoreError: The home is not a folder that can be written.
    """
    _require_plain_paths()
    os.environ.update(variables())

    try:
        for folder in (home() / "dagster", home() / "mlflow", work()):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{error.filename}: {error.strerror}; all state is kept in {home()}, so set GATEHOUSE_HOME to "
            "a folder that can be written"
        ) from error


def _require_plain_paths() -> None:
    """Refuse paths that a library would misread, before anything is made under the wrong name.

    SQLAlchemy reads an address of SQLite as a URL: `?` begins options and `%41` is `A`. Alembic reads the path of
    Dagster's migrations through a ConfigParser: `%` begins a reference.
    """
    for name, folder in (("GATEHOUSE_HOME", home()), ("GATEHOUSE_DAGSTER", variables()["GATEHOUSE_DAGSTER"])):
        if "?" in str(folder) or _ESCAPE.search(str(folder)):
            raise UserError(
                f"{folder}: Dagster cannot work in a path with ? or with % before two digits; move it, or "
                f"set {name} to another folder"
            )

    dagster = find_spec("dagster")
    for place in (str(ROOT), dagster.origin if dagster else None):
        if place and "%" in place:
            raise UserError(
                f"{place}: Dagster cannot work in a path with %; move the project, and run `make setup` there"
            )


if __name__ == "__main__":
    try:
        prepare()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    for name, value in variables().items():  # as bytes: a path must not depend on what a terminal can show
        sys.stdout.buffer.write(os.fsencode(f"export {name}={shlex.quote(value)}\n"))
