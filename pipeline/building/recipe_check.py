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
from pipeline.jobs.local import job_environment
from pipeline.paths import ROOT, home
from pipeline.recipes.document import listed
from pipeline.recipes.loader import LoadedRecipe
from training.data.sources.origins import origin_state
from training.errors import GatehouseError, RecipeError
from training.job.fingerprint import fingerprint
from training.specs.base import canonical_json, digest_of
from training.specs.base_model import BaseModelSection
from training.specs.execution import Launcher
from training.specs.micro_batches import micro_batch_pairs, micro_batch_tokens
from training.specs.optimization import TrainingSection
from training.specs.post_training import DpoModelSection, LoraModelSection, SftModelSection
from training.specs.recipe_check import ANSWER_FILE, REQUEST_FILE, CheckAnswer, CheckRequest, Key

_MODULE = "training.recipe_check"
_OUTPUT = "output.log"
_LIBRARIES = ("torch", "transformers", "peft", "lm_eval", "liger-kernel")
_ANSWERS = TypeAdapter(list[CheckAnswer])
_MOST_SECONDS = 900  # half a minute on a quiet machine the first time, when the harness's tasks are listed
_TAIL = 2000
# `training.recipe_check` looks at the model and the tasks. A change of a gate or of a source's path asks nobody again.
_NOT_LOOKED_AT = {
    *("name", "description", "seed", "nightly", "code", "sources", "gates"),
    *("conversations", "conversation_options", "preferences", "preference_options"),
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
    answer = kept_answer(loaded, launcher) or ask([CheckRequest(recipe=loaded.recipe, launcher=launcher)])[0]
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
    for asset in loaded.graph:
        try:
            loaded.files(asset)
        except RecipeError as error:
            yield from str(error).splitlines()


def _layout_problems(loaded: LoadedRecipe, launcher: Launcher) -> Iterator[tuple[Key, str]]:
    """Batches that the launcher's processes cannot share."""
    recipe = loaded.recipe
    for asset, section in recipe.training_sections().items():
        execution, key = launcher.execution(asset), recipe.key(asset)
        wish, processes = execution.micro_batch_tokens, execution.processes
        try:
            if isinstance(section, DpoModelSection):
                micro_batch_pairs(section.batch_pairs, section.context, wish, processes)
            elif isinstance(section, BaseModelSection):
                contexts = [phase.context for phase in section.curriculum]
                micro_batch_tokens(section.batch_tokens, wish, processes, contexts)
            elif isinstance(section, SftModelSection | LoraModelSection):
                micro_batch_tokens(section.batch_tokens, wish, processes, [section.context])
        except RecipeError as error:
            yield (*key, _wrong_batch_key(section, str(error))), str(error)


def _wrong_batch_key(section: TrainingSection, problem: str) -> str:
    """The context, whole rows of which do not fill the batch, or the batch itself."""
    if isinstance(section, DpoModelSection):
        return "batch_pairs"
    if "whole rows" not in problem:
        return "batch_tokens"
    return "curriculum" if isinstance(section, BaseModelSection) else "context"


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
    # A folder is looked at again when its files have changed.
    origin = loaded.recipe.base_model.origin
    looked_at["origin"] = None if origin is None else origin_state(origin, home() / "cache" / "origins.json", ROOT)
    digest = digest_of([looked_at, launcher.model_dump(mode="json"), versions, fingerprint(_MODULE)])
    return _folder() / f"{digest}.json"


def kept_answer(loaded: LoadedRecipe, launcher: Launcher) -> CheckAnswer | None:
    """The good answer of an earlier look at the same recipe; None where there is none."""
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
