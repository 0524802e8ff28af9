"""Measure one model on the evaluation sets, beside its parent."""

from __future__ import annotations

from collections.abc import Callable

from training.data.conversations.chat_format import ChatFormat, Conversation, Encoded, RowRefused, check
from training.engine.batches import share_steps
from training.errors import InputRefused, RecipeError
from training.evaluation.behaviour import (
    CHAT_BASE_PARTS,
    JUDGED_PARTS,
    PARENT_PARTS,
    Behaviour,
    Sets,
    measure,
    read_sets,
)
from training.evaluation.exported import Answer, answer, change_cosine, logprob_error, parent_ratio, read_probe
from training.evaluation.findings import Findings
from training.evaluation.generation import sound
from training.evaluation.harness import run_tasks, task_metrics
from training.evaluation.model_metrics import GENERATED, compare, own_findings, unscored_notes
from training.evaluation.model_report import write_answers, write_pages
from training.evaluation.models import LoadedModel, LoadFailed, load, prepare
from training.evaluation.round_trip import awkward_conversations, fault
from training.job.context import InputArtifact, StageContext
from training.specs.base_model import BaseModelSection
from training.specs.contracts import CONTRACTS, parent_in
from training.specs.evaluation import EvaluationSection
from training.specs.job import StageResult
from training.specs.kinds import kind_of
from training.specs.metrics import METRICS, metrics_of
from training.specs.mixture import MIXTURE_FILE, Mixture, asked_shares
from training.specs.probe import Probe
from training.tokenizer_folder import is_own_tokenizer

Section = EvaluationSection
Context = StageContext[EvaluationSection]
_SOUND_PROMPTS = 3
_SOUND_TOKENS = 16
_SOUND_PROMPT = "What is this?"  # where the sets hold none


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
    asset, kind = artifact.manifest.asset, kind_of(artifact.manifest.asset)
    if kind not in JUDGED_PARTS:
        raise InputRefused(f"evaluate_model cannot judge {asset}; it judges {', '.join(JUDGED_PARTS)}")
    sets = read_sets(context.input("evaluation_sets").folder, artifact.manifest.facts.get("domain", ""))
    context.events.phase("load")
    try:
        loaded = load(artifact, prepare(context.execution))
        _check_positions(loaded, context.section.context)
        wrong = _unsound(loaded, sets, context.section)
    except LoadFailed as error:
        return _refused(context, asset, sets, str(error))
    return _measured(context, asset, sets, loaded, wrong)


def _measured(context: Context, asset: str, sets: Sets, loaded: LoadedModel, wrong: str | None) -> StageResult:
    context.events.phase(f"measure {asset}")
    kind = kind_of(asset)
    chat_base = kind == "base_model" and loaded.is_chat
    parts = CHAT_BASE_PARTS if chat_base else JUDGED_PARTS[kind]
    own = measure(loaded, sets, parts, context.section, context.seed, chat_scoring=loaded.is_chat)
    findings = own_findings(own, sets)
    probe = read_probe(context.input("artifact").folder)
    _folder(findings, loaded, probe, wrong)
    said = probe if isinstance(probe, str) else answer(loaded, probe)
    suite = context.input("evaluation_sets").folder
    for result in run_tasks(loaded, suite, context.section, context.events.phase):
        findings.task(result.metric, result.items, result.missing or "the task has no items")
    del loaded  # the parent takes its place in memory
    parent = _parent(context, asset, sets, lambda model: _change(findings, probe, said, model))
    compare(kind, findings, own, parent, sets)
    is_mixed = _mixture(findings, context.input("artifact"))
    notes = [*([f"The saved folder is not sound: {wrong}."] if wrong else []), *unscored_notes(own)]
    reference = (
        {name: estimate.value for name, estimate in own_findings(parent, sets).estimates.items()} if parent else {}
    )
    write_answers(context.report, sets, own, parent)
    return _write(context, asset, findings, _meanings(context, asset, sets, chat_base, is_mixed), reference, notes)


def _mixture(findings: Findings, artifact: InputArtifact) -> bool:
    """Whether a training on several sources is measured, by what it counted of them and what its section asked for."""
    path = artifact.folder / MIXTURE_FILE
    if not path.is_file():
        return False
    try:
        mixture = Mixture.model_validate_json(path.read_bytes())
        held = {source.name: source.held for source in mixture.sources}
        section = BaseModelSection.model_validate(artifact.manifest.section)
        spans = share_steps(int(artifact.manifest.metrics["steps"]), [phase.share for phase in section.curriculum])
        asked = asked_shares(section, held, [end - first for first, end in spans])
    except (ValueError, KeyError) as error:
        findings.leave_out("mixture_error", f"{MIXTURE_FILE} is not what a training writes: {error}")
        return True

    shares = mixture.shares()
    rows = [
        {"id": source.name, "score": abs(shares[source.name] - asked[source.name]), "asked": asked[source.name]}
        | {"read": shares[source.name], "tokens": source.tokens, "epochs": source.epochs}
        for source in mixture.sources
    ]
    findings.exact("mixture_error", mixture.error(asked), mixture.tokens, rows)
    return True


def _folder(findings: Findings, loaded: LoadedModel, probe: Probe | str, wrong: str | None) -> None:
    """Whether the folder is what training made and what others can use."""
    findings.exact("loads", 0.0 if wrong else 1.0, 1)
    for metric in GENERATED if wrong else ():
        findings.leave_out(metric, f"others would not see the texts that were generated here: {wrong}")
    error = probe if isinstance(probe, str) else logprob_error(loaded, probe)
    if isinstance(error, str):
        findings.leave_out("export_logprob_error", error)
    else:
        findings.exact("export_logprob_error", error.value, error.count)
    if isinstance(probe, str):
        findings.leave_out("fp8_overflows", probe)
    else:
        findings.exact("fp8_overflows", probe.fp8_overflows, 1)
    _dropped(findings, loaded.asset, probe)
    _round_trip(findings, loaded)


