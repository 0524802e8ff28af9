"""From a model back to the raw corpus, through the MLflow API alone, as anyone may walk it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.tracking.records import ASSET, OUTPUT_DIGEST, VERSION


@dataclass(frozen=True)
class Ancestor:
    """One step of a lineage.

    Attributes:
        run_id: MLflow run that made the version; None when MLflow does not know it.
        used_by: The asset that was made from it; None for the asset the walk starts at.
    """

    asset: str
    version: str
    digest: str
    run_id: str | None
    used_by: str | None


def registered_run(client: Any, name: str, aliases: Sequence[str]) -> Any | None:
    """The run behind the first of these aliases that a registered model has."""
    if not client.search_registered_models(f"name = '{name}'", max_results=1):
        return None
    known = client.get_registered_model(name).aliases
    for alias in aliases:
        if alias in known:
            return client.get_run(client.get_model_version(name, known[alias]).run_id)
    return None


def walk(client: Any, experiment_id: str, asset: str, start: Any | None) -> list[Ancestor]:
    """Breadth first from `start` (else the asset's newest run with an output), one entry per edge."""
    run = start or _producer(client, experiment_id, asset, "", "")
    if run is None:
        return []
    digest = run.data.tags[OUTPUT_DIGEST]
    found = [Ancestor(asset, run.data.tags[VERSION], digest, run.info.run_id, None)]
    queue, seen = deque([(asset, run)]), {(asset, digest)}
    while queue:
        consumer, run = queue.popleft()
        for used in run.inputs.dataset_inputs:
            tags = {tag.key: tag.value for tag in used.tags}
            name, digest = used.dataset.name, tags["digest"]
            producer = _producer(client, experiment_id, name, digest, tags[VERSION])
            found.append(Ancestor(name, tags[VERSION], digest, producer and producer.info.run_id, consumer))
            if producer is not None and (name, digest) not in seen:
                seen.add((name, digest))
                queue.append((name, producer))
    return found


def _producer(client: Any, experiment_id: str, asset: str, digest: str, version: str) -> Any | None:
    """The run that made an asset's content; among several the one of this very version."""
    wanted = f"tags.`{ASSET}` = '{asset}' AND tags.`{OUTPUT_DIGEST}` {'=' if digest else '!='} '{digest}'"
    runs = client.search_runs([experiment_id], wanted, order_by=["attributes.start_time DESC"], max_results=20)
    exact = [run for run in runs if run.data.tags.get(VERSION) == version]
    return next(iter(exact or runs), None)
