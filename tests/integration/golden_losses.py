"""Losses of the training stages as they were recorded, in all digits.

On the kind of processor that they were recorded on the digits must be the same. On another one, or with another torch,
sums are taken in another order, and the losses must only be close. GATEHOUSE_UPDATE_GOLDEN=1 records them anew, after a
change that is meant to change them.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

_FOLDER = Path(__file__).resolve().parent.parent / "golden"
_CLOSE = 1e-4
_OF_THE_PROCESSOR = ("vendor_id", "cpu family", "model")


def assert_golden(stage: str, losses: Sequence[float]) -> None:
    """Compare the losses of a stage's first steps with the recorded ones."""
    path = _FOLDER / f"{stage}.json"
    if os.environ.get("GATEHOUSE_UPDATE_GOLDEN"):
        path.write_text(json.dumps({"recorded_on": _machine(), "loss": list(losses)}, indent=1) + "\n")

    golden = json.loads(path.read_text())
    if golden["recorded_on"] == _machine():
        assert list(losses) == golden["loss"], f"{stage} trains other numbers than before"
    else:
        assert losses == pytest.approx(golden["loss"], rel=_CLOSE)
        warnings.warn(f"{path.name} is of {golden['recorded_on']}: its last digits mean nothing here", stacklevel=2)


def _machine() -> dict[str, str]:
    """What the last digits depend on beside our code."""
    described = Path("/proc/cpuinfo").read_text()
    found = {name: re.search(rf"^{name}\s*: (.+)$", described, re.MULTILINE) for name in _OF_THE_PROCESSOR}
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{name: match[1] if match else "" for name, match in found.items()},
    }