def _round_trip(findings: Findings, loaded: LoadedModel) -> None:
    """Whether the folder's template and tokenizer keep every turn.

    An imported template may refuse a role or an empty answer. Training would refuse such a conversation too, so it does
    not count.
    """
    faults: dict[str, str] = {}
    if is_own_tokenizer(loaded.tokenizer):
        faults = {name: fault(loaded.tokenizer, turns) for name, turns in awkward_conversations().items()}
    elif loaded.has_chat_format:
        conversations = {name: Conversation(turns) for name, turns in awkward_conversations().items()}
        encoded = loaded.chat_format.encode_each(list(conversations.values()))
        for (name, conversation), row in zip(conversations.items(), encoded, strict=True):
            if not isinstance(row, RowRefused):
                faults[name] = _mask_fault(loaded.chat_format, conversation, row)
    if not faults:
        findings.leave_out("chat_round_trip", "the model has no chat template that takes a conversation")
        return
    findings.exact(
        "chat_round_trip",
        sum(not found for found in faults.values()) / len(faults),
        len(faults),
        ({"id": name, "score": not found, "reason": found} for name, found in faults.items()),
    )


def _mask_fault(chat_format: ChatFormat, conversation: Conversation, encoded: Encoded) -> str:
    """What is wrong with what is learned of a conversation; empty if nothing is."""
    try:
        check(chat_format, conversation, encoded)
    except RowRefused as error:
        return str(error)
    return ""


def _change(findings: Findings, probe: Probe | str, said: Answer | str, parent: LoadedModel) -> None:
    """Whether the folder holds the change that was trained, and not its parent."""
    told = said if isinstance(probe, str) or isinstance(said, str) else answer(parent, probe)
    for metric, measure_change in (("saved_change_cosine", change_cosine), ("export_parent_ratio", parent_ratio)):
        if isinstance(probe, str) or isinstance(said, str) or isinstance(told, str):
            findings.leave_out(metric, str(said if isinstance(said, str) else told))
        elif isinstance(found := measure_change(probe, said, told), str):
            findings.leave_out(metric, found)
        else:
            findings.exact(metric, found.value, found.count)


def _dropped(findings: Findings, asset: str, probe: Probe | str) -> None:
    """How much of what it was to learn from was longer than its context."""
    metric = next((name for name in METRICS[kind_of(asset)] if name.startswith("dropped_")), None)
    if metric is None:
        return
    if isinstance(probe, str):
        findings.leave_out(metric, probe)
    elif probe.dropped_share is None:
        findings.leave_out(metric, "the artifact does not tell: train it again")
    else:
        findings.exact(metric, probe.dropped_share, 1)


def _check_positions(loaded: LoadedModel, context: int) -> None:
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions is not None and positions < context:
        raise RecipeError(
            f"evaluation.context is {context}, and the model has {positions} positions; set it to {positions} or less"
        )


def _unsound(loaded: LoadedModel, sets: Sets, section: EvaluationSection) -> str | None:
    prompts = [row["prompt"] for row in (*sets.samples, *sets.questions, *sets.benign, *sets.harmful)][:_SOUND_PROMPTS]
    prompts = prompts or [_SOUND_PROMPT]
    tokens = [loaded.prompt(prompt, loaded.is_chat)[-section.context :] for prompt in prompts]
    return sound(loaded, tokens, min(_SOUND_TOKENS, section.max_new_tokens))


def _parent(context: Context, asset: str, sets: Sets, look: Callable[[LoadedModel], None]) -> Behaviour | None:
    name, parts = parent_in(context.inputs), PARENT_PARTS.get(kind_of(asset))
    if parts is None:
        return None
    if name is None:
        parents = " or ".join(CONTRACTS[kind_of(asset)].parents)
        raise InputRefused(f"the evaluation of {asset} needs the input {parents}, and job.json has none")
    context.events.phase(f"measure {name}")
    try:
        loaded = load(context.input(name), prepare(context.execution))
    except LoadFailed as error:
        raise InputRefused(f"the parent of {asset}: {error}; materialize {name} again") from error
    look(loaded)
    return measure(loaded, sets, parts, context.section, context.seed, chat_scoring=True)


def _meanings(
    context: Context, asset: str, sets: Sets, chat_base: bool = False, is_mixed: bool = False
) -> dict[str, str]:
    sources = sorted({row["source"] for row in sets.texts()})
    tasks = task_metrics(context.input("evaluation_sets").folder)
    return metrics_of(kind_of(asset), sources, tasks, chat_base, is_mixed)


def _refused(context: Context, asset: str, sets: Sets, reason: str) -> StageResult:
    context.events.log(reason, level="warning")
    meanings, findings = _meanings(context, asset, sets), Findings()
    for metric in meanings:
        findings.leave_out(metric, f"the model folder does not load: {reason}")
    findings.exact("loads", 0.0, 1)
    return _write(context, asset, findings, meanings, {}, [f"The model folder does not load: {reason}."])


def _write(
    context: Context,
    asset: str,
    findings: Findings,
    meanings: dict[str, str],
    reference: dict[str, float],
    notes: list[str],
) -> StageResult:
    report = findings.report(meanings)
    findings.write(context.out, report)
    write_pages(context.report, asset, report, meanings, reference, notes)
    headline = "heldout_bits_per_byte"
    tokenizer = context.input("artifact").manifest.facts.get("tokenizer")
    return StageResult(
        metrics=report.metrics,
        headline=headline if headline in report.estimates else None,
        facts={"tokenizer": tokenizer} if tokenizer else {},
    )
