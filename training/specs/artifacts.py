"""What the store writes beside an artifact's files: manifest, certificate, promotion, adoption."""

from __future__ import annotations

import json
import shlex
from datetime import date
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from training.specs.base import Moment, Name, Spec, digest_of
from training.specs.gates import Verdict


def _inside(path: str) -> str:
    if path in ("", ".") or str(PurePosixPath(path)) != path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path[:80]!r} is not a path of a file below the version's folder")
    return path


OVERRIDES = "overrides"
"""The label with the `--set` options of the run, a JSON list."""
FilePath = Annotated[str, AfterValidator(_inside)]


class FileEntry(Spec):
    """One file of a version."""

    bytes: int
    sha256: str


class InputRecord(Spec):
    """One version that another version was made from."""

    asset: Name
    version: Name
    digest: str


class Manifest(Spec):
    """Written last: a version without it does not exist.

    `digest` covers every file outside `report/`: the same bytes give the same digest, whenever and wherever they were
    made. Files under `report/` (curves, timings, cards) are vouched for one by one in `files`.
    """

    asset: Name
    version: Name
    stage: str
    recipe: str
    identity: str
    fingerprint: str
    digest: Name
    files: dict[FilePath, FileEntry]
    inputs: dict[str, InputRecord]
    metrics: dict[str, float]
    headline: str | None = None
    facts: dict[str, str] = Field({}, description="Digests and choices that descendants check, such as `tokenizer`.")
    section: dict[str, object]
    seed: int
    versions: dict[str, str] = Field({}, description="Library versions, shown as drift, never hashed.")
    labels: dict[str, str] = Field({}, description="Who ran it and how, never hashed: dagster_run_id, overrides.")
    started_at: Moment
    seconds: float

    def run_command(self, recipe: str = "") -> str:
        """The command that plans this very version again, to judge it on today's gates.

        It repeats the `--set` options of the run that made the version, because without them another version would be
        planned. The options of gates are left out, so that today's gates judge.

        Args:
            recipe: The recipe's name or path on the command line; empty for the name in the manifest.
        """
        overrides = [text for text in json.loads(self.labels.get(OVERRIDES, "[]")) if not text.startswith("gates.")]
        options = "".join(f" --set {shlex.quote(text)}" for text in overrides)
        return f"gatehouse run -r {recipe or self.recipe} --select {self.asset}{options}"

    @property
    def bytes(self) -> int:
        """Total size in bytes."""
        return sum(entry.bytes for entry in self.files.values())


REPORT = "report/"


def content_digest(files: dict[str, FileEntry], part: str | None = None) -> str:
    """Digest of an artifact's content, or of one file or folder of it.

    Args:
        files: Paths relative to the version's folder.
        part: A path or a prefix that ends in `/`; None takes everything outside `report/`.

    Raises:
        KeyError: Nothing of the artifact lies under `part`.
    """
    if part is None:
        chosen = {path: entry.sha256 for path, entry in files.items() if not path.startswith(REPORT)}
    else:
        chosen = {path: entry.sha256 for path, entry in files.items() if path == part or path.startswith(part)}
        if not chosen:
            raise KeyError(part)
    return digest_of(chosen)


class Waiver(Spec):
    """A person's decision that one version may pass one gate that refused it, until a day."""

    asset: Name
    version: Name
    gate: str
    reason: str = Field(min_length=1)
    author: str = Field(min_length=1)
    until: date = Field(description="The last day on which it holds, UTC.")
    created_at: Moment

    def holds(self, today: date) -> bool:
        """Whether it has not expired."""
        return today <= self.until


