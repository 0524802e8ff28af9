"""The recipe: one file that decides what is trained, corpus to adapter."""

from __future__ import annotations

from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from training.specs.base import Spec
from training.specs.base_model import BaseModelSection
from training.specs.corpus import CorpusSection
from training.specs.evaluation import EvaluationSection
from training.specs.evaluation_sets import EvaluationSetsSection
from training.specs.gates import Gate
from training.specs.metrics import METRICS
from training.specs.packed_shards import PackedShardsSection
from training.specs.post_training import DpoModelSection, LoraModelSection, SftModelSection
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
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"no time zone is called {value!r}; an example is Europe/Berlin") from error
        return value


class Recipe(Spec):
    """Everything that decides what is trained, and what it must reach to be promoted."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    description: str = ""
    seed: int = Field(0, ge=0)
    nightly: Nightly = Nightly()
    launcher: str = Field("local", description="Entry of launchers.yaml; never part of identity.")
    sources: tuple[Source, ...] = Field(min_length=1)
    raw_corpus: RawCorpusOptions = RawCorpusOptions()
    corpus: CorpusSection = CorpusSection()
    evaluation_sets: EvaluationSetsSection = EvaluationSetsSection()
    tokenizer: TokenizerSection = TokenizerSection()
    packed_shards: PackedShardsSection = PackedShardsSection()
    base_model: BaseModelSection
    instruction_data: InstructionDataSection = InstructionDataSection()
    sft_model: SftModelSection
    preference_data: PreferenceDataSection = PreferenceDataSection()
    dpo_model: DpoModelSection
    adapter_data: AdapterDataSection
    lora_model: LoraModelSection
    evaluation: EvaluationSection = EvaluationSection()
    gates: dict[str, tuple[Gate, ...]]

    @model_validator(mode="after")
    def _gates_are_complete(self) -> Self:
        for asset, gates in self.gates.items():
            if asset not in METRICS:
                raise ValueError(f"gates.{asset}: there is no such asset; the assets are {', '.join(METRICS)}")
            for gate in gates:
                if gate.metric not in METRICS[asset]:
                    raise ValueError(f"gates.{asset}: no evaluation of {asset} produces the metric {gate.metric}; it "
                                     f"produces {', '.join(METRICS[asset])}")
        missing = [asset for asset in METRICS if not self.gates.get(asset)]
        if missing:
            raise ValueError(f"gates: every asset needs at least one gate; none is given for {', '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"sources: two sources have one name: {', '.join(names)}")
        for domain in (self.adapter_data.domain, *self.packed_shards.exclude_domains):
            if domain != "general" and domain not in self.corpus.domains:
                raise ValueError(f"domain {domain!r} is not among corpus.domains: {', '.join(self.corpus.domains)}")
        longest = max(phase.context for phase in self.base_model.curriculum)
        positions = self.base_model.architecture.get("max_position_embeddings", longest)
        if positions < longest:
            raise ValueError(f"base_model.architecture.max_position_embeddings {positions} is shorter than the longest "
                             f"context of the curriculum, {longest}")
        return self

    def section(self, asset: str) -> Spec:
        """The section that decides an asset's content."""
        if asset == "raw_corpus":
            return RawCorpusSection(sources=self.sources, **self.raw_corpus.model_dump())
        if asset == "packed_shards":
            weights = {source.name: source.weight for source in self.sources}
            return self.packed_shards.model_copy(update={"weights": weights})
        section = getattr(self, asset)
        assert isinstance(section, Spec)
        return section
