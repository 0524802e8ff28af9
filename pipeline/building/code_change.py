"""What sets a version apart from what would be made today, in words."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.building.planner import Plan
from pipeline.graph import stage_module
from training.job.code_digest import CODE_FILE, MODULE_BODY, changed_names, code_digests, load_digests
from training.specs.artifacts import Manifest
from training.specs.job import CODE
from training.store.store import Store

_SHOWN_FUNCTIONS = 4


def changed_functions(manifest: Manifest, store: Store) -> tuple[str, ...] | None:
    """The functions and classes whose code is not the one that made a version; None where that was not recorded."""
    if CODE_FILE not in manifest.files:
        return None
    data = store.storage.read(store.place(manifest.asset, manifest.version) / CODE_FILE)
    recorded = load_digests(data) if data is not None else None
    return None if recorded is None else changed_names(recorded, code_digests(stage_module(manifest.stage)))


def describe_code_change(manifest: Manifest, functions: Sequence[str] | None, store: Store) -> str:
    """What sets a version apart from today's code, in words, and the command that takes it over.

    Args:
        functions: What `changed_functions` gave.
    """
    command = f"`gatehouse adopt -r {store.named} {manifest.asset} --reason ...` takes it over after a proof"
    return f"code changed: {functions_in_words(functions)}; {command}"


def functions_in_words(functions: Sequence[str] | None) -> str:
    """The functions that differ, as far as they fit on a line."""
    if functions is None:
        return "which functions is not known, it was made before they were recorded"
    if not functions:
        return "no function differs, only imports or where the code lies"
    named = ["module level" if name == MODULE_BODY else name for name in functions]
    more = f" and {len(named) - _SHOWN_FUNCTIONS} more" if len(named) > _SHOWN_FUNCTIONS else ""
    return ", ".join(named[:_SHOWN_FUNCTIONS]) + more


def explain_change(plan: Plan, shown: Manifest) -> str:
    """What differs between a plan and a version that was built, in a few words."""
    changed = [
        f"recipe {plan.asset}.{key}" for key, value in sorted(plan.section.items()) if shown.section.get(key) != value
    ]
    changed += [
        f"input {name}"
        for name, used in plan.inputs.items()
        if name not in shown.inputs or shown.inputs[name].digest != used.digest
    ]
    if plan.fingerprint != shown.fingerprint:
        changed.append("code")
    if plan.seed != shown.seed:
        changed.append("seed")
    if changed:
        return f"changed: {', '.join(changed)}"
    own_code = ", the recipe's own code" if CODE in plan.files else ""
    return f"changed: source files{own_code} or safety prompts"
