"""Whether what is promoted, and all it was made from, is still what was published and certified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.building.adoption import describe_adoption
from pipeline.graph import stored_assets
from training.errors import InputRefused, StoreError, UserError
from training.specs.artifacts import Manifest, Promotion, content_digest
from training.specs.job import EVALUATION_SUFFIX
from training.store.publishing import CLAIM
from training.store.store import MANIFEST, Store, utc_today
from training.store.validity import why_invalid

TOKENIZER = "tokenizer"
Advance = Callable[[str, int], None]


@dataclass
class Finding:
    """One version, and what is wrong with it.

    Attributes:
        role: Why it was looked at: `promoted`, what was made from it, or what it is evidence about.
        defects: In words that say what to do; none when everything holds.
        adopted: The decisions by which the version stands for what other code would make, in words.
    """

    asset: str
    version: str
    role: str
    files: int = 0
    bytes: int = 0
    defects: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The object that `gatehouse verify --json` lists."""
        return {
            "asset": self.asset,
            "version": self.version,
            "role": self.role,
            "files": self.files,
            "bytes": self.bytes,
            "defects": self.defects,
            "adopted": self.adopted,
        }


class Verification:
    """The versions to look at, and the look.

    Args:
        asset: The asset whose promoted version is looked at, with all it was made from; empty takes every asset.

    Attributes:
        findings: One for each version. Before `run` they hold what their records alone show.

    Raises:
        InputRefused: Nothing of the asset is promoted.
    """

    def __init__(self, store: Store, asset: str) -> None:
        self.findings: list[Finding] = []
        self._store = store
        self._manifests: dict[tuple[str, str], tuple[Manifest, Finding]] = {}

        for name in [asset] if asset else stored_assets(store):
            try:
                pointer = store.promotion(name)
            except UserError as error:  # a damaged pointer is a finding, and the other assets are still looked at
                self.findings.append(Finding(name, "", "promoted", defects=[str(error)]))
                continue
            if pointer is not None:
                self._promoted(pointer)
            elif asset:
                raise InputRefused(
                    f"nothing of {asset} is promoted, so there is nothing to verify: {store.explain_unpromoted(asset)}"
                )

    @property
    def bytes(self) -> int:
        """How much there is to read."""
        return sum(finding.bytes for finding in self.findings)

    def run(self, advance: Advance) -> list[Finding]:
        """Read every byte; return the findings.

        Args:
            advance: Called with the asset and how many more bytes of it were read.
        """
        for manifest, finding in self._manifests.values():
            try:
                finding.defects += self._content(manifest, advance)
            except UserError as error:
                finding.defects.append(str(error))
        return self.findings

    def _promoted(self, pointer: Promotion) -> None:
        """Note what a pointer names, the evidence about it, and what the records say against it."""
        store, asset = self._store, pointer.asset
        finding = self._visit(asset, pointer.version, "promoted")
        try:
            certificate = store.promoted_with(pointer)
            evaluation = certificate.evaluation_version if certificate else ""
            # Where it is gone, the rule below says so with a remedy.
            if evaluation in store.versions(asset + EVALUATION_SUFFIX):
                self._visit(asset + EVALUATION_SUFFIX, evaluation, f"evidence about {asset}")

            if pointer not in store.promotions(asset):
                finding.defects.append(
                    f"the history of promotions does not know the promotion of {pointer.version}: "
                    f"`gatehouse promote -r {store.named} {asset} {pointer.version}` writes it"
                )
            if problem := why_invalid(store, pointer, utc_today()):
                finding.defects.append(problem)
        except UserError as error:
            if str(error) not in finding.defects:  # the visit may have noted the same damaged manifest
                finding.defects.append(str(error))

    def _visit(self, asset: str, version: str, role: str) -> Finding:
        """Note a version and, before it, what it was made from."""
        if (asset, version) in self._manifests:
            return self._manifests[asset, version][1]

        finding = Finding(asset, version, role)
        try:
            manifest = self._store.manifest(asset, version)
        except UserError as error:
            finding.defects.append(str(error))
            self.findings.append(finding)
            return finding

        finding.files, finding.bytes = len(manifest.files), manifest.bytes
        self._manifests[asset, version] = manifest, finding
        finding.defects += self._inputs(manifest)
        self._note_adoptions(manifest, finding)
        self.findings.append(finding)
        return finding

    def _note_adoptions(self, manifest: Manifest, finding: Finding) -> None:
        try:
            for adoption in self._store.adoptions(manifest.asset, manifest.version):
                self._store.require_adopted(adoption, manifest)
                finding.adopted.append(describe_adoption(adoption))
        except StoreError as error:
            finding.defects.append(str(error))

    def _inputs(self, manifest: Manifest) -> list[str]:
        """What is wrong with the versions that one was made from, as far as it concerns that one."""
        defects = []
        tokenizers = {manifest.asset: manifest.facts[TOKENIZER]} if TOKENIZER in manifest.facts else {}

        for used in manifest.inputs.values():
            version = self._store.stand_in(used)
            if not version:
                defects.append(
                    f"it was made from {used.asset} {used.version}, which is gone: it cannot be made again "
                    f"from the same; {self._store.remake(manifest)}, on what is promoted now"
                )
                continue

            self._visit(used.asset, version, f"{manifest.asset} was made from it")
            if (used.asset, version) not in self._manifests:  # its manifest is damaged, which its own finding says
                continue
            parent = self._manifests[used.asset, version][0]
            if parent.digest != used.digest:
                defects.append(
                    f"it was made from {used.asset} {used.version} with content {used.digest[:12]}, and "
                    f"that version has {parent.digest[:12]} now; {self._store.remake(manifest)}"
                )
            if TOKENIZER in parent.facts:
                tokenizers[used.asset] = parent.facts[TOKENIZER]

        if len(set(tokenizers.values())) > 1:
            each = ", ".join(f"{name} with {digest[:12]}" for name, digest in tokenizers.items())
            defects.append(
                f"it and its inputs were made with different tokenizers: {each}; materialize the older ones again"
            )
        return defects

    def _content(self, manifest: Manifest, advance: Advance) -> list[str]:
        """What differs between a version's files, where they are stored, and its manifest."""
        place = self._store.place(manifest.asset, manifest.version)
        stored = self._store.storage.files(place)
        defects = []

        for name, entry in manifest.files.items():
            if name not in stored:
                defects.append(f"the file {name} is missing")
                advance(manifest.asset, entry.bytes)
                continue

            digest, read = hashlib.sha256(), 0
            for chunk in self._store.storage.chunks(place / name):
                digest.update(chunk)
                read += len(chunk)
                advance(manifest.asset, len(chunk))
            if (read, digest.hexdigest()) != (entry.bytes, entry.sha256):
                defects.append(f"the file {name} has changed since it was published")

        defects += [
            f"{name} was added after publishing"
            for name in sorted(set(stored) - set(manifest.files))
            if name not in (MANIFEST, CLAIM)
        ]
        if content_digest(manifest.files) != manifest.digest:
            defects.append(
                f"its manifest says {manifest.digest[:12]} of content that is {content_digest(manifest.files)[:12]}"
            )
        return [f"{defect}; {self._store.remake(manifest)}" for defect in defects]
