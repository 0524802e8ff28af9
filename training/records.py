"""What is written about an asset's versions: certificates, waivers, holds, which is promoted, where each is shown."""

from __future__ import annotations

import json
import time
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError

from training.errors import StoreError
from training.specs.artifacts import Certificate, Hold, Promotion, Waiver
from training.specs.base import Spec
from training.specs.job import EVALUATION_SUFFIX
from training.storage import Storage

_Record = TypeVar("_Record", bound=Spec)


class Records:
    """One recipe's records. They say what was decided; whether a decision holds is the store's to check.

    Args:
        root: A local folder or a URL that fsspec understands.
        recipe: Name of the recipe.

    Raises:
        StoreError: The root is a URL of a kind that cannot be opened. Every method raises it for a record that cannot
            be read, and names the file.
    """

    def __init__(self, root: str, recipe: str) -> None:
        self._storage = Storage(root)
        self.root = self._storage.root
        self.is_local = self._storage.is_local
        self.recipe = recipe
        self._base = self._storage.base / recipe

    # Judgements

    def certificate(self, asset: str, version: str) -> Certificate | None:
        """The newest judgement of a version."""
        return self._read(self._certificate(asset, version), Certificate)

    def write_certificate(self, certificate: Certificate) -> None:
        """Keep a judgement; it replaces the version's earlier one."""
        self._storage.write(self._certificate(certificate.asset, certificate.version), dump(certificate))

    def waivers(self, asset: str, version: str) -> list[Waiver]:
        """What was waived of a version's gates, expired or not, by gate."""
        folder = self._base / asset / "waivers" / version
        found = (self._read(folder / name, Waiver) for name in self._names(folder))
        return [waiver for waiver in found if waiver is not None]

    def write_waiver(self, waiver: Waiver) -> None:
        """Keep a waiver; it replaces the gate's earlier one."""
        self._storage.write(self._waiver(waiver.asset, waiver.version, waiver.gate), dump(waiver))

    def remove_waiver(self, asset: str, version: str, gate: str) -> None:
        """Take a waiver back; it may be gone already."""
        self._storage.remove(self._waiver(asset, version, gate))

    # Promotions

    def promotion(self, asset: str) -> Promotion | None:
        """Which version of an asset is promoted."""
        return self._read(self._base / asset / "promoted.json", Promotion)

    def promotions(self, asset: str) -> list[Promotion]:
        """Every promotion of an asset there ever was, oldest first."""
        folder = self._base / asset / "promotions"
        found = (self._read(folder / name, Promotion) for name in self._names(folder))
        return sorted((promotion for promotion in found if promotion is not None), key=lambda made: made.promoted_at)

    def withdraw(self, asset: str) -> None:
        """Remove an asset's promotion pointer."""
        self._storage.remove(self._base / asset / "promoted.json")

    def hold(self, asset: str, version: str) -> Hold | None:
        """The decision that a version is not to be promoted, if there is one."""
        return self._read(self._hold(asset, version), Hold)

    def write_hold(self, hold: Hold) -> None:
        """Hold a version back."""
        self._storage.write(self._hold(hold.asset, hold.version), dump(hold))

    def remove_hold(self, asset: str, version: str) -> None:
        """Hold a version back no longer."""
        self._storage.remove(self._hold(asset, version))

    def _point(self, promotion: Promotion) -> None:
        # The history comes first: a pointer that it does not know could not be returned to.
        moment = time.gmtime(promotion.promoted_at)
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', moment)}.{int(promotion.promoted_at % 1 * 1e6):06d}"
        self._storage.write(self._base / promotion.asset / "promotions" / f"{stamp}-{promotion.version}.json",
                            dump(promotion))
        self._storage.write(self._base / promotion.asset / "promoted.json", dump(promotion))

    # Pages

    def links(self, asset: str, version: str) -> dict[str, str]:
        """Where a version is shown: `mlflow_run_id`, `dagster_run_id` and the like."""
        path = self._base / asset / "links" / f"{version}.json"
        data = self._storage.read(path)
        try:
            return dict(json.loads(data)) if data else {}
        except (ValueError, TypeError) as error:
            raise self._damaged(path, str(error)) from error

    def write_links(self, asset: str, version: str, links: dict[str, str]) -> None:
        """Add to where a version is shown."""
        merged = self.links(asset, version) | links
        self._storage.write(self._base / asset / "links" / f"{version}.json", json.dumps(merged, indent=1).encode())

    def gate_report(self, asset: str, version: str) -> str:
        """Address of the page of a version's newest judgement; empty when there is none."""
        path = self._gate_reports(asset) / f"{version}.html"
        return self._storage.address(path) if self._storage.exists(path) else ""

    def gate_pages(self, asset: str, version: str) -> tuple[str, str] | None:
        """The page of a version's newest judgement and its card with the table of gates."""
        page = self._storage.read(self._gate_reports(asset) / f"{version}.html")
        card = self._storage.read(self._gate_reports(asset) / f"{version}.md")
        return (page.decode(), card.decode()) if page is not None and card is not None else None

    def write_gate_report(self, asset: str, version: str, page: str, card: str) -> None:
        """Keep the page of a version's newest judgement, and its card with the table of gates."""
        self._storage.write(self._gate_reports(asset) / f"{version}.md", card.encode())
        self._storage.write(self._gate_reports(asset) / f"{version}.html", page.encode())

    # Files

    def _certificate(self, asset: str, version: str) -> PurePosixPath:
        return self._base / asset / "certificates" / f"{version}.json"

    def _waiver(self, asset: str, version: str, gate: str) -> PurePosixPath:
        return self._base / asset / "waivers" / version / f"{gate}.json"

    def _hold(self, asset: str, version: str) -> PurePosixPath:
        return self._base / asset / "holds" / f"{version}.json"

    def _gate_reports(self, asset: str) -> PurePosixPath:
        return self._base / asset / "gate_reports"

    def _names(self, folder: PurePosixPath) -> list[str]:
        """Names of the records in a folder; a record that is being written is not one yet."""
        return sorted(name for name in self._storage.names(folder) if not name.startswith("."))

    def _read(self, path: PurePosixPath, record: type[_Record]) -> _Record | None:
        data = self._storage.read(path)
        if data is None:
            return None
        try:
            return record.model_validate_json(data)
        except ValidationError as error:
            raise self._damaged(path, error.errors()[0]["msg"]) from error

    def _damaged(self, path: PurePosixPath, reason: str) -> StoreError:
        """For a file whose loss costs nothing but a job: what it says is found again by materializing its asset."""
        asset = path.relative_to(self._base).parts[0].removesuffix(EVALUATION_SUFFIX)
        return StoreError(f"{self._storage.address(path)} is damaged: {reason}; delete this file and materialize "
                          f"{asset} again")


def dump(record: Spec) -> bytes:
    """A record as the store writes it."""
    value: Any = record.model_dump(mode="json")
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
