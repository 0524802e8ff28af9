"""What a stage is given to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from training.errors import InputRefused
from training.job.events import EventWriter
from training.specs.artifacts import Manifest
from training.specs.base import Spec
from training.specs.execution import Execution

SectionT = TypeVar("SectionT", bound=Spec)


@dataclass(frozen=True)
class InputArtifact:
    """A verified input: every byte was compared with the manifest."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class StageContext(Generic[SectionT]):
    """Everything a stage may use.

    Attributes:
        section: The validated recipe section.
        identity: Identity of the artifact in the making.
        inputs: Verified artifacts by asset name. An evaluation job finds the version that it measures as `artifact`.
        files: Verified files of the recipe's folder by field name.
        out: Empty folder for the artifact's files. Those under `out/report` are shown to people and are not part of the
            content digest.
        work: This attempt's folder, kept across restarts: checkpoints belong here.
        rank: Global rank of this process; rank 0 writes `out`.
        world_size: Number of ranks.
        afterwards: Functions that rank 0 calls once the version is published.
        recorded: Reads a verified file of the version that this job proves; None in a build.
    """

    asset: str
    identity: str
    section: SectionT
    seed: int
    inputs: dict[str, InputArtifact]
    files: dict[str, Path]
    out: Path
    work: Path
    execution: Execution
    events: EventWriter
    rank: int
    world_size: int
    afterwards: list[Callable[[], None]] = field(default_factory=list)
    recorded: Callable[[str], bytes] | None = None

    def input(self, name: str) -> InputArtifact:
        """An input by name.

        Raises:
            InputRefused: The job does not have it.
        """
        try:
            return self.inputs[name]
        except KeyError:
            raise InputRefused(f"{self.asset} needs the input {name}, and job.json has none") from None

    @property
    def report(self) -> Path:
        """Folder for curves, cards and samples."""
        folder = self.out / "report"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