class Certificate(Spec):
    """The verdict of all gates of one artifact, bound to what was judged, on what, and by which code.

    Attributes:
        suite_digest: Of what it is measured with and of how; see `pipeline.gates.terms.digest_of_suite`.
        report_digest: Of report.json.
        items_digest: Of items.jsonl.
        champion: The version that it was compared with; None when there was none.
        champion_asset: Whose version the champion is, where it is another asset's: an imported model is the first
            champion of every model that follows it.
        waivers: What was waived of this version's own gates.
        inherited: Waivers of the versions that it was made from, and of those that these were made from.
        unfounded: Versions that it was made from and that are refused now, `asset version`.
    """

    asset: Name
    version: Name
    artifact_digest: str
    suite_digest: str
    evaluator_fingerprint: str
    evaluation_version: str
    report_digest: str
    items_digest: str
    thresholds_digest: str
    champion: str | None = None
    champion_asset: Name | None = None
    verdicts: tuple[Verdict, ...]
    waivers: tuple[Waiver, ...] = ()
    inherited: tuple[Waiver, ...] = ()
    unfounded: tuple[str, ...] = ()
    evaluated_at: Moment
    issued_at: Moment
    issued_by: str

    @property
    def compared_with(self) -> tuple[str, str] | None:
        """Asset and version of the champion; None when there was none."""
        return None if self.champion is None else (self.champion_asset or self.asset, self.champion)

    @property
    def passed(self) -> bool:
        """Whether there is a gate, every gate passed or was waived, and the versions that it was made from passed.

        Expired waivers count here; `expired` lists them.
        """
        waived = {waiver.gate for waiver in self.waivers}
        passed = all(verdict.passed or verdict.name in waived for verdict in self.verdicts)
        return bool(self.verdicts) and passed and not self.unfounded

    def expired(self, today: date) -> tuple[Waiver, ...]:
        """Waivers that this certificate rests on and that have expired."""
        return tuple(waiver for waiver in (*self.waivers, *self.inherited) if not waiver.holds(today))

    @property
    def digest(self) -> str:
        """Digest of the whole certificate. A field that came later counts where it says something."""
        fields = self.model_dump(mode="json")
        if self.champion_asset is None:
            del fields["champion_asset"]
        return digest_of(fields)


class Proof(Spec):
    """What was computed again with today's code, and was found equal to what a version holds.

    Attributes:
        method: `rebuilt` is every file of the version, `sample` the files that its stage computes first,
            `losses` the first steps of a training.
        compared: What was compared, in words.
        files: Files compared whole, byte for byte.
        rows: Rows of a file that was compared in part, as proofs of earlier code did.
        bytes: Bytes of all that was compared.
        steps: Training steps that were repeated.
        losses: Recorded losses that were compared, each in all of its digits.
        seconds: What the proof took.
    """

    method: Literal["rebuilt", "sample", "losses"]
    compared: str
    files: int = 0
    rows: int = 0
    bytes: int = 0
    steps: int = 0
    losses: int = 0
    seconds: float


class Adoption(Spec):
    """A person's decision that a version stands for what today's code would make, after a proof.

    The version and its manifest stay as they are. Recipe, inputs, files, sources and seed are those that the version
    was made with: `identity` differs from `made_as` by the fingerprint of the code alone.

    Attributes:
        digest: Of the version's content.
        made_as: Identity in the version's manifest.
        identity: The one that it is found by from now on.
        made_by: Fingerprint of the code that made it.
        fingerprint: Of the code that it is adopted under.
        functions: The functions and classes that differ; None for a version made before they were recorded.
    """

    asset: Name
    version: Name
    digest: str
    made_as: str
    identity: Name
    made_by: str
    fingerprint: str
    functions: tuple[str, ...] | None = None
    reason: str = Field(min_length=1)
    author: str = Field(min_length=1)
    adopted_at: Moment
    proof: Proof


class Hold(Spec):
    """A person's decision that a certified version is not to be promoted, such as after a rollback."""

    asset: Name
    version: Name
    reason: str
    author: str
    created_at: Moment


class Promotion(Spec):
    """The pointer `promoted.json`: which version downstream reads."""

    asset: Name
    version: Name
    digest: str
    certificate_digest: str
    promoted_at: Moment
    promoted_by: str
