"""Which versions of a recipe's store something still needs, and what that is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from pipeline.gates.terms import terms
from pipeline.graph import GRAPH
from pipeline.jobs.attempt import JOB_FILE
from pipeline.jobs.locks import LOCK_FILE, is_held
from pipeline.recipes.loader import LoadedRecipe
from training.errors import StoreError, UserError
from training.job.fingerprint import FingerprintError
from training.specs.artifacts import Certificate, InputRecord, Manifest, Promotion
from training.specs.job import EVALUATION_SUFFIX, Job
from training.store.store import Store, utc_today
from training.store.validity import standing_changed

NAMES = (*GRAPH, *(asset + EVALUATION_SUFFIX for asset in GRAPH))
"""Every asset and what holds its evaluations."""

Versions = dict[str, dict[str, Manifest]]


def all_versions(store: Store, known: Versions) -> Versions:
    """Every manifest of a recipe, by asset and version, oldest first.

    Args:
        known: Manifests that were read before: they never change, and reading one is a request.

    Raises:
        StoreError: One of them cannot be read.
    """
    return {
        name: {
            version: known.get(name, {}).get(version) or store.manifest(name, version)
            for version in store.versions(name)
        }
        for name in NAMES
    }


def busy(work: Path, recipe: str) -> list[str]:
    """The assets of a recipe, and the evaluations, that a run is working at."""
    return [name for name in NAMES if is_held(work / recipe / name / LOCK_FILE)]


class Standing:
    """What is needed, as of the last look. Promotions and judgements wait for no lock, so a sweep looks again.

    Args:
        loaded: The recipe; it says on what terms a rollback judges.
        work: Folder of the attempts, which say what running jobs read.
        before: What was finished after that moment is kept: it may be about to be judged.

    Attributes:
        versions: All there are.
        kept: The versions to keep, each with what needs it.

    Raises:
        StoreError: A record that decides about it cannot be read. So do the methods that look.
    """

    def __init__(self, loaded: LoadedRecipe, store: Store, work: Path, before: float) -> None:
        self.versions: Versions = {}
        self.kept: dict[tuple[str, str], str] = {}
        self._loaded, self._store, self._work, self._before = loaded, store, work, before
        self._stays: list[tuple[str, str]] = []
        self.look()

    def look(self, mine: str = "") -> None:
        """Find out again what is needed.

        Args:
            mine: The asset whose lock the caller holds.
        """
        # Before the versions are listed: what a run publishes and leaves meanwhile is not among them.
        working = busy(self._work, self._store.recipe)
        self.versions = all_versions(self._store, self.versions)
        needs = _Needs(self._store, self.versions, self._loaded)
        for asset in GRAPH:
            needs.by_decisions(asset)
        for name in NAMES:
            for version, manifest in self.versions[name].items():
                if manifest.started_at + manifest.seconds > self._before:
                    needs.root(name, version, "it is new")
        for name in dict.fromkeys([*working, *busy(self._work, self._store.recipe)]):
            if name != mine:
                self._by_run(name, needs)
        for name, version in self._stays:
            needs.root(name, version, "it could not be deleted")
        self.kept = needs.kept

    def why(self, name: str, version: str) -> str:
        """Why a version stays, by the last look or by what was decided about its asset since; empty when it may go."""
        if found := self.kept.get((name, version)):
            return found
        needs = _Needs(self._store, self.versions, self._loaded)
        needs.by_decisions(name.removesuffix(EVALUATION_SUFFIX))
        return needs.kept.get((name, version), "")

    def stays(self, name: str, version: str) -> None:
        """A version was not deleted after all: from the next look on, what it rests on is needed."""
        self._stays.append((name, version))

    def _by_run(self, name: str, needs: _Needs) -> None:
        """What the run that works at an asset needs."""
        for version in self.versions[name]:
            needs.root(name, version, f"{name} is being worked at")
        for job in _jobs(self._work / self._store.recipe / name):
            for used in job.inputs.values():
                needs.add(used.asset, used.version, f"{name} is being made from it")


class _Needs:
    """Collects what is needed; everything that it was made from, and its evidence, is needed with it."""

    def __init__(self, store: Store, versions: Versions, loaded: LoadedRecipe) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self._store = store
        self._versions = versions
        self._loaded = loaded
        self._certificates: dict[tuple[str, str], Certificate | None] = {}
        self._pointers: dict[str, Promotion | None] = {}

    def by_decisions(self, asset: str) -> None:
        """What promotions, certificates in force, waivers and holds need of an asset."""
        there, pointer = self._versions[asset], self._pointer(asset)
        promoted = pointer.version if pointer else ""
        if promoted:
            self.root(asset, promoted, "it is promoted")
        if there:
            self.root(asset, max(there), "it is the newest")
        held = self._recorded(asset, "holds")
        for version in self._returns(asset, promoted, held):
            self.root(asset, version, "`gatehouse rollback` may go back to it")
        for version in there:
            if version > promoted and _in_force(self._certificate(asset, version)):
                self.root(asset, version, "it is certified, and newer than the promoted one")
        for version in held:
            self.root(asset, version, "it is held back")
        for version in self._recorded(asset, "waivers"):
            if any(waiver.holds(utc_today()) for waiver in self._store.waivers(asset, version)):
                self.root(asset, version, "a waiver of it holds")

    def root(self, asset: str, version: str, why: str) -> None:
        """A version that is needed for itself, and with it the champions that it is compared with."""
        self.add(asset, version, why)
        for certificate in self._judgements(asset, version):
            if certificate.champion:
                self.add(asset, certificate.champion, f"{asset} {version} is compared with it")

    def add(self, asset: str, version: str, why: str) -> None:
        """A version that is needed; nothing happens when it is gone."""
        manifest = self._versions.get(asset, {}).get(version)
        if manifest is None or (asset, version) in self.kept:
            return
        self.kept[asset, version] = why
        for used in manifest.inputs.values():
            self.add(used.asset, self._stand_in(used), f"{asset} {version} was made from it")
        for evaluation in self._evaluations(asset, version):
            self.add(asset + EVALUATION_SUFFIX, evaluation, f"it measured {asset} {version}")

    def _stand_in(self, used: InputRecord) -> str:
        """As `Store.stand_in`, by what was read already."""
        there = self._versions.get(used.asset, {})
        equal = [version for version, manifest in there.items() if manifest.digest == used.digest]
        return used.version if used.version in there or not equal else equal[-1]

    def _returns(self, asset: str, promoted: str, held: list[str]) -> Iterator[str]:
        """The earlier promotions that a rollback may take, newest first, up to the first that it takes as far as known.

        It judges them on today's terms and goes past those that fail. What was judged on other terms may fail or pass.
        """
        for version in self._earlier(asset):
            manifest = self._versions[asset].get(version)
            if manifest is None or version == promoted or version in held:
                continue
            certificate = self._certificate(asset, version)
            if certificate is None:  # a rollback does not take what was never judged
                continue
            known = self._holds_today(manifest, certificate)
            if _in_force(certificate) or not known:
                yield version
            if _in_force(certificate) and known:
                return

    def _earlier(self, asset: str) -> list[str]:
        """Every version that was ever promoted, newest promotion first."""
        # By the names alone: after a year of nights, reading the records is hundreds of requests.
        names = self._store.storage.names(self._store.base / asset / "promotions")
        return list(dict.fromkeys(name.partition("-")[2].removesuffix(".json") for name in sorted(names, reverse=True)))

    def _holds_today(self, manifest: Manifest, certificate: Certificate) -> bool:
        """Whether a certificate says what judging its version today would say."""
        store, asset, version = self._store, manifest.asset, manifest.version
        try:
            on = terms(asset, self._loaded, store)
        except StoreError:
            raise
        except (UserError, FingerprintError):  # nothing can be judged today
            return False
        return (
            not on.outdated(certificate)
            and not standing_changed(store, manifest, certificate)
            and set(certificate.waivers) <= set(store.waivers(asset, version))
        )

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
        return [*(issued.evaluation_version for issued in self._judgements(asset, version)), *measured[-1:]]

    def _judgements(self, asset: str, version: str) -> list[Certificate]:
        """A version's certificate, and the one it was promoted with while the pointer has not followed."""
        if asset not in GRAPH:
            return []
        pointer = self._pointer(asset)
        mine = pointer is not None and pointer.version == version
        found = (self._certificate(asset, version), self._store.promoted_with(pointer) if pointer and mine else None)
        return [certificate for certificate in found if certificate is not None]

    def _certificate(self, asset: str, version: str) -> Certificate | None:
        if (asset, version) not in self._certificates:
            self._certificates[asset, version] = self._store.certificate(asset, version)
        return self._certificates[asset, version]

    def _pointer(self, asset: str) -> Promotion | None:
        if asset not in self._pointers:
            self._pointers[asset] = self._store.promotion(asset)
        return self._pointers[asset]


def _in_force(certificate: Certificate | None) -> bool:
    return certificate is not None and certificate.passed and not certificate.expired(utc_today())


def _jobs(folder: Path) -> Iterator[Job]:
    """The jobs of an asset's attempts."""
    for path in folder.glob(f"*/{JOB_FILE}"):
        try:
            yield Job.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):  # it is being written, so its inputs are promoted
            continue
