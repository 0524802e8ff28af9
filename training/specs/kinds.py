"""Names of assets, and of what kind each is: an asset's kind decides its stage, its metrics and what judges it."""

from __future__ import annotations

_BEGINNINGS = {"adapter_data": "adapter_data_", "lora_model": "lora_"}
"""The kinds that a recipe may have several of, to how the names of the further ones begin."""


def kind_of(asset: str) -> str:
    """The kind of an asset: its own name, but for the adapters that a recipe lists and for their data.

    The adapter `legal` is the asset `lora_legal` of the kind `lora_model`, made from `adapter_data_legal`.
    """
    if asset in _BEGINNINGS:
        return asset
    return next((kind for kind, beginning in _BEGINNINGS.items() if asset.startswith(beginning)), asset)


def adapter_of(asset: str) -> str:
    """Name of the listed adapter that an asset belongs to; empty for every other asset."""
    kind = kind_of(asset)
    return "" if kind == asset else asset.removeprefix(_BEGINNINGS[kind])


def adapter_assets(adapter: str) -> dict[str, str]:
    """Kind to asset, of a listed adapter."""
    return {kind: beginning + adapter for kind, beginning in _BEGINNINGS.items()}
