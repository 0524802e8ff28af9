"""The recipe: one file that decides what is trained, corpus to adapter."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from training.custom import FILTER, SOURCE
from training.specs.base import Spec
from training.specs.base_model import BaseModelSection
from training.specs.contracts import Contract
from training.specs.conversations import (
    ConversationsOptions,
    ConversationSource,
    ConversationsSection,
    PreferencesOptions,
    PreferenceSource,
    PreferencesSection,
)
from training.specs.corpus import GENERAL, CorpusSection
from training.specs.evaluation import EvaluationSection
from training.specs.evaluation_sets import EvaluationSetsSection
from training.specs.gates import Gate
from training.specs.imports import Imported
from training.specs.kinds import adapter_assets, adapter_of, kind_of
from training.specs.lineage import contracts_of
from training.specs.metrics import METRICS, comparable, metrics_of, source_metric
from training.specs.optimization import TrainingSection
from training.specs.origin import Origin
from training.specs.packed_shards import PackedShardsSection
from training.specs.post_training import AdapterSection, DpoModelSection, LoraModelSection, SftModelSection
from training.specs.post_training_data import AdapterDataSection, InstructionDataSection, PreferenceDataSection
from training.specs.raw_corpus import RawCorpusOptions, RawCorpusSection, Source
from training.specs.tokenizer import TokenizerSection


class Nightly(Spec):
    """When the whole graph is materialized by schedule, once it is switched on."""

    hour: int = Field(2, ge=0, le=23)
    minute: int = Field(0, ge=0, le=59)
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # a folder of zones, or a name that is too long
            raise ValueError(f"no time zone is called {value[:60]!r}; an example is Europe/Berlin") from error
        return value


class Recipe(Spec):
    """Everything that decides what is trained, and what it must reach to be promoted."""

    name: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$",
        description="Key prefix of the recipe's assets; its own, never taken over by `extends`.",
    )
    description: str = Field("", description="One sentence for people.")
    seed: int = Field(0, ge=0, lt=2**32, description="The one seed: order of data, initial weights, dropout.")
    nightly: Nightly = Field(Nightly(), description="When the whole graph is materialized, once it is switched on.")
    launcher: str = Field("local", description="Entry of launchers.yaml; never part of identity.")
    code: str | None = Field(
        None,
        description="A Python file beside the recipe whose decorated functions are sources (`function`) and filters "
        "(`corpus.rules.filters`).",
    )
    sources: tuple[Source, ...] = Field((), description="The texts; every one with a name of its own.")
    conversations: tuple[ConversationSource, ...] = Field(
        (),
        description="The conversations to learn from. `from_corpus: true` are those that are generated from the texts, "
        "which is also what there is where none are listed.",
    )
    conversation_options: ConversationsOptions = ConversationsOptions()
    preferences: tuple[PreferenceSource, ...] = Field(
        (), description="The judged answers to learn from; where none are listed, pairs are made of the conversations."
    )
    preference_options: PreferencesOptions = PreferencesOptions()
    raw_corpus: RawCorpusOptions = RawCorpusOptions()
    corpus: CorpusSection = CorpusSection()
    evaluation_sets: EvaluationSetsSection = EvaluationSetsSection()
    tokenizer: TokenizerSection = TokenizerSection()
    packed_shards: PackedShardsSection = PackedShardsSection()
    base_model: BaseModelSection
    instruction_data: InstructionDataSection = InstructionDataSection()
    sft_model: SftModelSection | None = Field(
        None, description="Left out, or null where it is inherited, there is no such asset. So it is with the next two."
    )
    preference_data: PreferenceDataSection = PreferenceDataSection()
    dpo_model: DpoModelSection | None = None
    adapter_data: AdapterDataSection = AdapterDataSection()
    lora_model: LoraModelSection | None = None
    adapters: tuple[AdapterSection, ...] = Field(
        (), description="Further LoRA adapters on the same parent, each with its own data and gates."
    )
    evaluation: EvaluationSection = EvaluationSection()
    gates: dict[str, tuple[Gate, ...]] = Field(
        description="Asset to the gates it must pass; every asset has one. A listed adapter and its data have those of "
        "`lora_model` and `adapter_data` where none are given for `lora_<name>` and `adapter_data_<name>`."
    )

    @model_validator(mode="after")
    def _domain_of_the_adapter(self) -> Self:
        declared = list(self._domains())
        if len(declared) == 1:
            self._choose_domain(declared[0])

        adapted = {section.domain for _, section in self._adapter_data()}
        if "exclude_domains" not in self.packed_shards.model_fields_set and adapted & {*declared}:
            excluded = tuple(domain for domain in declared if domain in adapted)
            self._fill_in("packed_shards", exclude_domains=excluded)
        return self

    def _choose_domain(self, domain: str) -> None:
        """Give the only domain there is to every adapter that names none."""
        if "domain" not in self.adapter_data.model_fields_set:
            self._fill_in("adapter_data", domain=domain)
        adapters = tuple(
            adapter
            if "domain" in adapter.data.model_fields_set
            else adapter.model_copy(update={"data": adapter.data.model_copy(update={"domain": domain})})
            for adapter in self.adapters
        )
        object.__setattr__(self, "adapters", adapters)

    def contracts(self) -> dict[str, Contract]:
        """The recipe's assets with what each is made from, in an order in which everything comes after that."""
        return contracts_of(self)

    def conversation_files(self) -> tuple[ConversationSource, ...]:
        """The listed conversations that lie in files: all but those that are generated from the corpus."""
        return tuple(source for source in self.conversations if not source.from_corpus)

    def all_sources(self) -> tuple[Origin, ...]:
        """Whatever the recipe reads files of: texts, conversations, judged answers."""
        return (*self.sources, *self.conversation_files(), *self.preferences)

    def functions(self, asset: str) -> dict[tuple[str | int, ...], tuple[str, str]]:
        """The functions of `code` that an asset is made with: their keys in the recipe to decorator and name."""
        rules = self.corpus.rules
        if asset == "raw_corpus":
            named = {("sources", index, "function"): source.function for index, source in enumerate(self.sources)}
            return {key: (SOURCE, name) for key, name in named.items() if name is not None}
        if asset == "corpus" and rules is not None:
            return {("corpus", "rules", "filters", index): (FILTER, name) for index, name in enumerate(rules.filters)}
        return {}

    def asks_the_corpus(self) -> bool:
        """Whether conversations are generated from the corpus."""
        return not self.conversations or any(source.from_corpus for source in self.conversations)

    def tokenizer_section(self) -> TokenizerSection:
        """The section of `tokenizer`: it comes with an imported model, unless it says another origin itself."""
        model = self.base_model
        if self.tokenizer.origin is not None or model.origin is None:
            return self.tokenizer
        return self.tokenizer.model_copy(update={"from_": model.from_, "revision": model.revision, "gguf": model.gguf})

    def tokenizer_of_ids(self) -> Imported | None:
        """The imported tokenizer that the sources of token ids are of; None where there is no such source."""
        section = self.tokenizer_section()
        if section.from_ is None or all(source.input_ids is None for source in self.sources):
            return None
        return Imported(**{"from": section.from_, "revision": section.revision, "gguf": section.gguf})

    def training_sections(self) -> dict[str, TrainingSection]:
        """The models that the recipe trains, with their sections, in the order of the graph."""
        base = self.base_model if self.base_model.is_trained else None
        sections: dict[str, TrainingSection | None] = {"base_model": base}
        sections |= {name: getattr(self, name) for name in ("sft_model", "dpo_model", "lora_model")}
        sections |= {adapter_assets(adapter.name)["lora_model"]: adapter.training() for adapter in self.adapters}
        return {asset: section for asset, section in sections.items() if section is not None}

    def key(self, asset: str) -> tuple[str | int, ...]:
        """The key of an asset's section in a recipe file."""
        name = adapter_of(asset)
        if not name:
            return (asset,)
        index = [adapter.name for adapter in self.adapters].index(name)
        return ("adapters", index, "data") if kind_of(asset) == "adapter_data" else ("adapters", index)

    def _adapter_data(self) -> Iterator[tuple[tuple[str | int, ...], AdapterDataSection]]:
        """The data of every adapter there is, each with its key in the recipe."""
        if self.lora_model is not None:
            yield ("adapter_data",), self.adapter_data
        for index, adapter in enumerate(self.adapters):
            yield ("adapters", index, "data"), adapter.data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            *self._source_problems(),
            *self._function_problems(),
            *self._missing_problems(),
            *self._adapter_problems(),
            *self._gate_problems(),
            *self._task_problems(),
            *self._domain_problems(),
            *self._context_problems(),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _source_problems(self) -> Iterator[str]:
        """Sources with the same name, or with names that give one metric, and token ids of an unknown tokenizer."""
        names: dict[str, str] = {}
        for index, name in enumerate(source.name for source in self.sources):
            metric = source_metric(name)
            if (other := names.get(metric)) is not None:
                clash = (
                    "two sources have one name"
                    if other == name
                    else (f"{other} and {name} would have one metric, {metric}")
                )
                yield f"sources.{index}.name: {clash}; rename one of them"
            names.setdefault(metric, name)
        if self.tokenizer_section().origin is None:
            for index, source in enumerate(self.sources):
                if source.input_ids is not None:
                    yield (
                        f"sources.{index}.input_ids: token ids say nothing without the tokenizer that made them; name "
                        "it as tokenizer.from"
                    )

    def _function_problems(self) -> Iterator[str]:
        """Functions of a file that is not named, and a file of which nothing is used."""
        functions = self.functions("raw_corpus") | self.functions("corpus")
        if self.code is None:
            for key, (_, name) in functions.items():
                where = ".".join(map(str, key))
                yield f"{where}: {name} is a function of the recipe's own code; name its file in `code`"
        elif not functions:
            yield "code: nothing of it is used; name a `function` of a source or `corpus.rules.filters`, or write null"

    def _missing_problems(self) -> Iterator[str]:
        """Sections that need something which the recipe has not got."""
        if self.sources:
            return
        if self.tokenizer_section().origin is None:
            yield "sources: a tokenizer is trained on texts, and none are listed; add `sources`, or `base_model.from`"
        if self.base_model.is_trained:
            yield "sources: base_model.steps trains on texts, and none are listed; add `sources`, or leave `steps` out"
        if self.sft_model is not None and self.sft_model.replay > 0:
            yield "sft_model.replay: it repeats texts of the corpus; add `sources`, or write 0"
        if any(source.from_corpus for source in self.conversations):
            yield "conversations: from_corpus needs a corpus; add `sources`"

        learners = [name for name in ("sft_model", "lora_model") if getattr(self, name) is not None]
        learners += [f"adapters.{index}" for index, _ in enumerate(self.adapters)]
        if not self.conversations:
            yield from (f"{name}: it has nothing to learn from; add `conversations`, or `sources`" for name in learners)
        if self.dpo_model is not None and not self.preferences:
            yield "dpo_model: it has nothing to learn from; add `preferences`, or `sources` to make pairs of"

    def _adapter_problems(self) -> Iterator[str]:
        names: set[str] = set()
        for index, adapter in enumerate(self.adapters):
            if adapter.name in names:
                yield f"adapters.{index}.name: there is an adapter {adapter.name} already; choose another name"
            names.add(adapter.name)
            if kind_of(f"lora_{adapter.name}") == f"lora_{adapter.name}":
                yield f"adapters.{index}.name: lora_{adapter.name} is an asset of its own; choose another name"

    def _gate_problems(self) -> Iterator[str]:
        contracts = self.contracts()
        for asset, gates in self.gates.items():
            if asset not in METRICS and asset not in contracts:
                assets = ", ".join(dict.fromkeys([*METRICS, *contracts]))
                yield f"gates.{asset}: there is no such asset; the assets are {assets}"
                continue
            metrics = self.metrics(asset)
            for index, gate in enumerate(gates):
                where = f"gates.{asset}.{index}"
                if gate.metric not in metrics:
                    close = difflib.get_close_matches(gate.metric, metrics, n=1)
                    yield (
                        f"{where}.metric: no evaluation of {asset} produces the metric {gate.metric}; "
                        + (f"did you mean {close[0]}?" if close else f"it produces {', '.join(metrics)}")
                    )
                elif gate.metric in (other.metric for other in gates[:index]):
                    yield f"{where}.metric: {asset} has a gate on {gate.metric} already; one metric has one gate"
                if gate.champion_margin is not None:
                    problems = self._champion_problems(asset, gate)
                    yield from (f"{where}.champion_margin: {problem}" for problem in problems)

        missing = [asset for asset in contracts if not self.gates_of(asset)]
        if missing:
            yield f"gates: every asset needs at least one gate; none is given for {', '.join(missing)}"

    def _champion_problems(self, asset: str, gate: Gate) -> Iterator[str]:
        tasks, metrics = self.evaluation_sets.task_metrics(), self.metrics(asset)
        if not gate.better:
            yield "with `==` nothing is better or worse than the champion; use >= or <=, or leave the margin out"
        if gate.metric in metrics and not comparable(gate.metric, tasks):
            comparables = ", ".join(metric for metric in metrics if comparable(metric, tasks))
            yield (
                f"{gate.metric} is not measured over the same items for every version, so it cannot be compared with "
                f"the champion's; comparable are {comparables or 'no metrics'}"
            )

    def _task_problems(self) -> Iterator[str]:
        names: set[str] = set()
        metrics: dict[str, str] = {}
        sources = [source.name for source in self.sources]
        models = [asset for asset in METRICS if asset.endswith("_model")]
        fixed = {metric for asset in models for metric in metrics_of(asset, sources, {}, is_mixed=True)}
        for index, task in enumerate(self.evaluation_sets.tasks):
            where = f"evaluation_sets.tasks.{index}"
            if task.name in names:
                yield f"{where}.name: there is a task {task.name} already; write all its metrics in one place"
            names.add(task.name)
            for metric in task.metrics:
                if metric in fixed:
                    yield f"{where}.metrics.{metric}: models have a metric of this name already; choose another one"
                if metrics.setdefault(metric, task.name) != task.name:
                    yield f"{where}.metrics.{metric}: the task {metrics[metric]} gives a metric of this name already"

    def gates_of(self, asset: str) -> tuple[Gate, ...]:
        """The gates of an asset; a listed adapter without gates of its own has those of its kind."""
        return self.gates.get(asset) or self.gates.get(kind_of(asset), ())

    def _domain_problems(self) -> Iterator[str]:
        declared = self._domains()
        declaration = f"the sources declare {', '.join(declared) or 'no domains'}"
        if self.corpus.domains:
            yield "corpus.domains: domains belong to a source; write them as its key `domains`"
        if self.packed_shards.weights:
            yield "packed_shards.weights: weights belong to a source; write them as its key `weight`"
        if self.evaluation.packing_contexts:
            yield "evaluation.packing_contexts: write them as `packed_shards.contexts`"
        if self.base_model.weights:
            yield "base_model.weights: weights belong to a source; write them as its key `weight`"
        names = [source.name for source in self.sources]
        for name in sorted(set(self.corpus.rules.sources if self.corpus.rules else ()) - set(names)):
            yield f"corpus.rules.sources: there is no source {name!r}; the sources are {', '.join(names)}"
        for name in sorted(set(self.tokenizer.weights) - set(names)):
            yield f"tokenizer.weights: there is no source {name!r}; the sources are {', '.join(names)}"
        for number, phase in enumerate(self.base_model.curriculum):
            for name in sorted(set(phase.weights) - set(names)):
                yield (
                    f"base_model.curriculum[{number}].weights: there is no source {name!r}; the sources are "
                    f"{', '.join(names)}"
                )
            yield from self._mixture_problems(f"curriculum[{number}].mixture", phase.mixture)
        yield from self._mixture_problems("mixture", self.base_model.mixture)
        if GENERAL in declared:
            yield f"sources: no domain can be called {GENERAL}: that is what belongs to none"
        for key, section in self._adapter_data():
            dotted = ".".join(map(str, key))
            if "domain" not in section.model_fields_set and len(declared) > 1:
                yield f"{dotted}: choose the adapter's `domain`; {declaration}"
            if section.domain not in (GENERAL, *declared):
                yield f"{dotted}.domain: there is no domain {section.domain!r}; {declaration}"
        for domain in self.packed_shards.exclude_domains:
            if domain not in declared:
                yield f"packed_shards.exclude_domains: there is no domain {domain!r}; {declaration}"

    def _context_problems(self) -> Iterator[str]:
        positions = self.base_model.architecture.get("max_position_embeddings")
        if isinstance(positions, int):
            yield from self.too_long("max_position_embeddings", positions)
        measured = self.packed_shards.contexts
        missing = sorted({phase.context for phase in self.base_model.curriculum} - set(measured))
        if missing:
            rows = ", ".join(map(str, missing))
            yield (
                f"packed_shards.contexts: the curriculum has rows of {rows} tokens, whose packing would not be "
                f"measured; write {sorted({*measured, *missing})}"
            )

    def _mixture_problems(self, key: str, mixture: dict[str, float]) -> Iterator[str]:
        """Sources that a mixture does not name, names that are no source's, and weights beside it."""
        if not mixture:
            return
        for source in self.sources:
            if source.name not in mixture:
                yield f"base_model.{key}: it gives no share to the source {source.name}; write 0 where it is not read"
            if key == "mixture" and source.weight != 1:
                yield f"base_model.{key}: the source {source.name} has a weight too; leave one of them out"
        for name in sorted(set(mixture) - {source.name for source in self.sources}):
            yield f"base_model.{key}: there is no source {name!r}"

    def too_long(self, field: str, positions: int) -> Iterator[str]:
        """The contexts that an architecture cannot hold, one message each.

        Args:
            field: Field of the architecture that says how many positions it has.
            positions: Their number.
        """
        curriculum = max((phase.context for phase in self.base_model.curriculum), default=0)
        tuned = {name: getattr(self, name) for name in ("sft_model", "dpo_model", "lora_model")}
        tuned |= {f"adapters.{index}": adapter for index, adapter in enumerate(self.adapters)}
        for name, context in (
            ("base_model.curriculum", curriculum),
            *((f"{name}.context", section.context) for name, section in tuned.items() if section is not None),
            ("evaluation.context", self.evaluation.context),
        ):
            if context > positions:
                yield (
                    f"{name}: a context of {context} tokens is longer than base_model.architecture.{field}, {positions}"
                )

    def _domains(self) -> dict[str, tuple[str, ...]]:
        """Every declared domain and its globs of `source/path`."""
        domains: dict[str, tuple[str, ...]] = {}
        for source in self.sources:
            for domain, globs in source.domains.items():
                domains[domain] = domains.get(domain, ()) + tuple(f"{source.name}/{glob}" for glob in globs)
        return domains

    def _fill_in(self, name: str, **values: object) -> None:
        # The model is frozen. A default that follows from other fields is set here, before anybody has the model.
        object.__setattr__(self, name, getattr(self, name).model_copy(update=values))

    def metrics(self, asset: str) -> dict[str, str]:
        """The metrics that an asset's evaluation produces, with what each means."""
        sources = [source.name for source in self.sources]
        # Whether an imported model has a chat template is not known yet; a gate on what is then not measured fails.
        is_chat = asset == "base_model" and self.base_model.origin is not None
        is_mixed = asset == "base_model" and self.base_model.is_trained and len(sources) > 1
        return metrics_of(kind_of(asset), sources, self.evaluation_sets.task_metrics(), is_chat, is_mixed)

    def section(self, asset: str) -> Spec:
        """The section that decides an asset's content."""
        if asset == "raw_corpus":
            # Later stages use domains and weights; changing them must not gather the texts again.
            plain = tuple(source.model_copy(update={"domains": {}, "weight": 1.0}) for source in self.sources)
            tokenizer = self.tokenizer_of_ids()
            return RawCorpusSection(sources=plain, tokenizer=tokenizer, **self.raw_corpus.model_dump())
        if asset == "conversations":
            return ConversationsSection(sources=self.conversation_files(), **self.conversation_options.model_dump())
        if asset == "preferences":
            return PreferencesSection(sources=self.preferences, **self.preference_options.model_dump())
        if asset == "tokenizer":
            return self.tokenizer_section()
        if asset == "corpus":
            return self.corpus.model_copy(update={"domains": self._domains()})
        if asset == "packed_shards":
            # The shards hold every token once, whatever the weights. Versions of before named them all the same.
            return self.packed_shards.model_copy(update={"weights": {source.name: 1.0 for source in self.sources}})
        if asset == "base_model" and self.base_model.is_trained:
            weights = {source.name: source.weight for source in self.sources if source.weight != 1}
            return self.base_model.model_copy(update={"weights": weights})
        name = adapter_of(asset)
        adapter = next((adapter for adapter in self.adapters if name and adapter.name == name), None)
        if adapter is not None:
            return adapter.data if kind_of(asset) == "adapter_data" else adapter.training()
        section = getattr(self, asset)
        assert isinstance(section, Spec), f"the recipe has no {asset}"
        return section
