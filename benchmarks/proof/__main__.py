"""`make proof`: do the gates separate good from bad? Negative controls, then the real chain under other seeds.

Needs the recipe's chain, trained and promoted (`make run`). Each seed trains the whole chain again in a home of its
own, about as long as `make run`; one that was trained before is reused. Writes <out>/proof-<recipe>.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.proof.controls import CONTROLS, MODELS, Caught, run
from benchmarks.proof.table import as_markdown
from benchmarks.proof.world import World
from pipeline.graph import DEFAULT_RECIPE
from pipeline.paths import ROOT, home, prepare
from pipeline.recipes.loader import load_recipe
from pipeline.workspace import Workspace
from training.errors import GatehouseError, InputRefused
from training.specs.artifacts import Certificate


def main(arguments: Sequence[str]) -> int:
    """Run the proof; 0 when every control is refused as meant and at least nine tenths of the seeds pass."""
    parser = argparse.ArgumentParser(
        prog="make proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", "-r", default="tiny")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds, beginning with 0 (default 10)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    chosen = parser.parse_args(arguments)

    prepare()
    console = Console()
    workspace = Workspace(chosen.recipe)
    caught = controls(workspace, console)
    chains = {seed: chain(chosen.recipe, workspace, seed, console) for seed in range(chosen.seeds)}

    chosen.out.mkdir(parents=True, exist_ok=True)
    target = chosen.out / f"proof-{workspace.name}"
    target.with_suffix(".json").write_text(json.dumps(as_json(caught, chains), indent=1, allow_nan=False) + "\n")
    target.with_suffix(".md").write_text(as_markdown(workspace.loaded, caught, chains))
    console.print(f"written: {target}.md", highlight=False)

    passed = sum(passes(certificates) for certificates in chains.values())
    return 0 if all(judged.as_meant for judged in caught) and passed >= 0.9 * len(chains) else 1


def controls(workspace: Workspace, console: Console) -> list[Caught]:
    """What the gates say of every control, each in its own copy of the store.

    Raises:
        InputRefused: The chain is not promoted.
    """
    store = workspace.store
    if missing := [asset for asset in workspace.loaded.graph if store.promotion(asset) is None]:
        raise InputRefused(
            f"{', '.join(missing)}: not promoted; the proof starts from a trained chain: `gatehouse run "
            f"-r {workspace.name}`"
        )

    caught = []
    for control in CONTROLS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=home()) as folder:
            judged = run(control, World.of(workspace, Path(folder) / "world"))
        caught.append(judged)
        verdict = "refused" if judged.as_meant else "NOT REFUSED AS MEANT"
        console.print(
            f"{control.name}: {verdict} by {', '.join(judged.refused_by) or 'no gate'} "
            f"({time.monotonic() - started:.0f} s)",
            highlight=False,
            soft_wrap=True,
        )
    return caught


def chain(recipe: str, workspace: Workspace, seed: int, console: Console) -> dict[str, Certificate]:
    """The certificates of the whole chain under a seed; an asset that was never reached has none.

    Args:
        recipe: As the person named it.
        workspace: The recipe's own.
    """
    folder = home() / "proof" / f"{workspace.name}-seed-{seed}"
    started = time.monotonic()

    # In a home of its own the chain shares neither store nor locks with the one that the person trained.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEHOUSE", "MLFLOW"))}
    environment |= {"GATEHOUSE_HOME": str(folder)}
    subprocess.run(
        [str(Path(sys.executable).with_name("gatehouse")), "run", "-r", recipe, "--set", f"seed={seed}"],
        env=environment,
        cwd=ROOT,
        check=False,
    )

    store = workspace.moved_to(folder).store
    certificates = {}
    for asset in workspace.loaded.graph:
        latest = store.latest(asset)
        certificate = store.certificate(asset, latest.version) if latest else None
        if certificate is not None:
            certificates[asset] = certificate

    refused = [
        f"{asset}.{verdict.name}"
        for asset, certificate in certificates.items()
        for verdict in certificate.verdicts
        if not verdict.passed
    ]
    console.print(
        f"seed {seed}: {'passed' if passes(certificates) else 'REFUSED by ' + ', '.join(refused)} "
        f"({time.monotonic() - started:.0f} s)",
        highlight=False,
        soft_wrap=True,
    )
    return certificates


def passes(certificates: dict[str, Certificate]) -> bool:
    """Whether a whole chain was promoted."""
    return all(asset in certificates and certificates[asset].passed for asset in load_recipe(DEFAULT_RECIPE).graph)


def as_json(caught: Sequence[Caught], chains: dict[int, dict[str, Certificate]]) -> dict[str, Any]:
    """Every verdict of the controls, and those of the models under each seed."""
    return {
        "controls": [
            {
                "name": judged.control.name,
                "asset": judged.control.asset,
                "as_meant": judged.as_meant,
                "verdicts": [verdict.model_dump(mode="json") for verdict in judged.certificate.verdicts],
            }
            for judged in caught
        ],
        "seeds": {
            str(seed): {
                "passed": passes(certificates),
                "verdicts": {
                    asset: [verdict.model_dump(mode="json") for verdict in certificates[asset].verdicts]
                    for asset in MODELS
                    if asset in certificates
                },
            }
            for seed, certificates in chains.items()
        },
    }


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except GatehouseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
