"""The rules of the house that a linter can't see."""

import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "deepspeed", "trl", "daft", "mlflow", "datasets", "matplotlib", "scipy")


def loaded_after(statement: str) -> list[str]:
    code = f"import sys; {statement}; import json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_the_control_plane_stays_light() -> None:
    assert (
        loaded_after(
            "import pipeline.definitions, pipeline.cli.app, pipeline.cli.run, pipeline.cli.status, pipeline.cli.up"
        )
        == []
    )


def test_the_specs_stay_light() -> None:
    light = "import training.specs.recipe, training.store.store, training.run, training.job.supervisor"
    assert loaded_after(light) == []


def test_this_check_can_fail() -> None:
    assert loaded_after("import transformers") != []
