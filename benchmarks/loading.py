"""`make bench`: what a command pays before it works, as a ratio to `import dagster` in the same run.

Every measurement is a fresh process. CPU seconds are counted, user and system, and the least of several turns is
taken: it is what the code costs, and the rest is what the machine did beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.paths import ROOT
from pipeline.recipes.loader import FOLDER

_TURNS = 7
_IMPORT_DAGSTER = "import dagster"
_LOAD = "import pipeline.definitions; pipeline.definitions.defs"
_STATUS = "import sys; from pipeline.cli.app import main; sys.argv[1:] = ['status']; main()"


def main() -> None:
    """Measure and print the table."""
    recipes = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "launchers")
    cases = {"import dagster": (_IMPORT_DAGSTER, "")}
    cases |= {f"definitions of {recipe}": (_LOAD, recipe) for recipe in recipes}
    cases["gatehouse status, nothing built"] = (_STATUS, "tiny")

    with tempfile.TemporaryDirectory() as home:
        seconds = {name: float("inf") for name in cases}
        for _ in range(_TURNS):
            for name, (code, recipe) in cases.items():
                seconds[name] = min(seconds[name], _cpu_seconds(code, recipe, Path(home)))

    table = Table("loading", "CPU s", "of `import dagster`")
    for name, spent in seconds.items():
        table.add_row(name, f"{spent:.2f}", f"{spent / seconds['import dagster']:.2f}")
    Console().print(table)


def _cpu_seconds(code: str, recipe: str, home: Path) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEHOUSE", "DAGSTER"))}
    environment |= {"GATEHOUSE_HOME": str(home), "DAGSTER_HOME": str(ROOT), "DAGSTER_DISABLE_TELEMETRY": "1"}
    if recipe:
        environment["GATEHOUSE_RECIPE"] = recipe
    measured = f"import resource, atexit\natexit.register(lambda: print(sum(resource.getrusage(0)[:2])))\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", measured], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
