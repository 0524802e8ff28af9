"""Addresses of files that do not lie on this machine: which are allowed, and how they are shown."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

HTTP, S3, HUB = ("http", "https"), "s3", "hf"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_VARIABLES = re.compile(r"(\$\{\w+\}|\$\w+)+")
_SECRET = re.compile(r"sig|token|key|secret|passw|pwd|cred|auth|jwt|session", re.IGNORECASE)
_REMEDY = "put it into an environment variable and write ${ITS_NAME} in its place"


def is_address(path: str) -> bool:
    """Whether a path is an address, such as `s3://bucket/texts`, and not a path of this machine."""
    return _SCHEME.match(path) is not None


def scheme_of(address: str) -> str:
    """The scheme of an address in lower case, such as `https`."""
    scheme = _SCHEME.match(address)
    return scheme[1].lower() if scheme else ""


def shown_address(address: str) -> str:
    """An address for people and records: without user, password and query, which may be secrets."""
    if scheme_of(address) not in HTTP:
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def name_in(address: str) -> str:
    """The name of the file that a web address means, without what is escaped in it."""
    return PurePosixPath(unquote(urlsplit(address).path)).name


def problem_of(address: str) -> str:
    """Why a recipe may not hold an address; empty where it may. No secret stands in it."""
    scheme = scheme_of(address)
    if scheme == S3:
        bucket = address.partition("://")[2].partition("/")[0]
        return (
            "" if re.fullmatch(r"[\w.-]+|\$\{\w+\}", bucket) else f"{address} names no bucket; write s3://bucket/path"
        )
    if scheme not in HTTP:
        return f"{scheme}:// cannot be read; give an address of http, https or s3, or a path of this machine"

    try:
        parts = urlsplit(address)
    except ValueError:
        return "this is no address; write https://host/file"
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    if not all(_VARIABLES.fullmatch(secret) for secret in (password or user,) if secret):
        return f"the address of {shown_address(address)} holds a user's name or password; {_REMEDY}"

    secrets = [
        key
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
        if _SECRET.search(key) and value and not _VARIABLES.fullmatch(value)
    ]
    if secrets:
        return f"the address of {shown_address(address)} holds a secret, {secrets[0][:40]}; {_REMEDY}"
    if not name_in(address) or parts.path.endswith("/"):
        return f"{shown_address(address)} names no file; give the address of each file, also as a list"
    if "*" in parts.path:
        return f"{shown_address(address)}: a web server lists no files; give the address of each file as a list"
    return ""
