"""The graph follows the recipe: which assets it has, and what each is made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from training.specs.contracts import CONTRACTS, Contract
from training.specs.kinds import adapter_assets, adapter_of, kind_of

if TYPE_CHECKING:
    from training.specs.recipe import Recipe


def contracts_of(recipe: Recipe) -> dict[str, Contract]:
    """The recipe's assets, each with the inputs that this recipe gives it.

    Returns:
        Asset to its contract, of which `inputs` and `judged_with` are all there is. Everything comes after what it is
        made from.
    """
    assets = list(_assets(recipe))
    contracts: dict[str, Contract] = {}
    for asset in assets:
        contract = CONTRACTS[kind_of(asset)]
        inputs = [_instance(name, asset) for name in contract.inputs]
        inputs += [name for name in contract.may_have if _wants(recipe, asset, name)]
        parent = [name for name in contract.parents if name in assets][:1]
        contracts[asset] = replace(
            contract,
            inputs=(*parent, *inputs),
            judged_with=(*parent, *contract.judged_with),
            may_have=(),
            parents=(),
        )
    return contracts


def _assets(recipe: Recipe) -> Iterator[str]:
    """The assets that the recipe's sections ask for, in the order of `CONTRACTS`."""
    adapters = [adapter_assets(adapter.name) for adapter in recipe.adapters]
    needed = {
        "instruction_data": recipe.sft_model or recipe.dpo_model or recipe.lora_model or adapters,
        "preference_data": recipe.dpo_model,
        "adapter_data": recipe.lora_model,
        "sft_model": recipe.sft_model,
        "dpo_model": recipe.dpo_model,
        "lora_model": recipe.lora_model,
    }
    for kind in CONTRACTS:
        if needed.get(kind, True):
            yield kind
        yield from (assets[kind] for assets in adapters if kind in assets)


def _wants(recipe: Recipe, asset: str, name: str) -> bool:
    """Whether an asset has an input that the recipe decides about."""
    if (asset, name) == ("sft_model", "packed_shards"):
        return recipe.sft_model is not None and recipe.sft_model.replay > 0
    return False


def _instance(name: str, child: str) -> str:
    """The asset of a kind that another asset is made from."""
    adapter = adapter_of(child)
    return adapter_assets(adapter).get(name, name) if adapter else name
