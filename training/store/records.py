"""What is written about an asset's versions: certificates, waivers, adoptions, promotions, where each is shown.

A record's file begins with a checksum of all that follows, so that no byte of it can change unnoticed. That guards
against damage, not against forgery; a file without a checksum is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError

from training.errors import StoreError
from training.specs.artifacts import Adoption, Certificate, Hold, Promotion, Waiver
from training.specs.base import Spec
from training.specs.job import EVALUATION_SUFFIX
from training.store.storage import Storage

_Record = TypeVar("_Record", bound=Spec)
_POINTER = "promoted.json"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_CHECKSUM = re.compile(rb'{\n "checksum": "([0-9a-f]{64})",\n')


class Records:
    """One recipe's records. They say what was decided; the store checks whether a decision still holds.

    Args:
        root: A local folder or a URL that fsspec understands.
        recipe: Name of the recipe.
        named: How a command names it after `-r`, such as a path; by default its name.

    Attributes:
        named: The same, ready for a shell.
        storage: The files.
        base: Where the recipe's files are in it.

    Raises:
        StoreError: The root is a URL of a kind that cannot be opened. Every method raises it for a record that cannot
            be read, and names the file.
    """

    def __init__(self, root: str, recipe: str, named: str = "") -> None:
        self.storage = Storage(root)
        self.root = self.storage.root
        self.is_local = self.storage.is_local
        self.recipe = recipe
        self.named = shlex.quote(named or recipe)
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
        if (
            pointer is not None
            and earlier is not None
            and pointer.version == version
            and certificate.digest != earlier.digest == pointer.certificate_digest
        ):
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
        """A version's waivers, expired or not, ordered by gate."""
        folder = self._path(asset, "waivers", version)
        waivers = (self._read(folder / name, Waiver) for name in self._names(folder))
        return [waiver for waiver in waivers if waiver is not None]

    def write_waiver(self, waiver: Waiver) -> None:
        """Keep a waiver; it replaces the gate's earlier one."""
        self._write(self._waiver(waiver.asset, waiver.version, waiver.gate), waiver)

    def remove_waiver(self, asset: str, version: str, gate: str) -> None:
        """Take a waiver back; it may be gone already."""
        self.storage.remove(self._waiver(asset, version, gate))

    # Adoptions

    def adoption(self, asset: str, version: str, identity: str) -> Adoption | None:
        """The decision by which a version is found under another identity than its own."""
        path = self._adoption(asset, version, identity)
        adoption = self._read(path, Adoption, is_sealed=True)
        if adoption is not None and (adoption.asset, adoption.version, adoption.identity) != (asset, version, identity):
            raise self._damaged(path, f"it belongs to {adoption.asset} {adoption.version} as {adoption.identity[:12]}")
        return adoption

    def adoptions(self, asset: str, version: str) -> list[Adoption]:
        """Every adoption of a version, oldest first."""
        names = self._names(self._path(asset, "adoptions", version))
        found = (self.adoption(asset, version, name.removesuffix(".json")) for name in names)
        return sorted((one for one in found if one is not None), key=lambda adoption: adoption.adopted_at)

    def adopted(self, asset: str) -> list[str]:
        """The versions of an asset of which there is an adoption, oldest first."""
        return self._names(self._path(asset, "adoptions"))

    def write_adoption(self, adoption: Adoption) -> None:
        """Keep an adoption; it is written once.

        Raises:
            StoreError: There is one already.
        """
        path = self._adoption(adoption.asset, adoption.version, adoption.identity)
        if not self.storage.create(path, sealed(adoption)):
            raise StoreError(f"{self.storage.address(path)} is there already: somebody else adopted it meanwhile")

    # Promotions

    def promotion(self, asset: str) -> Promotion | None:
        """Which version of an asset is promoted."""
        path = self._pointer(asset)
        pointer = self._read(path, Promotion)
        if pointer is not None and pointer.asset != asset:
            raise self._damaged(path, f"it belongs to {pointer.asset}")
        return pointer

    def promotions(self, asset: str) -> list[Promotion]:
        """Every promotion of an asset there ever was, oldest first."""
        folder = self._path(asset, "promotions")
        records = (self._read(folder / name, Promotion) for name in self._names(folder))
        promotions = (promotion for promotion in records if promotion is not None)
        return sorted(promotions, key=lambda promotion: promotion.promoted_at)

    def withdraw(self, asset: str) -> None:
        """Remove an asset's promotion pointer."""
        self.storage.remove(self._pointer(asset))

    def hold(self, asset: str, version: str) -> Hold | None:
        """The decision that a version is not to be promoted, if there is one."""
        return self._read(self._hold(asset, version), Hold)

    def write_hold(self, hold: Hold) -> None:
        """Hold a version back."""
        self._write(self._hold(hold.asset, hold.version), hold)

    def remove_hold(self, asset: str, version: str) -> None:
        """End a hold; it may be gone already."""
        self.storage.remove(self._hold(asset, version))

    def _point(self, promotion: Promotion) -> None:
        # The history comes first: a rollback could not return to a promotion that the history does not know.
        moment = round(promotion.promoted_at * 1e6)
        while not self.storage.create(self._promotion(promotion, moment), sealed(promotion)):
            moment += 1
        self._write(self._pointer(promotion.asset), promotion)

    # Pages

    def links(self, asset: str, version: str) -> dict[str, str]:
        """Where a version is shown: `mlflow_run_id`, `dagster_run_id` and the like."""
        path = self._links(asset, version)
        data = self.storage.read(path)
        try:
            return dict(_read_links(data).links) if data else {}
        except ValidationError as error:
            raise self._damaged(path, error.errors()[0]["msg"]) from error
        except (ValueError, RecursionError) as error:
            raise self._damaged(path, str(error)) from error

    def write_links(self, asset: str, version: str, links: dict[str, str]) -> None:
        """Add to where a version is shown."""
        self._write(self._links(asset, version), Links(links=self.links(asset, version) | links))

    def gate_report(self, asset: str, version: str) -> str:
        """Address of the page of a version's newest judgement; empty when there is none."""
        path = self._gate_report(asset, version, ".html")
        return self.storage.address(path) if self.storage.exists(path) else ""

    def gate_pages(self, asset: str, version: str) -> tuple[str, str] | None:
        """The page of a version's newest judgement and its card with the table of gates."""
        page = self.storage.read(self._gate_report(asset, version, ".html"))
        card = self.storage.read(self._gate_report(asset, version, ".md"))
        return (page.decode(), card.decode()) if page is not None and card is not None else None

    def write_gate_report(self, asset: str, version: str, page: str, card: str) -> None:
        """Keep the page of a version's newest judgement, and its card with the table of gates."""
        self.storage.write(self._gate_report(asset, version, ".md"), card.encode())
        self.storage.write(self._gate_report(asset, version, ".html"), page.encode())

    # Files

    def _path(self, *names: str, suffix: str = "") -> PurePosixPath:
        """A path below the recipe's folder, of names alone: what a person typed never leads out of an asset's folder.

        Raises:
            StoreError: One of them is no name.
        """
        for name in names:
            if not NAME.fullmatch(name):
                raise StoreError(
                    f"{name[:80]!r} is no name of an asset, a version or a gate: names consist of "
                    "letters, digits, `_`, `-` and `.`; `gatehouse status` lists assets and versions"
                )
        return self.base.joinpath(*names[:-1], names[-1] + suffix)

    def _certificate(self, asset: str, version: str) -> PurePosixPath:
        return self._path(asset, "certificates", version, suffix=".json")

    def _superseded(self, asset: str, version: str) -> PurePosixPath:
        return self._path(asset, "superseded", version, suffix=".json")

    def _links(self, asset: str, version: str) -> PurePosixPath:
        return self._path(asset, "links", version, suffix=".json")

    def _pointer(self, asset: str) -> PurePosixPath:
        return self._path(asset, _POINTER)

    def _promotion(self, promotion: Promotion, moment: int) -> PurePosixPath:
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(moment // 1_000_000))}.{moment % 1_000_000:06d}"
        return self._path(promotion.asset, "promotions", f"{stamp}-{promotion.version}", suffix=".json")

    def _waiver(self, asset: str, version: str, gate: str) -> PurePosixPath:
        return self._path(asset, "waivers", version, gate, suffix=".json")

    def _hold(self, asset: str, version: str) -> PurePosixPath:
        return self._path(asset, "holds", version, suffix=".json")

    def _adoption(self, asset: str, version: str, identity: str) -> PurePosixPath:
        return self._path(asset, "adoptions", version, identity, suffix=".json")

    def _gate_report(self, asset: str, version: str, suffix: str) -> PurePosixPath:
        return self._path(asset, "gate_reports", version, suffix=suffix)

    def _names(self, folder: PurePosixPath) -> list[str]:
        """Names of the records in a folder; a record that is being written is not one yet."""
        return sorted(name for name in self.storage.names(folder) if not name.startswith("."))

    def _read(self, path: PurePosixPath, record: type[_Record], is_sealed: bool = False) -> _Record | None:
        """A record, None when there is none.

        Args:
            is_sealed: It was never written without a checksum, so that one without is an edit by hand.
        """
        data = self.storage.read(path)
        if data is None:
            return None
        try:
            if is_sealed and not _CHECKSUM.match(data):
                raise ValueError("it has no checksum")
            return record.model_validate_json(_unsealed(data))
        except ValidationError as error:
            raise self._damaged(path, error.errors()[0]["msg"]) from error
        except ValueError as error:
            raise self._damaged(path, str(error)) from error

    def _write(self, path: PurePosixPath, record: Spec) -> None:
        self.storage.write(path, sealed(record))

    def _damaged(self, path: PurePosixPath, reason: str) -> StoreError:
        """The error for a record that cannot be read; what it says is found or decided again after its deletion."""
        asset, *rest = path.relative_to(self.base).parts
        return StoreError(
            f"{self.storage.address(path)} is damaged: {reason}; delete this file{self._remedy(asset, rest)}"
        )

    def _remedy(self, asset: str, rest: list[str]) -> str:
        """What to do after a damaged record was deleted."""
        built = asset.removesuffix(EVALUATION_SUFFIX)
        kind, name = rest[0], rest[-1].removesuffix(".json")
        if kind == "links":
            return f", then `gatehouse sync -r {self.named}` writes it anew"
        if kind == "holds":
            return f": {name} is held back no longer then"
        if kind == "waivers":
            return (
                f", then `gatehouse waive -r {self.named} {asset} --version {rest[1]} --gate {name} --reason ... "
                "--until ...` writes it anew"
            )
        if kind == "adoptions":
            return f", then `gatehouse adopt -r {self.named} {asset} --reason ...` proves it anew"
        if kind == "promotions":
            version = name.partition("-")[2]
            return (
                f": a rollback does not know this promotion then; if {version} is still promoted, `gatehouse "
                f"promote -r {self.named} {asset} {version}` writes it anew"
            )
        return f" and materialize {built} again"


class Links(Spec):
    """Where a version is shown."""

    links: dict[str, str]


def _read_links(data: bytes) -> Links:
    """Links as they are written, or as they were once: without a checksum, the names at the top."""
    record = _unsealed(data)
    if record is data and isinstance(plain := json.loads(record), dict) and "links" not in plain:
        return Links(links=plain)
    return Links.model_validate_json(record)


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
    checksum = _CHECKSUM.match(data)
    if checksum is None:
        return data
    rest = data[checksum.end() :]
    if hashlib.sha256(rest).hexdigest().encode() != checksum.group(1):
        raise ValueError("it is not as it was written")
    return b"{\n" + rest
