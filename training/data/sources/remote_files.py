"""Files of a source that lie on a web server, in an S3 bucket, or on the hub.

Imports nothing heavy: the control plane uses it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote

from training.errors import SourceError
from training.specs.addresses import HTTP, scheme_of, shown_address

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_LOGIN = re.compile(r"\w+://[^/?#]*@")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a source that is not on this machine.

    Attributes:
        address: As the recipe writes it. Variables in it are not expanded, so it holds no secret.
        name: What globs match and what provenance records, with `/` and in NFC.
        bytes: Its size.
        etag: The server's mark of this version, with its quotes; empty where the server gives none.
        modified: When it was written, as the server says; empty where the server gives no time.
        sha256: Digest (hex) that the server gives for the whole file; empty where it gives none.
    """

    address: str
    name: str
    bytes: int
    etag: str
    modified: str
    sha256: str = ""

    @property
    def shown(self) -> str:
        """Its address for people and records."""
        return shown_address(self.address)

    @property
    def state(self) -> list[object]:
        """What differs between two versions of it, and between two files."""
        return [self.shown, self.name, self.bytes, self.etag, self.modified, self.sha256]


class Interrupted(Exception):
    """A server failed in a way that another try may mend.

    Attributes:
        reason: For people; without an address, because a library's own words may hold secrets.
        wait: Seconds that the server asks to wait.
        restart: What came so far cannot be continued.
    """

    def __init__(self, reason: str, wait: float = 0, restart: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.restart = reason, wait, restart


def with_variables(address: str, source: str) -> str:
    """An address with its environment variables expanded. It may hold secrets now.

    A user and a password are escaped, because a `/` or an `@` in them would make another server of the address.

    Args:
        address: As the recipe writes it.
        source: Name of the source, for the error.

    Raises:
        SourceError: A variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise SourceError(f"source {source}: {shown_address(address)}: the environment variable {name} is not set")
        return os.environ[name]

    login = _LOGIN.match(address) if scheme_of(address) in HTTP else None
    start = login.end() if login else 0
    escaped = _VARIABLE.sub(lambda match: quote(value(match), safe=""), address[:start])
    return escaped + _VARIABLE.sub(value, address[start:])


def changed(source: str, file: RemoteFile) -> SourceError:
    """What a person is told of a file that is another one than was listed."""
    return SourceError(
        f"source {source}: {file.shown} changed since it was listed; start again when nobody writes to it"
    )


def refused(source: str, shown: str, code: str, remedy: str) -> SourceError:
    """What a person is told when a server refuses the credentials, or has them no more."""
    return SourceError(
        f"source {source}: {shown}: the server refuses access ({code}); {remedy}, and start again: what was fetched "
        "stays"
    )
