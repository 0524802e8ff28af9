"""What a model's evaluation shows to people: a chart, samples and a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from training.data.reports import markdown_table, write_card, write_samples
from training.evaluation.behaviour import Behaviour, Sets
from training.specs.evidence import Estimate, EvaluationReport

_SHARES = ("loads", "chat_round_trip")
_CONTINUATIONS_SHOWN = 8


def write_pages(
    report: Path,
    asset: str,
    evaluation: EvaluationReport,
    meanings: Mapping[str, str],
    reference: Mapping[str, float],
    notes: Sequence[str],
) -> None:
    """Write `metrics.png` and `card.md`.

    Args:
        report: Folder for them.
        asset: The judged model's asset name.
        evaluation: What was measured, and why the rest was not.
        meanings: All metrics of the asset, with what each is.
        reference: The parent's own figures, where it was measured.
        notes: Sentences for the reader, such as why the folder does not load.
    """
    if evaluation.estimates:
        _chart(report / "metrics.png", asset, evaluation.estimates, reference)

    metrics = evaluation.metrics
    rows = [
        (
            name,
            f"{metrics[name]:.4g}" if name in metrics else f"not measured: {evaluation.missing[name]}",
            f"{reference[name]:.4g}" if name in reference else "",
            evaluation.estimates[name].count if name in metrics else "",
            description,
        )
        for name, description in meanings.items()
    ]
    table = markdown_table(("metric", "value", "parent", "items", "what it is"), rows)
    write_card(report, f"Evaluation of {asset}", [*notes, "", table])


def _chart(path: Path, asset: str, estimates: Mapping[str, Estimate], reference: Mapping[str, float]) -> None:
    """Shares on one axis, all other figures on another; the parent's are hollow."""
    groups: dict[str, dict[str, float]] = {"share": {}, "value": {}}
    for name, estimate in estimates.items():
        groups["share" if estimate.method == "wilson" or name in _SHARES else "value"][name] = estimate.value
    groups["value"].pop("heldout_perplexity", None)  # so large that no other bar could be seen

    figure = Figure(figsize=(10, 1.4 + 0.4 * max(map(len, groups.values()))), dpi=80)
    for axes, (label, values) in zip(figure.subplots(1, 2), groups.items(), strict=True):
        bars = axes.barh(list(values), list(values.values()), color="#4477aa", label=asset)
        axes.bar_label(bars, fmt="{:.3g}", padding=3)
        parents = {name: reference[name] for name in values if name in reference}
        if parents:
            axes.scatter(
                list(parents.values()), list(parents), facecolors="none", edgecolors="#cc6677", zorder=3, label="parent"
            )
            axes.legend(fontsize="small")
        axes.margins(x=0.2)
        axes.invert_yaxis()
        axes.set_xlabel(label)
    figure.suptitle(f"{asset} on the evaluation sets")
    figure.tight_layout()
    figure.savefig(path)


def write_answers(report: Path, sets: Sets, judged: Behaviour, parent: Behaviour | None) -> None:
    """Write `samples.json`: the sample prompts' answers beside the parent's, then continuations of held-out text.

    Args:
        report: Folder for it.
        sets: Its samples are shown.
        judged: What the judged model does.
        parent: What its parent does; None if it was not measured.
    """
    rows = [
        {"prompt": row["prompt"], "answer": judged.replies[row["prompt"]].text}
        | ({"parent": parent.replies[row["prompt"]].text} if parent else {})
        for row in sets.samples
    ]
    rows += [
        {"prompt": prompt, "answer": completion.text}
        for prompt, completion in list(judged.continuations.values())[:_CONTINUATIONS_SHOWN]
    ]
    write_samples(report, rows)
