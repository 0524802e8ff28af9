"""Which versions of a recipe's store are kept, and why.

Kept is of each asset what is promoted, held back or waived, the last three promotions, and the newest version. So is
what was finished a short while ago, and what a run works at or reads. Whatever is kept keeps all that it rests on: what
it was made from, the evaluations that measured it, and the champion that it was compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from pipeline.graph import is_asset, stored_assets
from pipeline.jobs.attempt import JOB_FILE
from pipeline.jobs.locks import LOCK_FILE, is_held
from training.specs.artifacts import Certificate, InputRecord, Manifest
from training.specs.job import EVALUATION_SUFFIX, Job
from training.store.store import Store, utc_today

KEPT_PROMOTIONS = 3
"""How many promotions of an asset are kept: the one in force, and two that a rollback may take."""

Versions = dict[str, dict[str, Manifest]]


def all_versions(store: Store, read_before: Versions) -> Versions:
    """Every manifest of a recipe, by asset and version, oldest first.

    Args:
        read_before: Manifests of an earlier call: they never change, and reading one is a request.

    Raises:
        StoreError: One of them cannot be read.
    """
    return {
        name: {
            version: read_before.get(name, {}).get(version) or store.manifest(name, version)
            for version in store.versions(name)
        }
        for name in with_evaluations(stored_assets(store))
    }


def with_evaluations(assets: Iterable[str]) -> list[str]:
    """Assets, and for each what holds its evaluations."""
    return [name for asset in assets for name in (asset, asset + EVALUATION_SUFFIX)]


def busy(work: Path, recipe: str) -> list[str]:
    """The assets of a recipe, and the evaluations, that a run is working at."""
    return sorted(lock.parent.name for lock in (work / recipe).glob(f"*/{LOCK_FILE}") if is_held(lock))


class RetainedVersions:
    """The versions to keep, as of the last scan.

    Promotions and judgements wait for no lock. Whoever deletes therefore scans again before it deletes.

    Args:
        work: Folder of the attempts, which say what running jobs read.
        before: What was finished after that moment is kept: it may be about to be judged.

    Attributes:
        versions: All versions there are.
        reasons: Asset and version of each that is kept, to why.

    Raises:
        StoreError: A record that decides about it cannot be read. So do `rescan` and `reason`.
    """

    def __init__(self, store: Store, work: Path, before: float) -> None:
        self.versions: Versions = {}
        self.reasons: dict[tuple[str, str], str] = {}
        self._store, self._work, self._before = store, work, before
        self._failed: list[tuple[str, str]] = []
        self.rescan()

    def rescan(self, locked: str = "") -> None:
        """Find out again what is kept.

        Args:
            locked: The asset whose lock the caller holds itself.
        """
        # Locks are read before the versions are listed and once more after. A run that publishes in between is then
        # among the busy ones, whether it ends or begins meanwhile.
        working = busy(self._work, self._store.recipe)
        self.versions = all_versions(self._store, self.versions)

        scan = _Scan(self._store, self.versions)
        for asset in self.versions:
            if is_asset(asset):
                scan.keep_decided(asset)
        for name, versions in self.versions.items():
            for version, manifest in versions.items():
                if manifest.started_at + manifest.seconds > self._before:
                    scan.keep_root(name, version, "it is new")

        for name in dict.fromkeys([*working, *busy(self._work, self._store.recipe)]):
            if name != locked:
                self._keep_for_run(name, scan)
        for name, version in self._failed:
            scan.keep_root(name, version, "it could not be deleted")
        self.reasons = scan.reasons

    def reason(self, name: str, version: str) -> str:
        """Why a version is kept, by the last scan or by a decision about its asset since; empty when it may go."""
        if reason := self.reasons.get((name, version)):
            return reason

        # Between the scan and this moment a person may have promoted it.
        scan = _Scan(self._store, self.versions)
        scan.keep_decided(name.removesuffix(EVALUATION_SUFFIX))
        return scan.reasons.get((name, version), "")

    def keep_failed(self, name: str, version: str) -> None:
        """A version was not deleted after all: from the next scan on, what it rests on is kept."""
        self._failed.append((name, version))

    def _keep_for_run(self, name: str, scan: _Scan) -> None:
        """Keep what the run that works at an asset has made or reads."""
        for version in self.versions.get(name, {}):
            scan.keep_root(name, version, f"{name} is being worked at")
        for job in _jobs(self._work / self._store.recipe / name):
            for used in job.inputs.values():
                scan.keep(used.asset, used.version, f"{name} is being made from it")


class _Scan:
    """Collects what is kept, and with each version all that it rests on."""

    def __init__(self, store: Store, versions: Versions) -> None:
        self.reasons: dict[tuple[str, str], str] = {}
        self._store = store
        self._versions = versions
        # In an object store each read is a request, and one scan asks for the same records many times.
        self._promotion = cache(store.promotion)
        self._certificates = cache(self._read_certificates)

    def keep_decided(self, asset: str) -> None:
        """Keep the versions of an asset that a promotion, a hold or a waiver names, and the newest one."""
        versions, pointer = self._versions[asset], self._promotion(asset)
        held = self._recorded(asset, "holds")
        waived = self._recorded(asset, "waivers")

        if pointer:
            self.keep_root(asset, pointer.version, "it is promoted")
        if versions:
            # The recipe may ask for it and its gates refuse it: without it a run would train it again.
            self.keep_root(asset, max(versions), "it is the newest")
        # One that is held back is no way back, and is kept in any case.
        returns = [version for version in self._promoted_ever(asset) if version in versions and version not in held]
        for version in returns[:KEPT_PROMOTIONS]:
            self.keep_root(asset, version, f"it is one of the last {KEPT_PROMOTIONS} promotions")
        for version in held:
            self.keep_root(asset, version, "it is held back")
        for version in waived:
            if any(waiver.holds(utc_today()) for waiver in self._store.waivers(asset, version)):
                self.keep_root(asset, version, "a waiver of it holds")

    def keep_root(self, asset: str, version: str, why: str) -> None:
        """Keep a version for itself, and the champions that it is compared with when it is judged again."""
        self.keep(asset, version, why)
        for certificate in self._certificates(asset, version):
            if certificate.compared_with:
                self.keep(*certificate.compared_with, f"{asset} {version} is compared with it")

    def keep(self, asset: str, version: str, why: str) -> None:
        """Keep a version, what it was made from and its evaluations; nothing happens when it is gone."""
        manifest = self._versions.get(asset, {}).get(version)
        if manifest is None or (asset, version) in self.reasons:
            return

        self.reasons[asset, version] = why
        for used in manifest.inputs.values():
            self.keep(used.asset, self._stand_in(used), f"{asset} {version} was made from it")
        for evaluation in self._evaluations(asset, version):
            self.keep(asset + EVALUATION_SUFFIX, evaluation, f"it measured {asset} {version}")

    def _stand_in(self, used: InputRecord) -> str:
        """As `Store.stand_in`, by what was read already."""
        versions = self._versions.get(used.asset, {})
        equal = [version for version, manifest in versions.items() if manifest.digest == used.digest]
        return used.version if used.version in versions or not equal else equal[-1]

    def _promoted_ever(self, asset: str) -> list[str]:
        """Every version that was ever promoted, newest promotion first."""
        # By the names alone: after a year of nights, reading the records is hundreds of requests.
        names = self._store.storage.names(self._store.base / asset / "promotions")
        return list(dict.fromkeys(name.partition("-")[2].removesuffix(".json") for name in sorted(names, reverse=True)))

    def _recorded(self, asset: str, folder: str) -> list[str]:
        """The versions of which there is a record in a folder."""
        names = self._store.storage.names(self._store.base / asset / folder)
        return [version for name in sorted(names) if (version := name.removesuffix(".json")) in self._versions[asset]]

    def _evaluations(self, asset: str, version: str) -> list[str]:
        """What the version's certificates rest on, and its newest measurement."""
        measured = [
            name
            for name, manifest in self._versions.get(asset + EVALUATION_SUFFIX, {}).items()
            if any((used.asset, used.version) == (asset, version) for used in manifest.inputs.values())
        ]
        return [*(issued.evaluation_version for issued in self._certificates(asset, version)), *measured[-1:]]

    def _read_certificates(self, asset: str, version: str) -> list[Certificate]:
        """A version's certificate, and the one it was promoted with while the pointer has not followed."""
        if not is_asset(asset):
            return []
        pointer = self._promotion(asset)
        is_promoted = pointer is not None and pointer.version == version
        promoted_with = self._store.promoted_with(pointer) if pointer and is_promoted else None
        newest = self._store.certificate(asset, version)
        return [certificate for certificate in (newest, promoted_with) if certificate is not None]


def _jobs(folder: Path) -> Iterator[Job]:
    """The jobs of an asset's attempts."""
    for path in folder.glob(f"*/{JOB_FILE}"):
        try:
            yield Job.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):  # it is being written, so its inputs are promoted
            continue
