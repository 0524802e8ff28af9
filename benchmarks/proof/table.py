"""The proof as a page: which gate caught what, and how far each gate's two sides lie apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.proof.controls import MODELS, Caught
from pipeline.recipes.loader import LoadedRecipe
from training.specs.artifacts import Certificate
from training.specs.gates import Gate, Verdict


def as_markdown(loaded: LoadedRecipe, caught: Sequence[Caught], chains: Mapping[int, Mapping[str, Certificate]]) -> str:
    """The controls, then per gate of a model the measured values and bounds of both sides."""
    lines = [
        f"# Proof that the gates of {loaded.recipe.name} separate",
        "",
        "## Negative controls",
        "",
        "| control | judged as | refused by |",
        "| --- | --- | --- |",
    ]
    for judged in caught:
        names = [f"**{name}**" if name in judged.control.meant else name for name in judged.refused_by]
        lines.append(f"| {judged.control.name} | {judged.control.asset} | {', '.join(names) or 'no gate: a defect'} |")

    refused = {
        seed: [
            f"{asset}.{verdict.name}"
            for asset, certificate in certificates.items()
            for verdict in certificate.verdicts
            if not verdict.passed
        ]
        for seed, certificates in chains.items()
    }
    # A seed whose chain stopped early refused nothing after that, and has not passed either.
    passed = [seed for seed, gates in refused.items() if not gates and set(MODELS) <= set(chains[seed])]
    lines += [
        "",
        "Gates in bold are meant for the control.",
        "",
        "## Seeds",
        "",
        f"{len(passed)} of {len(chains)} seeds pass the whole chain.",
        *(f"Seed {seed} was refused by {', '.join(gates)}." for seed, gates in refused.items() if gates),
        "",
        "## Separation",
        "",
        f"The real chain under the seeds {', '.join(map(str, chains))}. The bound is the end of the confidence "
        "interval that is held against the threshold; of the seeds the worst one is shown, of the controls the "
        "one that comes nearest to passing.",
        "",
        "| asset | gate | must be | real: values | real: worst bound | controls: best bound | seeds passed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]

    for asset in MODELS:
        real = [certificates[asset] for certificates in chains.values() if asset in certificates]
        bad = [judged.certificate for judged in caught if judged.control.asset == asset]
        gates = loaded.recipe.gates_of(asset)
        lines += [_row(asset, gate, _verdicts(real, gate), _verdicts(bad, gate)) for gate in gates]
    return "\n".join(lines) + "\n"


def _row(asset: str, gate: Gate, real: Sequence[Verdict], bad: Sequence[Verdict]) -> str:
    values = [verdict.value for verdict in real if verdict.value is not None]
    span = f"{min(values):.4g} to {max(values):.4g}" if values else "none"
    passed = sum(verdict.passed for verdict in real)
    return (
        f"| {asset} | {gate.metric} | {gate.asked} | {span} | "
        f"{_shown(min(_merits(gate, real), default=None), gate)} | "
        f"{_shown(max(_merits(gate, bad), default=None), gate)} | {passed} of {len(real)} |"
    )


def _merits(gate: Gate, verdicts: Iterable[Verdict]) -> list[float]:
    """The bounds that are held against the threshold, negated where less is better."""
    merits = []
    for verdict in verdicts:
        if verdict.value is not None:
            low, high = verdict.interval or (verdict.value, verdict.value)
            merits.append(-high if gate.better < 0 else low)
    return merits


def _shown(merit: float | None, gate: Gate) -> str:
    return "not measured" if merit is None else f"{-merit if gate.better < 0 else merit:.4g}"


def _verdicts(certificates: Iterable[Certificate], gate: Gate) -> list[Verdict]:
    return [verdict for certificate in certificates for verdict in certificate.verdicts if verdict.name == gate.metric]
