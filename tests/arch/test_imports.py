"""The rules of the house that a linter can't see."""

import json
import subprocess
import sys

LIGHT_COMMANDS = (
    "plan",
    "status",
    "gates",
    "chat",
    "waive",
    "promote",
    "rollback",
    "gc",
    "verify",
    "sync",
    "recipe",
    "data",
)
HEAVY = ("torch", "transformers", "deepspeed", "trl", "mlflow", "datasets", "matplotlib", "scipy")


def loaded_after(statement: str, modules: tuple[str, ...] = HEAVY) -> list[str]:
    code = f"import sys; {statement}; import json; print(json.dumps([m for m in {modules!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_the_control_plane_stays_light() -> None:
    modules = "pipeline.definitions, pipeline.cli.app, pipeline.cli.execution, pipeline.cli.serving"
    assert loaded_after(f"import {modules}") == []


def test_what_a_command_does_not_need_is_not_imported() -> None:
    commands = ", ".join(f"pipeline.cli.{name}" for name in ("app", "run", "up", *LIGHT_COMMANDS))
    assert loaded_after(f"import {commands}", (*HEAVY, "dagster")) == []
    assert loaded_after("import pipeline.cli.app", ("dagster", "pydantic_core.core_schema", "rich.table")) == []


def test_the_specs_stay_light() -> None:
    light = "import training.specs.recipe, training.store.store, training.run, training.job.supervisor"
    assert loaded_after(light) == []


def test_this_check_can_fail() -> None:
    assert loaded_after("import transformers") != []
