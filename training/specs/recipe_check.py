"""Requests to `python -m training.recipe_check` and its answers: a JSON list in a file each."""

from __future__ import annotations

from training.specs.base import Spec
from training.specs.execution import Launcher
from training.specs.recipe import Recipe

REQUEST_FILE, ANSWER_FILE = "request.json", "answer.json"
Key = tuple[str | int, ...]


class CheckRequest(Spec):
    """One recipe to check, and where its jobs would run."""

    recipe: Recipe
    launcher: Launcher


class Finding(Spec):
    """One mistake.

    Attributes:
        key: Path of the recipe's key that it is about, such as `("base_model", "architecture", "n_embd")`.
    """

    key: Key
    message: str


class CheckAnswer(Spec):
    """The findings about one recipe.

    Attributes:
        model_type: transformers' model type of the base model.
        parameters: Parameters of the base model, tied weights counted once; 0 where it cannot be built.
    """

    findings: tuple[Finding, ...] = ()
    model_type: str = ""
    parameters: int = 0
