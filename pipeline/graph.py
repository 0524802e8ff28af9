"""The graph: every asset, what it is made from, what judges it, and what people read about it.

No Dagster here: the planner reads it. Inputs and evaluators come from `training.specs.contracts`, because jobs hold
themselves to them.

An asset is added in four places. `tests/arch/test_assets.py` names what is missing in any of them.

1. `training/specs`: its inputs and its evaluator in `contracts.py`, its metrics in `metrics.py`, and its section of the
   recipe as a field in `recipe.py`.
2. `training/stages`: the module of its name, which makes it. Data are measured by a function in `evaluate_data.py`, and
   a model by `evaluate_model.py` on the parts of the suite that `training/evaluation/behaviour.py` gives it.
3. `pipeline/graph.py`: its row below, with what people read.
4. `assets_config`: its gates in the recipes that extend no other one, which is `tiny.yaml` and `125m.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.humanize import nearest
from training.errors import RecipeError
from training.specs.contracts import CONTRACTS

DEFAULT_RECIPE = "tiny"
EXCLUSIONS = "exclusions.parquet"


@dataclass(frozen=True)
class Node:
    """One asset.

    Attributes:
        stage: The asset's name, which is that of the module under `training.stages` that makes it.
        inputs: Upstream asset to the part of it that decides the result; None stands for all of it.
        evaluator: Module under `training.stages` that measures it.
        judged_with: Upstream assets that the evaluator reads beside the artifact.
        headline: The measured metric that sums it up.
        description: What a person reads about it on the graph page.
        kinds: Libraries and formats, which the graph page shows as badges.
        group: Group on the graph page.
        files: Fields of the recipe section that name files beside the recipe.
        owner: Who answers for it, as the graph page says.
    """

    stage: str
    inputs: dict[str, str | None]
    evaluator: str
    judged_with: tuple[str, ...]
    headline: str
    description: str
    kinds: frozenset[str]
    group: str
    files: tuple[str, ...]
    owner: str = "team:gatehouse"

    @property
    def uses_gpu(self) -> bool:
        """Whether its job takes the pool of GPUs."""
        return self.group == "models"


def _node(
    asset: str,
    description: str,
    *,
    headline: str,
    kinds: set[str],
    parts: dict[str, str] | None = None,
    files: tuple[str, ...] = (),
    group: str = "data",
) -> Node:
    """A row of the graph.

    Args:
        parts: Input to the part of it that decides the result, for inputs that do not decide as a whole.
    """
    contract = CONTRACTS[asset]
    return Node(
        stage=asset,
        inputs={name: (parts or {}).get(name) for name in contract.inputs},
        evaluator=contract.evaluator,
        judged_with=contract.judged_with,
        headline=headline,
        description=description,
        kinds=frozenset(kinds),
        group=group,
        files=files,
    )


_WRITTEN = ("harmful", "benign")
_EXCLUDED: dict[str, str] = {"evaluation_sets": EXCLUSIONS}
_NODES = (
    _node(
        "raw_corpus",
        "The recipe's sources, gathered into parquet shards with provenance: source, path, licence and digest "
        "of every document. Nothing is changed or judged here yet. A file that cannot be read stops the job "
        "with its name and row.",
        headline="documents",
        kinds={"parquet"},
    ),
    _node(
        "corpus",
        "The text that may be trained on, and the text that never will be. Cleaned, exact and near duplicates "
        "(MinHash) removed, split into training and held-out documents by the digest of their text. The data "
        "card counts what was dropped and shows examples.",
        headline="documents",
        kinds={"daft", "parquet"},
    ),
    _node(
        "evaluation_sets",
        "What every model is measured on: held-out text, four-way questions, preference pairs, prompts to "
        "refuse and look-alikes to answer. Training documents that contain its items are listed in "
        "`exclusions.parquet` and left out of training.",
        headline="questions",
        kinds={"parquet"},
        files=_WRITTEN,
        group="evaluation",
    ),
    _node(
        "tokenizer",
        "A byte-level BPE trained on the corpus, with special tokens and a chat template, frozen. Its digest "
        "is part of everything made with it; a job whose inputs disagree about it stops.",
        headline="bytes_per_token",
        kinds={"huggingface"},
    ),
    _node(
        "packed_shards",
        "The training text as token shards with a document index, memory-mapped. One set of shards serves "
        "every context length: rows are packed best-fit when they are read, no token is lost, and no "
        "attention crosses documents.",
        headline="tokens",
        kinds={"numpy"},
        parts=_EXCLUDED,
    ),
    _node(
        "instruction_data",
        "Conversations to fine-tune on: questions about functions with their docstrings (or passages with "
        "their continuations), and written prompts with refusals or answers.",
        headline="conversations",
        kinds={"parquet"},
        parts=_EXCLUDED,
        files=_WRITTEN,
        group="post_training_data",
    ),
    _node(
        "preference_data",
        "Pairs of a right and a wrong answer to one prompt, made from the conversations.",
        headline="pairs",
        kinds={"parquet"},
        group="post_training_data",
    ),
    _node(
        "adapter_data",
        "Documents and conversations of the one domain that the adapter learns.",
        headline="documents",
        kinds={"parquet"},
        parts=_EXCLUDED,
        group="post_training_data",
    ),
    _node(
        "base_model",
        "A causal language model built from the recipe's architecture and pretrained on the packed shards, "
        "with a context-length curriculum at a constant number of tokens per step.",
        headline="heldout_perplexity",
        kinds={"deepspeed", "pytorch", "huggingface"},
        group="models",
    ),
    _node(
        "sft_model",
        "The base model fine-tuned on conversations. The loss covers the assistant's tokens only.",
        headline="choice_accuracy_dcpmi",
        kinds={"deepspeed", "trl", "huggingface"},
        group="models",
    ),
    _node(
        "dpo_model",
        "The SFT model optimized on preference pairs (DPO). The reference log-probabilities are computed once "
        "and kept in the artifact.",
        headline="preference_accuracy",
        kinds={"deepspeed", "trl", "huggingface"},
        group="models",
    ),
    _node(
        "lora_model",
        "A LoRA adapter on the DPO model for one domain. The artifact holds the adapter and, merged, a plain "
        "transformers folder that `AutoModelForCausalLM.from_pretrained` loads.",
        headline="domain_gain",
        kinds={"deepspeed", "peft", "huggingface"},
        group="models",
    ),
)
GRAPH: dict[str, Node] = {node.stage: node for node in _NODES}
"""Asset to its row, in an order in which everything comes after what it is made from."""


def stage_module(stage: str) -> str:
    """The module of a stage."""
    return f"training.stages.{stage}"


def require_asset(name: str, option: str = "") -> None:
    """Raise RecipeError with the nearest name where there is no such asset.

    Args:
        option: Where it was written, such as `--why`.
    """
    if name not in GRAPH:
        problem = f"{option} {name}: there is no such asset" if option else f"there is no asset {name!r}"
        raise RecipeError(f"{problem}{nearest(name, GRAPH)}; the assets are {', '.join(GRAPH)}")


def require_model(name: str, option: str = "") -> None:
    """Raise RecipeError where there is no such asset, or it is no model."""
    require_asset(name, option)
    models = [asset for asset, node in GRAPH.items() if node.group == "models"]
    if name not in models:
        raise RecipeError(f"{option} {name}: this is no model; the models are {', '.join(models)}".strip())
