"""The graph: every asset, what it is made from, what judges it, and what people read about it.

No Dagster here: the planner reads it. Inputs and evaluators come from `training.specs`, because jobs hold themselves to
them: `contracts` says what a kind of asset may be made from, and `lineage` which of that a recipe has.

An asset is added in four places. `tests/arch/test_assets.py` names what is missing in any of them.

1. `training/specs`: its inputs and its evaluator in `contracts.py`, which recipes have it in `lineage.py`, its metrics
   in `metrics.py`, and its section of the recipe as a field in `recipe.py`.
2. `training/stages`: the module of its name, which makes it. Data are measured by a function in `evaluate_data.py`, and
   a model by `evaluate_model.py` on the parts of the suite that `training/evaluation/behaviour.py` gives it.
3. `pipeline/graph.py`: its row below, with what people read.
4. `assets_config`: its gates in the recipes that extend no other one, which is `tiny.yaml` and `125m.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from pipeline.humanize import nearest
from training.errors import RecipeError
from training.specs.contracts import CONTRACTS, Contract
from training.specs.kinds import kind_of

if TYPE_CHECKING:
    from training.specs.recipe import Recipe
    from training.store.store import Store

DEFAULT_RECIPE = "tiny"
EXCLUSIONS = "exclusions.parquet"


@dataclass(frozen=True)
class Kind:
    """One kind of asset, as every recipe has it.

    Attributes:
        stage: Its name, which is that of the module under `training.stages` that makes it.
        headlines: The measured metrics that sum it up: the first that was measured, and is not 0, does.
        description: What a person reads about it on the graph page.
        badges: Libraries and formats, as the graph page shows them.
        parts: Input to the part of it that decides the result, for inputs that do not decide as a whole.
        group: Group on the graph page.
        files: Fields of the recipe section that name files beside the recipe.
        owner: Who answers for it, as the graph page says.
    """

    stage: str
    description: str
    _: KW_ONLY
    headlines: tuple[str, ...]
    badges: frozenset[str]
    parts: Mapping[str, str] = field(default_factory=dict)
    group: str = "data"
    files: tuple[str, ...] = ()
    owner: str = "team:gatehouse"

    @property
    def evaluator(self) -> str:
        """Module under `training.stages` that measures it."""
        return CONTRACTS[self.stage].evaluator

    @property
    def is_model(self) -> bool:
        """Whether it is a model: a training makes it, and MLflow registers it."""
        return self.group == "models"

    def headline(self, values: Mapping[str, float | None]) -> tuple[str, float] | None:
        """The metric that sums a version up, and its value; None where none was measured.

        Args:
            values: Metric to value.
        """
        known = [(name, value) for name in self.headlines if (value := values.get(name)) is not None]
        return next((pair for pair in known if pair[1]), known[0] if known else None)

    @property
    def uses_gpu(self) -> bool:
        """Whether its job takes the pool of GPUs."""
        return self.is_model


@dataclass(frozen=True)
class Node:
    """One asset of a recipe's graph.

    Attributes:
        inputs: Upstream asset to the part of it that decides the result; None stands for all of it.
        judged_with: Upstream assets that the evaluator reads beside the artifact.
    """

    asset: str
    kind: Kind
    inputs: Mapping[str, str | None]
    judged_with: tuple[str, ...]


_WRITTEN = ("harmful", "benign")
_EXCLUDED: dict[str, str] = {"evaluation_sets": EXCLUSIONS}
_KINDS = (
    Kind(
        "raw_corpus",
        "The recipe's sources, gathered into parquet shards with provenance: source, path, licence and digest "
        "of every document. Nothing is changed or judged here yet. A file that cannot be read stops the job "
        "with its name and row.",
        headlines=("documents",),
        badges=frozenset({"parquet"}),
    ),
    Kind(
        "corpus",
        "The text that may be trained on, and the text that never will be. Cleaned, exact and near duplicates "
        "(MinHash) removed, split into training and held-out documents by the digest of their text. The data "
        "card counts what was dropped and shows examples.",
        headlines=("documents",),
        badges=frozenset({"parquet"}),
    ),
    Kind(
        "conversations",
        "The recipe's own conversations, read from files of any common format, each with its file and row. Duplicates "
        "and empty answers are dropped and counted, and a share is held out by the digest of the prompt.",
        headlines=("conversations",),
        badges=frozenset({"parquet"}),
        group="post_training_data",
    ),
    Kind(
        "preferences",
        "The recipe's own judged answers as pairs of a chosen and a rejected one, each with its file and row. A share "
        "is held out by the digest of the prompt.",
        headlines=("pairs",),
        badges=frozenset({"parquet"}),
        group="post_training_data",
    ),
    Kind(
        "evaluation_sets",
        "What every model is measured on: held-out text, four-way questions, preference pairs, prompts to "
        "refuse and look-alikes to answer. Training documents that contain its items are listed in "
        "`exclusions.parquet` and left out of training.",
        headlines=("questions", "heldout_conversations", "heldout_pairs"),
        badges=frozenset({"parquet"}),
        files=_WRITTEN,
        group="evaluation",
    ),
    Kind(
        "tokenizer",
        "A byte-level BPE trained on the corpus, or the imported model's own, with special tokens and a chat template, "
        "frozen. Its digest is part of everything made with it; a job whose inputs disagree about it stops.",
        headlines=("bytes_per_token",),
        badges=frozenset({"huggingface"}),
    ),
    Kind(
        "packed_shards",
        "The training text as token shards with a document index, memory-mapped. One set of shards serves "
        "every context length: rows are packed best-fit when they are read, no token is lost, and no "
        "attention crosses documents.",
        headlines=("tokens",),
        badges=frozenset({"numpy"}),
        parts=_EXCLUDED,
    ),
    Kind(
        "instruction_data",
        "Conversations to fine-tune on: questions about functions with their docstrings (or passages with "
        "their continuations), and written prompts with refusals or answers.",
        headlines=("conversations",),
        badges=frozenset({"parquet"}),
        parts=_EXCLUDED,
        files=_WRITTEN,
        group="post_training_data",
    ),
    Kind(
        "preference_data",
        "Pairs of a right and a wrong answer to one prompt, made from the conversations.",
        headlines=("pairs",),
        badges=frozenset({"parquet"}),
        group="post_training_data",
    ),
    Kind(
        "adapter_data",
        "Documents and conversations of the one domain that the adapter learns.",
        headlines=("documents", "conversations"),
        badges=frozenset({"parquet"}),
        parts=_EXCLUDED,
        group="post_training_data",
    ),
    Kind(
        "base_model",
        "A causal language model. It is built from the recipe's architecture and pretrained on the packed shards, with "
        "a context-length curriculum at a constant number of tokens per step, or it is imported and converted.",
        headlines=("heldout_perplexity", "heldout_answer_loss"),
        badges=frozenset({"deepspeed", "pytorch", "huggingface"}),
        group="models",
    ),
    Kind(
        "sft_model",
        "The base model fine-tuned on conversations. The loss covers the assistant's tokens only.",
        headlines=("choice_accuracy_dcpmi", "answer_gain"),
        badges=frozenset({"deepspeed", "trl", "huggingface"}),
        group="models",
    ),
    Kind(
        "dpo_model",
        "Its parent, an SFT model or the base model, optimized on preference pairs (DPO). The reference "
        "log-probabilities are computed once and kept in the artifact.",
        headlines=("preference_accuracy",),
        badges=frozenset({"deepspeed", "trl", "huggingface"}),
        group="models",
    ),
    Kind(
        "lora_model",
        "A LoRA adapter on the nearest model before it, for one domain. The artifact holds the adapter and, merged, a "
        "plain transformers folder that `AutoModelForCausalLM.from_pretrained` loads.",
        headlines=("domain_gain", "answer_gain"),
        badges=frozenset({"deepspeed", "peft", "huggingface"}),
        group="models",
    ),
)
KINDS: dict[str, Kind] = {kind.stage: kind for kind in _KINDS}
"""Name to kind, in an order in which everything comes after what it is made from."""

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(kind.group for kind in _KINDS))

Graph = Mapping[str, Node]
"""A recipe's assets, in an order in which everything comes after what it is made from."""


