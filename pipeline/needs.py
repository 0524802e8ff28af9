"""Which versions of a recipe's store something still needs, and what that is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from pipeline.graph import GRAPH
from pipeline.locks import LOCK_FILE, is_held
from pipeline.resources.launchers import JOB_FILE
from training.specs.artifacts import Certificate, Manifest
from training.specs.job import EVALUATION_SUFFIX, Job
from training.store import Store, utc_today

NAMES = (*GRAPH, *(asset + EVALUATION_SUFFIX for asset in GRAPH))
"""Every asset and what holds its evaluations."""

Versions = dict[str, dict[str, Manifest]]


def all_versions(store: Store) -> Versions:
    """Every manifest of a recipe, by asset and version, oldest first.

    Raises:
        StoreError: One of them cannot be read.
    """
    return {name: {version: store.manifest(name, version) for version in store.versions(name)} for name in NAMES}


def busy(work: Path, recipe: str) -> list[str]:
    """The assets of a recipe, and the evaluations, that a run is working at."""
    return [name for name in NAMES if is_held(work / recipe / name / LOCK_FILE)]


def needed(store: Store, versions: Versions, work: Path, keep_seconds: float) -> dict[tuple[str, str], str]:
    """The versions to keep, each with what needs it.

    Args:
        versions: All there are.
        work: Folder of the attempts, which say what running jobs read.
        keep_seconds: A version younger than this is kept: it may be about to be judged.

    Raises:
        StoreError: A record that decides about it cannot be read.
    """
    needs = _Needs(store, versions)
    for asset in GRAPH:
        needs.by_decisions(asset)
    for name in NAMES:
        for version, manifest in versions[name].items():
            if time.time() - manifest.started_at - manifest.seconds < keep_seconds:
                needs.root(name, version, "it is new")
    for name in busy(work, store.recipe):
        for version in versions[name]:
            needs.root(name, version, f"{name} is being worked at")
        for job in _jobs(work / store.recipe / name):
            for used in job.inputs.values():
                needs.add(used.asset, used.version, f"{name} is being made from it")
    return needs.kept


class _Needs:
    """Collects what is needed; everything that it was made from, and its evidence, is needed with it."""

    def __init__(self, store: Store, versions: Versions) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self._store = store
        self._versions = versions

    def by_decisions(self, asset: str) -> None:
        """What promotions, certificates in force, waivers and holds need of an asset."""
        store, there = self._store, self._versions[asset]
        if there:
            self.root(asset, max(there), "it is the newest")
        pointer = store.promotion(asset)
        promoted = pointer.version if pointer else ""
        if promoted:
            self.root(asset, promoted, "it is promoted")
        for version in self._returns(asset, promoted):
            self.root(asset, version, "`gatehouse rollback` goes back to it")
            break
        for version in there:
            if version > promoted and _in_force(store.certificate(asset, version)):
                self.root(asset, version, "it is certified, and newer than the promoted one")
            if store.hold(asset, version) is not None:
                self.root(asset, version, "it is held back")
            if any(waiver.holds(utc_today()) for waiver in store.waivers(asset, version)):
                self.root(asset, version, "a waiver of it holds")

    def root(self, asset: str, version: str, why: str) -> None:
        """A version that is needed for itself, and with it the champion that its certificate compares it with."""
        self.add(asset, version, why)
        certificate = self._certificate(asset, version)
        if certificate is not None and certificate.champion:
            self.add(asset, certificate.champion, f"{asset} {version} is compared with it")

    def add(self, asset: str, version: str, why: str) -> None:
        """A version that is needed; nothing happens when it is gone."""
        manifest = self._versions.get(asset, {}).get(version)
        if manifest is None or (asset, version) in self.kept:
            return
        self.kept[asset, version] = why
        for used in manifest.inputs.values():
            self.add(used.asset, used.version, f"{asset} {version} was made from it")
        for evaluation in self._evaluations(asset, version):
            self.add(asset + EVALUATION_SUFFIX, evaluation, f"it measured {asset} {version}")

    def _returns(self, asset: str, promoted: str) -> Iterator[str]:
        """The earlier promotions that a rollback may take, the one it takes first."""
        for made in reversed(self._store.promotions(asset)):
            if (made.version != promoted and made.version in self._versions[asset]
                    and self._store.hold(asset, made.version) is None
                    and _in_force(self._store.certificate(asset, made.version))):
                yield made.version

    def _evaluations(self, asset: str, version: str) -> list[str]:
        """What the version's certificate rests on, and its newest measurement."""
        certificate = self._certificate(asset, version)
        measured = [name for name, manifest in self._versions.get(asset + EVALUATION_SUFFIX, {}).items()
                    if any((used.asset, used.version) == (asset, version) for used in manifest.inputs.values())]
        return [*([certificate.evaluation_version] if certificate else []), *measured[-1:]]

    def _certificate(self, asset: str, version: str) -> Certificate | None:
        return self._store.certificate(asset, version) if asset in GRAPH else None


def _in_force(certificate: Certificate | None) -> bool:
    return certificate is not None and certificate.passed and not certificate.expired(utc_today())


def _jobs(folder: Path) -> Iterator[Job]:
    """The jobs of an asset's attempts."""
    for path in folder.glob(f"*/{JOB_FILE}"):
        try:
            yield Job.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):  # it is being written, so its inputs are promoted
            continue
