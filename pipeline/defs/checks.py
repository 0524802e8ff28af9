"""Gates as blocking asset checks: one evaluation of the asset, one check per gate."""

from collections.abc import Iterator

import dagster as dg

from pipeline.defs.assets import GPU_POOL, clear_errors, log_milestones, make_builder
from pipeline.defs.metadata import check_description, check_metadata
from pipeline.defs.resources import LauncherResource, RecipeResource, StoreResource, TrackerResource
from pipeline.gates.wording import gate_state, number
from pipeline.recipes.loader import LoadedRecipe
from training.specs.gates import Gate
from training.specs.kinds import kind_of
from training.specs.metrics import sampled


def gate_checks(asset: str, loaded: LoadedRecipe, prefix: list[str]) -> dg.AssetChecksDefinition:
    """The blocking checks of an asset, from the recipe's gates.

    Args:
        asset: Name of the asset.
        loaded: The recipe with the gates.
        prefix: Key prefix of the asset.
    """
    key = dg.AssetKey([*prefix, asset])
    meanings = loaded.recipe.metrics(asset)
    specs = [
        dg.AssetCheckSpec(
            gate.metric, asset=key, blocking=True, description=_description(asset, meanings[gate.metric], gate)
        )
        for gate in loaded.recipe.gates_of(asset)
    ]

    @dg.multi_asset_check(
        name="_".join([*prefix, asset, "gates"]),
        specs=specs,
        pool=GPU_POOL if loaded.graph[asset].kind.uses_gpu else None,
    )
    def gates(
        context: dg.AssetCheckExecutionContext,
        recipe: RecipeResource,
        store: StoreResource,
        launcher: LauncherResource,
        tracker: TrackerResource,
    ) -> Iterator[dg.AssetCheckResult]:
        with clear_errors():
            builder = make_builder(context.instance, context.run.run_id, recipe, store, launcher, tracker)
            judged = builder.judge(asset, log_milestones(context.log))

        evaluation = judged.evaluation
        folder = builder.store.folder(evaluation.asset, evaluation.version)
        links = builder.store.links(asset, judged.manifest.version)
        report = builder.store.gate_report(asset, judged.manifest.version)

        for verdict in judged.certificate.verdicts:
            yield dg.AssetCheckResult(
                check_name=verdict.name,
                asset_key=key,
                passed=gate_state(judged.certificate, verdict) != "failed",  # a waived gate lets the version pass
                severity=dg.AssetCheckSeverity.ERROR,
                description=check_description(verdict, judged.certificate),
                metadata=check_metadata(
                    verdict,
                    judged.certificate,
                    evaluation=evaluation,
                    folder=folder,
                    links=links,
                    report=report,
                    meaning=meanings[verdict.name],
                ),
            )

    return gates


def _description(asset: str, meaning: str, gate: Gate) -> str:
    """What a gate asks, what its metric is, and why: a sentence each."""
    confidence = (
        f" with {100 * gate.confidence:g}% confidence" if gate.better and sampled(kind_of(asset), gate.metric) else ""
    )
    about = f"{meaning[:1].upper()}{meaning[1:]}." if meaning else ""
    return f"Must be {gate.must_be} {number(gate.threshold)}{confidence}. {about} {gate.why}".strip()
