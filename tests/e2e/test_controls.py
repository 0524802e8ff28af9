"""Negative controls of the proof on the smoke chain: refused, and by a gate that is meant for it.

Models with random weights are left to test_untrained.py, where every gate must refuse them.
"""

from pathlib import Path

import pytest

from benchmarks.proof.controls import CONTROLS, Control, run
from benchmarks.proof.world import World
from pipeline.workspace import Workspace
from tests.conftest import share_database
from tests.e2e.conftest import Chain
from training.errors import InputRefused

pytestmark = pytest.mark.usefixtures("forked_jobs")


@pytest.mark.parametrize(
    "control",
    [control for control in CONTROLS if not control.name.endswith("random weights")],
    ids=lambda control: control.name.replace(" ", "_"),
)
def test_control_is_refused(control: Control, kept_chain: Chain, tmp_path: Path) -> None:
    world = World.of(Workspace("smoke", launcher="local", folder=kept_chain.home), tmp_path / "world")
    share_database(tmp_path / "world" / "mlflow.db")
    promoted = world.real(control.asset)
    caught = run(control, world)
    assert caught.as_meant, (caught.refused_by, [verdict.reason for verdict in caught.certificate.verdicts])
    assert world.real(control.asset) == promoted, "what was promoted before stays"
    with pytest.raises(InputRefused, match="not promoted"):
        world.store.require_promoted(control.asset, caught.certificate.version, caught.certificate.artifact_digest)
