"""Posts a notice to a webhook. The address is a secret: logs show its host alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

WEBHOOK = "GATEHOUSE_WEBHOOK_URL"
_logger = logging.getLogger("gatehouse.webhook")


def post(url: str, payload: Mapping[str, object], timeout: float = 5.0) -> bool:
    """POST `payload` as JSON; True when the other side accepted it.

    A webhook that cannot be reached is logged, not raised: the sensor that reports a failure must not fail itself.

    Args:
        timeout: Seconds for each wait on the network.
    """
    shown = masked(url)
    if urlsplit(url).scheme not in ("http", "https"):
        _logger.warning("the webhook %s is not an http or https address; nothing was sent", shown)
        return False

    request = Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"}, method="POST")
    try:
        with urlopen(request, timeout=timeout) as answer:
            answer.read(1024)
        return True
    except HTTPError as error:
        _logger.warning("the webhook %s answered %d; the notice is lost", shown, error.code)
    except (URLError, OSError, ValueError) as error:
        # The error's own text may hold the whole address.
        _logger.warning("the webhook %s cannot be reached (%s); the notice is lost", shown, type(error).__name__)
    return False


def masked(url: str) -> str:
    """`url` without user, path and query, where services keep their tokens."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or '?'}{f':{parts.port}' if parts.port else ''}/***"
