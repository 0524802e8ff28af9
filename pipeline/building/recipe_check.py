"""Everything that can be said of a recipe before anything is spent on it.

`python -m training.recipe_check` answers what needs torch. A good answer is kept in the folder of all state, under a
digest of everything that it depends on, versions of libraries included: the next run starts no process for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter, ValidationError

from pipeline.gates.reach import impassable_gates
from pipeline.graph import GRAPH
from pipeline.jobs.local import job_environment
from pipeline.paths import ROOT, home
from pipeline.recipes.document import listed
from pipeline.recipes.loader import LoadedRecipe
from training.errors import GatehouseError, RecipeError
from training.job.fingerprint import fingerprint
from training.specs.base import canonical_json, digest_of
from training.specs.execution import Launcher
from training.specs.micro_batches import micro_batch_pairs, micro_batch_tokens
from training.specs.recipe_check import ANSWER_FILE, REQUEST_FILE, CheckAnswer, CheckRequest, Key

_MODULE = "training.recipe_check"
_OUTPUT = "output.log"
_LIBRARIES = ("torch", "transformers", "peft", "lm_eval", "liger-kernel")
_ANSWERS = TypeAdapter(list[CheckAnswer])
_MOST_SECONDS = 900  # half a minute on a quiet machine the first time, when the harness's tasks are listed
_TAIL = 2000
# `training.recipe_check` looks at the model and the tasks. A change of a gate or of a source's path asks nobody again.
_NOT_LOOKED_AT = {
    *("name", "description", "seed", "nightly", "sources", "gates"),
    *("raw_corpus", "corpus", "packed_shards", "instruction_data", "preference_data", "adapter_data"),
}


class CheckFailed(GatehouseError):
    """The process that looks at models ended with a fault."""


def check_recipe(loaded: LoadedRecipe, launcher: Launcher) -> CheckAnswer:
    """Look at the whole recipe; where nothing has changed since an earlier look, its answer is taken.

    Raises:
        RecipeError: With every mistake found, one a line.
        CheckFailed: The model could not be looked at.
    """
    problems = plain_problems(loaded, launcher)
    answer = _kept(loaded, launcher) or ask([CheckRequest(recipe=loaded.recipe, launcher=launcher)])[0]
    problems += [loaded.at(finding.key, finding.message) for finding in answer.findings]
    if problems:
        raise RecipeError(listed(list(dict.fromkeys(problems))))

    _keep(loaded, launcher, answer)
    return answer


def plain_problems(loaded: LoadedRecipe, launcher: Launcher) -> list[str]:
    """What is wrong with a recipe's files, batches and gates, which no library is needed to see."""
    findings = [*_layout_problems(loaded, launcher), *impassable_gates(loaded)]
    return [*_file_problems(loaded), *(loaded.at(key, message) for key, message in findings)]


def ask(requests: list[CheckRequest]) -> list[CheckAnswer]:
    """Ask a process of its own about recipes' models and tasks; its answers are in the order of the requests.

    Raises:
        CheckFailed: It ended with a fault.
    """
    _folder().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="asking-", dir=_folder()) as place:
        folder = Path(place)
        question = canonical_json([request.model_dump(mode="json") for request in requests])
        (folder / REQUEST_FILE).write_text(question, encoding="utf-8")

        code = _run([sys.executable, "-m", _MODULE, str(_folder()), place], folder / _OUTPUT)
        try:
            return _ANSWERS.validate_json((folder / ANSWER_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            output = (folder / _OUTPUT).read_text(encoding="utf-8", errors="replace")[-_TAIL:]
            raise CheckFailed(f"looking at the recipe's model ended with exit code {code}:\n{output}") from error


def _run(command: list[str], output: Path) -> int:
    """Run a command that ends with this process, however this one ends; return its exit code.

    Raises:
        CheckFailed: It takes too long.
    """
    supervised = [sys.executable, "-m", "training.job.supervisor", "0", *command]
    with output.open("wb") as log:
        process = subprocess.Popen(
            supervised,
            cwd=ROOT,
            env=job_environment(),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    try:
        return process.wait(_MOST_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"looking at the recipe's model took more than {_MOST_SECONDS} seconds") from error
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the supervisor then ends what is left
        process.wait()


def _file_problems(loaded: LoadedRecipe) -> Iterator[str]:
    for asset in GRAPH:
        try:
            loaded.files(asset)
        except RecipeError as error:
            yield from str(error).splitlines()


def _layout_problems(loaded: LoadedRecipe, launcher: Launcher) -> Iterator[tuple[Key, str]]:
    """Batches that the launcher's processes cannot share."""
    recipe = loaded.recipe
    batches = {
        "base_model": (recipe.base_model.batch_tokens, [phase.context for phase in recipe.base_model.curriculum]),
        "sft_model": (recipe.sft_model.batch_tokens, [recipe.sft_model.context]),
        "lora_model": (recipe.lora_model.batch_tokens, [recipe.lora_model.context]),
    }
    for asset, (tokens, contexts) in batches.items():
        if not contexts:  # a model that is imported as it is
            continue
        execution = launcher.execution(asset)
        try:
            micro_batch_tokens(tokens, execution.micro_batch_tokens, execution.processes, contexts)
        except RecipeError as error:
            # The wrong key: the context, whole rows of which do not fill the batch, or the batch itself.
            rows_do_not_fit = "whole rows" in str(error)
            contexts_key = "curriculum" if asset == "base_model" else "context"
            yield (asset, contexts_key if rows_do_not_fit else "batch_tokens"), str(error)

    execution, pairs = launcher.execution("dpo_model"), recipe.dpo_model
    try:
        micro_batch_pairs(pairs.batch_pairs, pairs.context, execution.micro_batch_tokens, execution.processes)
    except RecipeError as error:
        yield ("dpo_model", "batch_pairs"), str(error)


def _folder() -> Path:
    return home() / "checks"


def _path(loaded: LoadedRecipe, launcher: Launcher) -> Path:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue

    looked_at = loaded.recipe.model_dump(mode="json", exclude=_NOT_LOOKED_AT)
    digest = digest_of([looked_at, launcher.model_dump(mode="json"), versions, fingerprint(_MODULE)])
    return _folder() / f"{digest}.json"


def _kept(loaded: LoadedRecipe, launcher: Launcher) -> CheckAnswer | None:
    try:
        return CheckAnswer.model_validate_json(_path(loaded, launcher).read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(loaded: LoadedRecipe, launcher: Launcher, answer: CheckAnswer) -> None:
    path = _path(loaded, launcher)
    path.parent.mkdir(parents=True, exist_ok=True)

    # Replaced at once: another run may read it now.
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(answer.model_dump_json(), encoding="utf-8")
    temporary.replace(path)
