"""Measure one model on the evaluation sets, beside its parent."""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from training.context import StageContext
from training.errors import InputRefused, RecipeError
from training.evaluation.behaviour import OWN, PARENTS, Measurement, Sets, measure, read_sets
from training.evaluation.generation import sound
from training.evaluation.model_metrics import Findings, compare, own_findings
from training.evaluation.models import LoadedModel, LoadFailed, load
from training.evaluation.pages import write_answers, write_pages
from training.specs.base import canonical_json
from training.specs.evaluation import EvaluationSection
from training.specs.job import StageResult
from training.specs.metrics import METRICS

Section = EvaluationSection
Context = StageContext[EvaluationSection]
_SOUND_PROMPTS = 3
_SOUND_TOKENS = 16


def run(context: Context) -> StageResult | None:
    """Write report.json, items.jsonl and the report's pages.

    A model folder that does not load, or whose logits are not finite, gives a report with `loads` 0 and nothing else:
    every gate then fails.

    Raises:
        InputRefused: The artifact is no model, or the parent or the evaluation sets are not usable.
        RecipeError: `context` is longer than the model's positions.
    """
    if context.rank != 0:
        return None
    artifact = context.input("artifact")
    asset = artifact.manifest.asset
    if asset not in OWN:
        raise InputRefused(f"evaluate_model cannot judge {asset}; it judges {', '.join(OWN)}")
    sets = read_sets(context.input("evaluation_sets").folder)
    if context.execution.threads:
        torch.set_num_threads(context.execution.threads)
    context.events.phase("load")
    try:
        loaded = load(artifact, _device(context))
        _check_positions(loaded, context.section.context)
        wrong = _unsound(loaded, sets, context.section)
    except LoadFailed as error:
        return _refused(context, asset, str(error))
    return _measured(context, asset, sets, loaded, wrong)


def _measured(context: Context, asset: str, sets: Sets, loaded: LoadedModel, wrong: str | None) -> StageResult:
    context.events.phase(f"measure {asset}")
    own = measure(loaded, sets, OWN[asset], context.section, context.seed, chat_scoring=asset != "base_model")
    del loaded  # the parent takes its place in memory
    parent = _parent(context, asset, sets)
    findings = own_findings(own, sets)
    findings.add("loads", 0.0 if wrong else 1.0, 1)
    if wrong:
        findings.leave_out("clean_stop_rate")  # what was generated here is not what the folder's users would see
    compare(asset, findings, own, parent, sets)
    notes = [f"The saved folder is not sound: {wrong}."] if wrong else []
    reference = own_findings(parent, sets).metrics if parent else {}
    write_answers(context.report, sets, own, parent)
    return _write(context, asset, findings, reference, notes)


def _device(context: Context) -> torch.device:
    wanted = context.execution.device
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


def _check_positions(loaded: LoadedModel, context: int) -> None:
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions is not None and positions < context:
        raise RecipeError(f"evaluation.context is {context}, and the model has {positions} positions; set it to "
                          f"{positions} or less")


def _unsound(loaded: LoadedModel, sets: Sets, section: EvaluationSection) -> str | None:
    prompts = [row["prompt"] for row in (*sets.samples, *sets.questions, *sets.benign)][:_SOUND_PROMPTS]
    chat = loaded.asset != "base_model"
    if not prompts:
        return "there are no prompts to try it on"
    tokens = [loaded.prompt(prompt, chat)[-section.context:] for prompt in prompts]
    return sound(loaded, tokens, min(_SOUND_TOKENS, section.max_new_tokens))


def _parent(context: Context, asset: str, sets: Sets) -> Measurement | None:
    if asset not in PARENTS:
        return None
    name, parts = PARENTS[asset]
    context.events.phase(f"measure {name}")
    try:
        loaded = load(context.input(name), _device(context))
    except LoadFailed as error:
        raise InputRefused(f"the parent of {asset}: {error}; materialize {name} again") from error
    return measure(loaded, sets, parts, context.section, context.seed, chat_scoring=True)


def _refused(context: Context, asset: str, reason: str) -> StageResult:
    context.events.log(reason, level="warning")
    findings = Findings()
    findings.add("loads", 0.0, 1)
    return _write(context, asset, findings, {}, [f"The model folder does not load: {reason}."])


def _write(context: Context, asset: str, findings: Findings, reference: dict[str, float],
           notes: list[str]) -> StageResult:
    metrics = {name: findings.metrics[name] for name in METRICS[asset] if name in findings.metrics}
    counts = {name: findings.counts[name] for name in metrics}
    report = {"metrics": metrics, "counts": counts}
    (context.out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True, allow_nan=False))
    lines = [canonical_json(_rounded(item)) + "\n" for item in findings.items]
    (context.out / "items.jsonl").write_text("".join(lines), encoding="utf-8")
    write_pages(context.report, asset, metrics, counts, reference, notes)
    headline = "heldout_bits_per_byte"
    tokenizer = context.input("artifact").manifest.facts.get("tokenizer")
    return StageResult(metrics=metrics, headline=headline if headline in metrics else None,
                       facts={"tokenizer": tokenizer} if tokenizer else {})


def _rounded(value: Any) -> Any:
    """Numbers to six significant digits; a number that is not finite becomes its name."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return {key: _rounded(part) for key, part in value.items()} if isinstance(value, dict) else value
