"""What is written about an asset's versions: certificates, waivers, holds, which is promoted, where each is shown.

A record's file begins with a checksum of all that follows, so that no byte of it can change unnoticed. That guards
against damage, not against forgery; a file without a checksum is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
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
_CHECKSUM = re.compile(rb'{\n "checksum": "([0-9a-f]{64})",\n')


class Records:
    """One recipe's records. They say what was decided; whether a decision holds is the store's to check.

    Args:
        root: A local folder or a URL that fsspec understands.
        recipe: Name of the recipe.

    Attributes:
        storage: The files.
        base: Where the recipe's files are in it.

    Raises:
        StoreError: The root is a URL of a kind that cannot be opened. Every method raises it for a record that cannot
            be read, and names the file.
    """

    def __init__(self, root: str, recipe: str) -> None:
        self.storage = Storage(root)
        self.root = self.storage.root
        self.is_local = self.storage.is_local
        self.recipe = recipe
        self.base = self.storage.base / recipe

    # Judgements

    def certificate(self, asset: str, version: str) -> Certificate | None:
        """The newest judgement of a version."""
        return self._read(self._certificate(asset, version), Certificate)

    def write_certificate(self, certificate: Certificate) -> None:
        """Keep a judgement; it replaces the version's earlier one.

        The one that a promotion rests on is kept beside it: until the pointer follows, readers go by that one.
        """
        asset, version = certificate.asset, certificate.version
        pointer, earlier = self.promotion(asset), self.certificate(asset, version)
        if (pointer is not None and earlier is not None and pointer.version == version
                and certificate.digest != earlier.digest == pointer.certificate_digest):
            self._write(self._superseded(asset, version), earlier)
        self._write(self._certificate(asset, version), certificate)

    def promoted_with(self, pointer: Promotion) -> Certificate | None:
        """The judgement that a promotion rests on; the version's newest one when that is not there."""
        newest = self.certificate(pointer.asset, pointer.version)
        if newest is not None and newest.digest != pointer.certificate_digest:
            superseded = self._read(self._superseded(pointer.asset, pointer.version), Certificate)
            if superseded is not None and superseded.digest == pointer.certificate_digest:
                return superseded
        return newest

    def waivers(self, asset: str, version: str) -> list[Waiver]:
        """What was waived of a version's gates, expired or not, by gate."""
        folder = self.base / asset / "waivers" / version
        found = (self._read(folder / name, Waiver) for name in self._names(folder))
        return [waiver for waiver in found if waiver is not None]

    def write_waiver(self, waiver: Waiver) -> None:
        """Keep a waiver; it replaces the gate's earlier one."""
        self._write(self._waiver(waiver.asset, waiver.version, waiver.gate), waiver)

    def remove_waiver(self, asset: str, version: str, gate: str) -> None:
        """Take a waiver back; it may be gone already."""
        self.storage.remove(self._waiver(asset, version, gate))

    # Promotions

    def promotion(self, asset: str) -> Promotion | None:
        """Which version of an asset is promoted."""
        path = self.base / asset / "promoted.json"
        found = self._read(path, Promotion)
        if found is not None and found.asset != asset:
            raise self._damaged(path, f"it belongs to {found.asset}")
        return found

    def promotion_address(self, asset: str) -> str:
        """Address of the file that says which version is promoted, for people."""
        return self.storage.address(self.base / asset / "promoted.json")

    def promotions(self, asset: str) -> list[Promotion]:
        """Every promotion of an asset there ever was, oldest first."""
        folder = self.base / asset / "promotions"
        found = (self._read(folder / name, Promotion) for name in self._names(folder))
        return sorted((promotion for promotion in found if promotion is not None), key=lambda made: made.promoted_at)

    def withdraw(self, asset: str) -> None:
        """Remove an asset's promotion pointer."""
        self.storage.remove(self.base / asset / "promoted.json")

    def hold(self, asset: str, version: str) -> Hold | None:
        """The decision that a version is not to be promoted, if there is one."""
        return self._read(self._hold(asset, version), Hold)

    def write_hold(self, hold: Hold) -> None:
        """Hold a version back."""
        self._write(self._hold(hold.asset, hold.version), hold)

    def remove_hold(self, asset: str, version: str) -> None:
        """Hold a version back no longer."""
        self.storage.remove(self._hold(asset, version))

    def _point(self, promotion: Promotion) -> None:
        # The history comes first: a pointer that it does not know could not be returned to.
        moment = round(promotion.promoted_at * 1e6)
        while not self.storage.create(self._promotion(promotion, moment), sealed(promotion)):
            moment += 1
        self._write(self.base / promotion.asset / "promoted.json", promotion)

    # Pages

    def links(self, asset: str, version: str) -> dict[str, str]:
        """Where a version is shown: `mlflow_run_id`, `dagster_run_id` and the like."""
        path = self.base / asset / "links" / f"{version}.json"
        data = self.storage.read(path)
        try:
            return dict(json.loads(data)) if data else {}
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged(path, str(error)) from error

    def write_links(self, asset: str, version: str, links: dict[str, str]) -> None:
        """Add to where a version is shown."""
        merged = self.links(asset, version) | links
        self.storage.write(self.base / asset / "links" / f"{version}.json", json.dumps(merged, indent=1).encode())

    def gate_report(self, asset: str, version: str) -> str:
        """Address of the page of a version's newest judgement; empty when there is none."""
        path = self._gate_reports(asset) / f"{version}.html"
        return self.storage.address(path) if self.storage.exists(path) else ""

    def gate_pages(self, asset: str, version: str) -> tuple[str, str] | None:
        """The page of a version's newest judgement and its card with the table of gates."""
        page = self.storage.read(self._gate_reports(asset) / f"{version}.html")
        card = self.storage.read(self._gate_reports(asset) / f"{version}.md")
        return (page.decode(), card.decode()) if page is not None and card is not None else None

    def write_gate_report(self, asset: str, version: str, page: str, card: str) -> None:
        """Keep the page of a version's newest judgement, and its card with the table of gates."""
        self.storage.write(self._gate_reports(asset) / f"{version}.md", card.encode())
        self.storage.write(self._gate_reports(asset) / f"{version}.html", page.encode())

    # Files

    def _certificate(self, asset: str, version: str) -> PurePosixPath:
        return self.base / asset / "certificates" / f"{version}.json"

    def _superseded(self, asset: str, version: str) -> PurePosixPath:
        return self.base / asset / "superseded" / f"{version}.json"

    def _promotion(self, promotion: Promotion, moment: int) -> PurePosixPath:
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(moment // 1_000_000))}.{moment % 1_000_000:06d}"
        return self.base / promotion.asset / "promotions" / f"{stamp}-{promotion.version}.json"

    def _waiver(self, asset: str, version: str, gate: str) -> PurePosixPath:
        return self.base / asset / "waivers" / version / f"{gate}.json"

    def _hold(self, asset: str, version: str) -> PurePosixPath:
        return self.base / asset / "holds" / f"{version}.json"

    def _gate_reports(self, asset: str) -> PurePosixPath:
        return self.base / asset / "gate_reports"

    def _names(self, folder: PurePosixPath) -> list[str]:
        """Names of the records in a folder; a record that is being written is not one yet."""
        return sorted(name for name in self.storage.names(folder) if not name.startswith("."))

    def _read(self, path: PurePosixPath, record: type[_Record]) -> _Record | None:
        data = self.storage.read(path)
        if data is None:
            return None
        try:
            return record.model_validate_json(_unsealed(data))
        except ValidationError as error:
            raise self._damaged(path, error.errors()[0]["msg"]) from error
        except ValueError as error:
            raise self._damaged(path, str(error)) from error

    def _write(self, path: PurePosixPath, record: Spec) -> None:
        self.storage.write(path, sealed(record))

    def _damaged(self, path: PurePosixPath, reason: str) -> StoreError:
        """For a file whose loss costs nothing but a job: what it says is found again by materializing its asset."""
        asset = path.relative_to(self.base).parts[0].removesuffix(EVALUATION_SUFFIX)
        return StoreError(f"{self.storage.address(path)} is damaged: {reason}; delete this file and materialize "
                          f"{asset} again")


def dump(record: Spec) -> bytes:
    """A record as JSON whose bytes follow from its values."""
    value: Any = record.model_dump(mode="json")
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def sealed(record: Spec) -> bytes:
    """A record as the store writes it: its dump, with the checksum before it."""
    rest = dump(record).removeprefix(b"{\n")
    return b'{\n "checksum": "%b",\n%b' % (hashlib.sha256(rest).hexdigest().encode(), rest)


def _unsealed(data: bytes) -> bytes:
    """The dump of a record; raises ValueError when its checksum is another. A spec refuses the key elsewhere."""
    found = _CHECKSUM.match(data)
    if found is None:
        return data
    rest = data[found.end():]
    if hashlib.sha256(rest).hexdigest().encode() != found.group(1):
        raise ValueError("it is not as it was written")
    return b"{\n" + rest
