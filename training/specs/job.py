"""`job.json` and what a stage returns."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from training.specs.base import Name, Spec
from training.specs.execution import Execution

EVALUATION_SUFFIX = ".evaluation"
CODE = "code"
"""Name of the file with the recipe's own code, among the files of a job that runs functions of it."""


class Input(Spec):
    """One input of a job, by version and digest. The job verifies both before it works."""

    asset: Name
    version: Name
    digest: str
    promoted: bool = Field(
        True,
        description="False only in an evaluation, for the artifact that is measured and for "
        "the version that it was made from: all else must be promoted and certified.",
    )
    certificate: str = Field("", description="Digest of the certificate that vouches for a promoted input.")


class FileInput(Spec):
    """A file of the recipe's folder that a stage reads, such as the written safety prompts."""

    path: str
    sha256: str


class ProofRequest(Spec):
    """The job publishes nothing: it computes again what a version holds, and compares."""

    version: Name
    seconds: float = Field(gt=0, description="How long it may take, once its inputs are verified.")


class Job(Spec):
    """One stage's work."""

    stage: str = Field(pattern=r"^[a-z][a-z_]*$", description="Module under `training.stages`.")
    asset: Name
    recipe: Name
    identity: str
    fingerprint: str
    seed: int
    section: dict[str, Any]
    inputs: dict[str, Input] = {}
    files: dict[str, FileInput] = {}
    store: str = Field(description="Root of the store: a local path or s3://...")
    cache: str | None = Field(None, description="Folder for copies of a remote store's versions.")
    attempt: str = Field(description="This job's own folder: events, log, checkpoints, output.")
    execution: Execution = Execution()
    labels: dict[str, str] = {}
    proof: ProofRequest | None = None


class StageResult(Spec):
    """What a stage hands back; the files are already in its output folder."""

    metrics: dict[str, float]
    headline: str | None = Field(None, description="The metric that sums the artifact up.")
    facts: dict[str, str] = {}
