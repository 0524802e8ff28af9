"""The plan of one asset: its inputs, its identity, and whether a version with that identity is there already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.gates.terms import SUITE, evaluation_section, terms
from pipeline.graph import kind_named, stage_module
from pipeline.paths import ROOT, home
from pipeline.recipes.loader import LoadedRecipe
from training.data.sources.origins import origin_state
from training.data.sources.source_state import source_state, with_commits
from training.errors import InputRefused, StoreError
from training.job.fingerprint import fingerprint
from training.specs.artifacts import Manifest, content_digest
from training.specs.base import Spec, digest_of
from training.specs.contracts import ARTIFACT
from training.specs.conversations import ConversationsSection, PreferencesSection
from training.specs.execution import Execution
from training.specs.imports import Imported
from training.specs.job import EVALUATION_SUFFIX, FileInput, Input, Job
from training.specs.kinds import kind_of
from training.specs.raw_corpus import RawCorpusSection
from training.store.store import Store, file_entry
from training.store.validity import Terms


@dataclass(frozen=True)
class Plan:
    """What materializing an asset, or measuring a version of it, would run.

    Attributes:
        asset: The asset, or `<asset>.evaluation`.
        existing: The newest published version with this identity, or one that was adopted under it.
        same_but_code: Where there is none: a version that was made from the same recipe, inputs, files, sources and
            seed by other code. The promoted one comes first, then the newest.
    """

    asset: str
    stage: str
    recipe: str
    identity: str
    fingerprint: str
    seed: int
    section: dict[str, object]
    inputs: dict[str, Input]
    files: dict[str, FileInput]
    existing: Manifest | None
    same_but_code: Manifest | None = None

    def attempt(self, work: Path) -> Path:
        """The attempt's folder; it follows from the identity, so a restart finds it."""
        return work / self.recipe / self.asset / self.identity[:16]

    def job(self, store: Store, work: Path, execution: Execution, labels: dict[str, str]) -> Job:
        """The job that would build it."""
        return Job(
            stage=self.stage,
            asset=self.asset,
            recipe=self.recipe,
            identity=self.identity,
            fingerprint=self.fingerprint,
            seed=self.seed,
            section=self.section,
            inputs=self.inputs,
            files=self.files,
            store=store.root,
            cache=str(store.cache) if store.cache else None,
            attempt=str(self.attempt(work)),
            execution=execution,
            labels=labels,
        )


def code_version(asset: str, loaded: LoadedRecipe) -> str:
    """Digest of an asset's recipe section and code, for Dagster's staleness."""
    code = fingerprint(stage_module(loaded.graph[asset].kind.stage))
    return digest_of([_identity_section(asset, loaded.recipe.section(asset)), loaded.recipe.seed, code])[:12]


def plan_asset(asset: str, loaded: LoadedRecipe, store: Store) -> Plan:
    """Plan the build of an asset on the promoted versions of its inputs.

    Raises:
        InputRefused: An input is not promoted; the message names the gate that refused it.
        RecipeError: A file that the recipe names is missing.
        SourceError: A source cannot be read.
    """
    return _plan(asset, loaded, store, lambda name: promoted_input(name, loaded, store))


def plan_adoption(asset: str, loaded: LoadedRecipe, store: Store) -> Plan:
    """As `plan_asset`, on promoted versions that have still to be judged on today's terms.

    New code is often new code of the evaluators too. An adoption says nothing about how good a version is, so it need
    not wait until everything upstream was measured again.

    Raises:
        InputRefused: An input is not promoted, or its certificate does not hold.
        RecipeError: A file that the recipe names is missing.
    """
    return _plan(asset, loaded, store, lambda name: _promoted(name, store))


def _plan(asset: str, loaded: LoadedRecipe, store: Store, promoted: Callable[[str], Input]) -> Plan:
    node = loaded.graph[asset]
    # A job calls its inputs by their kinds: to the stage, one adapter's data are like another's.
    inputs = {kind_of(name): promoted(name) for name in node.inputs}
    parts = {kind_of(name): part for name, part in node.inputs.items()}
    files = {
        field: FileInput(path=str(path), sha256=file_entry(path).sha256) for field, path in loaded.files(asset).items()
    }
    # A name that can move is looked up once: the identity and the job hold the commit.
    section = with_commits(loaded.recipe.section(asset))

    # Only the part of an input that the stage reads decides: other evaluation sets must not retrain a model.
    without_code: dict[str, object] = {
        "asset": asset,
        "section": _identity_section(asset, section),
        "seed": loaded.recipe.seed,
        "inputs": {name: _part_digest(store, inputs[name], part) for name, part in parts.items()},
        "files": {field: file.sha256 for field, file in files.items()},
        "sources": _outside_state(section),
    }

    code = fingerprint(stage_module(node.kind.stage))
    identity = digest_of(without_code | {"code": code})
    existing = store.find(asset, identity)
    if existing is not None and existing.identity != identity and not _is_same_but_code(existing, without_code):
        raise StoreError(
            f"{asset} {existing.version} was adopted as {identity[:12]}, and more than its code differs; delete "
            f"{store.uri(asset, existing.version)} or its records in {store.recipe}/{asset}/adoptions"
        )
    return Plan(
        asset,
        node.kind.stage,
        loaded.recipe.name,
        identity,
        code,
        loaded.recipe.seed,
        section.model_dump(mode="json"),
        inputs,
        files,
        existing,
        None if existing else _same_but_code(asset, store, without_code),
    )


