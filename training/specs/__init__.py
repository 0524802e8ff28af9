"""Frozen pydantic models that the control plane and the jobs share. Nothing here imports torch."""