def graph_of(recipe: Recipe) -> Graph:
    """The graph that a recipe's sections ask for."""
    return {asset: _node(asset, contract) for asset, contract in recipe.contracts().items()}


def _node(asset: str, contract: Contract) -> Node:
    kind = kind_named(asset)
    return Node(asset, kind, {name: kind.parts.get(name) for name in contract.inputs}, contract.judged_with)


def kind_named(asset: str) -> Kind:
    """The kind of an asset, whichever recipe it belongs to."""
    return KINDS[kind_of(asset)]


def is_asset(name: str) -> bool:
    """Whether a recipe could have an asset of this name."""
    return kind_of(name) in KINDS


def upstream_of(asset: str, graph: Graph) -> set[str]:
    """Whatever an asset is made from or judged with, directly and further up, and itself."""
    node = graph[asset]
    return {asset}.union(*(upstream_of(name, graph) for name in (*node.inputs, *node.judged_with)))


def waits_for(asset: str, graph: Graph) -> list[str]:
    """The assets that come directly before one: its inputs, and what it is judged with where no input brings that.

    An imported model is made from no evaluation sets, and yet it cannot be judged before there are some.
    """
    node = graph[asset]
    brought = set().union(*(upstream_of(name, graph) for name in node.inputs))
    return [*node.inputs, *(name for name in node.judged_with if name not in brought)]


def stored_assets(store: Store) -> list[str]:
    """The assets that a store holds, those included that today's recipe has no section for; each after its inputs."""
    return in_order(asset for asset in store.assets() if is_asset(asset))


def in_order(assets: Iterable[str]) -> list[str]:
    """Assets of any recipe, in an order in which everything comes after what it is made from."""
    places = {name: place for place, name in enumerate(KINDS)}
    return sorted(assets, key=lambda asset: (places[kind_of(asset)], asset != kind_of(asset), asset))


def stage_module(stage: str) -> str:
    """The module of a stage."""
    return f"training.stages.{stage}"


def require_asset(name: str, graph: Graph, option: str = "") -> None:
    """Raise RecipeError with the nearest name where a recipe has no such asset.

    Args:
        graph: The recipe's.
        option: Where it was written, such as `--why`.
    """
    if name in graph:
        return
    if name in KINDS:
        problem = f"this recipe has no {name}: it has no section {name}"
        raise RecipeError(f"{option} {name}: {problem}; its assets are {', '.join(graph)}".strip())
    problem = f"{option} {name}: there is no such asset" if option else f"there is no asset {name!r}"
    raise RecipeError(f"{problem}{nearest(name, graph)}; the assets are {', '.join(graph)}")


def models_of(graph: Graph) -> list[str]:
    """The models of a graph, the last trained last."""
    return [asset for asset, node in graph.items() if node.kind.is_model]


def require_model(name: str, graph: Graph, option: str = "") -> None:
    """Raise RecipeError where there is no such asset, or it is no model."""
    require_asset(name, graph, option)
    models = models_of(graph)
    if name not in models:
        raise RecipeError(f"{option} {name}: this is no model; the models are {', '.join(models)}".strip())
