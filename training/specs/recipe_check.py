"""What the control plane asks `python -m training.recipe_check`, and what it is told: a JSON list in a file each."""

from __future__ import annotations

from training.specs.base import Spec
from training.specs.execution import Launcher
from training.specs.recipe import Recipe

REQUEST_FILE, ANSWER_FILE = "request.json", "answer.json"
Key = tuple[str | int, ...]


class CheckRequest(Spec):
    """One recipe to be looked at, and where its jobs would run."""

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
    """What was found out about one recipe.

    Attributes:
        parameters: Of the base model, tied weights counted once; 0 where it cannot be built.
    """

    findings: tuple[Finding, ...] = ()
    model_type: str = ""
    parameters: int = 0
