"""The code location of the default recipe."""

from pipeline.build import build_definitions

defs = build_definitions()
