"""The graph follows the recipe: which assets it has, and what each is made from."""

from __future__ import annotations

from collections.abc import Iterator
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
        inputs += [name for name in contract.may_have if name in assets and _wants(recipe, asset, name)]
        parent = [name for name in contract.parents if name in assets][:1]
        judged_with = [name for name in contract.may_be_judged_with if name in assets]
        contracts[asset] = Contract(
            (*parent, *inputs), contract.evaluator, (*parent, *contract.judged_with, *judged_with)
        )
    return contracts


def _assets(recipe: Recipe) -> Iterator[str]:
    """The assets that the recipe's sections ask for, in the order of `CONTRACTS`."""
    adapters = [adapter_assets(adapter.name) for adapter in recipe.adapters]
    sft, dpo, lora = recipe.sft_model, recipe.dpo_model, recipe.lora_model
    needed = {
        "raw_corpus": recipe.sources,
        "corpus": recipe.sources,
        "conversations": recipe.conversation_files(),
        "preferences": recipe.preferences,
        "packed_shards": recipe.base_model.is_trained or (sft is not None and sft.replay > 0),
        "instruction_data": sft or lora or adapters or (dpo and not recipe.preferences),
        "preference_data": dpo,
        "adapter_data": lora,
        "sft_model": sft,
        "dpo_model": dpo,
        "lora_model": lora,
    }
    for kind in CONTRACTS:
        if needed.get(kind, True):
            yield kind
        yield from (assets[kind] for assets in adapters if kind in assets)


def _wants(recipe: Recipe, asset: str, name: str) -> bool:
    """Whether an asset has an input that the recipe decides about and that there is."""
    match asset, name:
        case "tokenizer", "corpus":
            return recipe.tokenizer_section().origin is None
        case "instruction_data", "corpus":
            return recipe.asks_the_corpus()
        case "preference_data", "instruction_data":
            return not recipe.preferences
        case "preference_data", "evaluation_sets":
            return bool(recipe.preferences)
        case "base_model", "packed_shards":
            return recipe.base_model.is_trained
        case "sft_model", "packed_shards":
            return recipe.sft_model is not None and recipe.sft_model.replay > 0
        case _:
            return True


def _instance(name: str, child: str) -> str:
    """The asset of a kind that another asset is made from."""
    adapter = adapter_of(child)
    return adapter_assets(adapter).get(name, name) if adapter else name
