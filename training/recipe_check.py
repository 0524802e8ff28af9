"""`python -m training.recipe_check CACHE FOLDER`: what can be told of recipes' models and tasks without any data.

Reads a JSON list of `CheckRequest` in FOLDER and writes a JSON list of `CheckAnswer` there. It is a process of its own
because the control plane loads neither torch nor transformers. Weights exist on torch's meta device alone, so a
model of any size takes seconds; only a small model of the same kind is really built, to see whether it is causal.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from lmkernels import LmkernelsError, choose
from pydantic import TypeAdapter
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from training.data.sources.origins import origin_files
from training.engine.adapter import lora_config
from training.engine.architecture_fields import architecture_problems, configure, position_field
from training.engine.causality import NOT_CAUSAL, build, is_causal
from training.engine.model_import import model_on_meta
from training.errors import RecipeError, UserError
from training.evaluation.catalogue import task_problems
from training.specs.imports import Origin
from training.specs.post_training import LoraModelSection
from training.specs.recipe import Recipe
from training.specs.recipe_check import ANSWER_FILE, REQUEST_FILE, CheckAnswer, CheckRequest, Finding, Key

_REQUESTS = TypeAdapter(list[CheckRequest])
_ANSWERS = TypeAdapter(list[CheckAnswer])
_ARCHITECTURE: Key = ("base_model", "architecture")
_SHAPES = re.compile(r"shape|size|match|multiply|divi", re.IGNORECASE)
_LONGEST = 200


def check(request: CheckRequest, cache: Path) -> CheckAnswer:
    """Everything that is wrong with a recipe's model, and with its public tasks.

    Args:
        cache: Folder for the list of the harness's tasks, which takes half a minute to make.
    """
    recipe = request.recipe
    findings, model, config = _model_findings(recipe)
    findings += [
        Finding(key=("evaluation_sets", "tasks", *key), message=message)
        for key, message in task_problems(recipe.evaluation_sets.tasks, cache)
    ]
    kind = str(recipe.base_model.architecture.get("model_type", "") if model is None else model.config.model_type)
    if model is not None and config is not None:
        findings += [*_positions(recipe, config), *_target_modules(recipe, model), *_choices(request, kind, model)]
    parameters = sum(parameter.numel() for parameter in model.parameters()) if model is not None else 0
    if parameters:
        try:
            recipe.base_model.with_steps(parameters)
        except ValueError as error:
            findings.append(Finding(key=("base_model", "tokens_per_parameter"), message=str(error)))
    return CheckAnswer(findings=tuple(findings), model_type=kind, parameters=parameters)


def _model_findings(recipe: Recipe) -> tuple[list[Finding], PreTrainedModel | None, PretrainedConfig | None]:
    """What is wrong with the architecture or the origin; the model on the meta device when nothing is."""
    if recipe.base_model.origin is not None:
        return _origin_findings(recipe.base_model.origin)
    architecture = recipe.base_model.architecture
    found = [_of_field(*problem) for problem in architecture_problems(architecture)]
    if found:
        return found, None, None
    config, problem = configure(
        {
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 1,
            **architecture,
            "vocab_size": recipe.base_model.rows(recipe.tokenizer.vocabulary),
        }
    )
    if config is None:
        assert problem is not None
        return [_of_field(*problem)], None, None
    try:
        with torch.device("meta"):
            model = build(config)
            _try_shapes(model)
    except Exception as error:  # whatever an architecture that makes no sense leads to
        field = next((name for name, value in architecture.items() if str(error) == repr(value)), "")
        said = f"transformers knows no {error}" if field else f"transformers cannot build this model: {_brief(error)}"
        return [_of_field(field, said)], None, None
    if is_causal(architecture) is False:
        return [_of_field("model_type", NOT_CAUSAL.format(architecture["model_type"]))], None, None
    return [], model, config


def _origin_findings(origin: Origin) -> tuple[list[Finding], PreTrainedModel | None, PretrainedConfig | None]:
    """What is wrong with a model that is imported, by its headers. A check fetches nothing: the hub's are let pass."""
    if origin.is_hub:
        return [], None, None
    try:
        model = model_on_meta(origin_files(origin))
    except UserError as error:
        return [Finding(key=("base_model", "from"), message=str(error))], None, None
    return [], model, model.config


def _of_field(field: str, message: str) -> Finding:
    return Finding(key=(*_ARCHITECTURE, *([field] if field else [])), message=message)


def _try_shapes(model: PreTrainedModel) -> None:
    """A forward pass without numbers: a matrix that does not fit the next one is found all the same.

    Raises:
        RuntimeError: One does not. What cannot be done without numbers is let pass.
    """
    tokens = torch.zeros((1, 8), dtype=torch.long, device="meta")
    try:
        with torch.no_grad():
            model.eval()(input_ids=tokens, use_cache=False)
    except RuntimeError as error:
        if "meta" not in str(error) and _SHAPES.search(str(error)):
            raise
    except Exception:  # a step that looks at numbers
        return


def _positions(recipe: Recipe, config: PretrainedConfig) -> Iterator[Finding]:
    limit = position_field(config)
    for line in recipe.too_long(*limit) if limit else ():
        dotted, _, message = line.partition(": ")
        yield Finding(key=tuple(dotted.split(".")), message=message)


def _target_modules(recipe: Recipe, model: PreTrainedModel) -> Iterator[Finding]:
    for asset, section in recipe.training_sections().items():
        if not isinstance(section, LoraModelSection):
            continue
        try:
            lora_config(section, model)
        except RecipeError as error:
            message = str(error).removeprefix("lora_model.target_modules: ")
            yield Finding(key=(*recipe.key(asset), "target_modules"), message=message)


def _choices(request: CheckRequest, kind: str, model: PreTrainedModel) -> Iterator[Finding]:
    """Precision and kernels that do not run where the launcher starts the job, as far as this machine can tell."""
    for asset, section in request.recipe.training_sections().items():
        wanted = request.launcher.execution(asset).device
        here = "cuda" if torch.cuda.is_available() else "cpu"
        device = here if wanted == "auto" else wanted
        if device == "cuda" and here == "cpu":  # another machine's recipe: its GPUs cannot be asked
            continue
        try:
            choice = choose(section.precision, section.kernels, torch.device(device), kind)
        except LmkernelsError as error:
            yield Finding(
                key=(*request.recipe.key(asset), "kernels" if "kernel" in str(error).lower() else "precision"),
                message=str(error),
            )
            continue
        if section.precision == "fp8" and not choice.expected_conversions(model):
            yield Finding(
                key=(*request.recipe.key(asset), "precision"),
                message="no layer of this architecture can run in FP8; use bf16",
            )


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:_LONGEST]


def main(arguments: list[str]) -> int:
    """Answer the requests of a folder."""
    cache, folder = map(Path, arguments)
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    requests = _REQUESTS.validate_json((folder / REQUEST_FILE).read_bytes())
    answers = [check(request, cache) for request in requests]
    (folder / ANSWER_FILE).write_bytes(_ANSWERS.dump_json(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
