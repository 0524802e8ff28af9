"""What a proof of a version and who asked for it know of each other."""

from __future__ import annotations

LONGEST_PROOF = 120.0
"""Seconds that a proof may take, unless a person gives it more."""

PROOF_FILE = "proof.json"
"""The answer of a proof that passed, in its attempt's folder."""

PROVING = "prove"
"""The phase in which a proof's time counts: its code is loaded by then, and its inputs are verified."""

WRITTEN_IN_ORDER = ("raw_corpus",)
"""Stages that write their files one after the other, so that the first ones can be had without the others."""