def _same_but_code(asset: str, store: Store, without_code: dict[str, object]) -> Manifest | None:
    pointer, versions = store.promotion(asset), store.versions(asset)
    promoted = [pointer.version] if pointer is not None and pointer.version in versions else []
    for version in dict.fromkeys([*promoted, *reversed(versions)]):
        manifest = store.manifest(asset, version)
        if _is_same_but_code(manifest, without_code):
            return manifest
    return None


def _is_same_but_code(manifest: Manifest, without_code: dict[str, object]) -> bool:
    """Whether a version's identity is the one that would be asked for today if its code were today's."""
    return manifest.identity == digest_of(without_code | {"code": manifest.fingerprint})


def plan_evaluation(manifest: Manifest, loaded: LoadedRecipe, store: Store, *, is_past_version: bool = False) -> Plan:
    """Plan the measurement of one version on today's evaluation sets, beside the versions that it was made from.

    A model is compared with the parent that it was really made from. Beside another one, what it learnt and what it
    forgot would be figures about two strangers. The version that the recipe asks for today has the promoted version as
    its parent. A past version, such as the champion, keeps its own parent, promoted or not: the evaluation job verifies
    the parent's bytes, and trains nothing on it.

    Args:
        is_past_version: The version need not be made from what is promoted now.

    Raises:
        InputRefused: Something that it is judged with is not promoted.
    """
    node = loaded.graph[manifest.asset]
    inputs = {name: _reference(name, manifest, loaded, store, is_past_version) for name in node.judged_with}
    inputs[ARTIFACT] = Input(asset=manifest.asset, version=manifest.version, digest=manifest.digest, promoted=False)

    code = fingerprint(stage_module(node.kind.evaluator))
    section = evaluation_section(manifest.asset, loaded)
    asset = manifest.asset + EVALUATION_SUFFIX
    # The evidence belongs to one version and not to equal bytes: its curves and its gates' names are that version's.
    identity = digest_of(
        {
            "asset": asset,
            "section": section,
            "code": code,
            "version": manifest.version,
            "inputs": {name: used.digest for name, used in inputs.items()},
        }
    )

    return Plan(
        asset,
        node.kind.evaluator,
        loaded.recipe.name,
        identity,
        code,
        loaded.recipe.seed,
        section,
        inputs,
        {},
        store.find(asset, identity),
    )


def promoted_input(asset: str, loaded: LoadedRecipe, store: Store) -> Input:
    """The promoted version of an asset as a job's input.

    Raises:
        InputRefused: None is promoted, or its certificate does not hold, or not on today's terms.
    """
    return _promoted(asset, store, lambda: terms(asset, loaded, store))


def _promoted(asset: str, store: Store, today: Callable[[], Terms] | None = None) -> Input:
    """The promoted version of an asset as an input.

    Args:
        today: The terms that it must have been judged on; any by default.
    """
    pointer = store.promotion(asset)
    if pointer is None:
        raise InputRefused(store.explain_unpromoted(asset))

    certificate = store.require_promoted(asset, pointer.version, pointer.digest, terms=today)
    return Input(asset=asset, version=pointer.version, digest=pointer.digest, certificate=certificate.digest)


def _reference(name: str, manifest: Manifest, loaded: LoadedRecipe, store: Store, is_past_version: bool) -> Input:
    """What a version is judged with: what it was made from; of all else, and of the sets, the promoted version."""
    made_from = manifest.inputs.get(name)
    if name == SUITE or made_from is None:
        return promoted_input(name, loaded, store)
    if is_past_version:
        return Input(asset=made_from.asset, version=made_from.version, digest=made_from.digest, promoted=False)

    promoted = promoted_input(name, loaded, store)
    if promoted.digest != made_from.digest:
        raise InputRefused(
            f"{manifest.asset} {manifest.version} was made from {name} {made_from.version}, and "
            f"{promoted.version} is promoted now: materialize {manifest.asset} to make it from that one"
        )
    return promoted


def _part_digest(store: Store, used: Input, part: str | None) -> str:
    return used.digest if part is None else content_digest(store.manifest(used.asset, used.version).files, part)


def _outside_state(section: Spec) -> str | None:
    """The state of what a stage reads from outside of the store: files of texts or rows, an imported model."""
    if isinstance(section, ConversationsSection):
        return source_state(section.files, ROOT)
    if isinstance(section, RawCorpusSection) and section.tokenizer is not None:
        return digest_of([source_state(section.sources, ROOT), _outside_state(section.tokenizer)])
    if isinstance(section, RawCorpusSection | PreferencesSection):
        return source_state(section.sources, ROOT)
    if isinstance(section, Imported) and section.origin is not None:
        return origin_state(section.origin, home() / "cache" / "origins.json", ROOT)
    return None


def _identity_section(asset: str, section: Spec) -> dict[str, object]:
    fields = section.identity_fields()
    return {name: value for name, value in fields.items() if name not in kind_named(asset).files}
