"""What an exported folder says is what the training engine's own model said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration import training_jobs as jobs
from training.evaluation.exported import Answer, answer, change_cosine, logprob_error, parent_ratio, read_probe
from training.evaluation.models import load
from training.job.context import InputArtifact
from training.specs.artifacts import Manifest
from training.specs.evidence import Estimate
from training.specs.execution import Execution
from training.specs.probe import PROBE_FILE, Probe
from training.store.store import Store

ASSETS = ("base_model", "dpo_model", "lora_model")
LAYOUTS = [
    ("fp32", 1, 0),
    ("bf16", 1, 0),
    ("fp8", 1, 0),
    ("bf16", 2, 1),
    ("bf16", 1, 2),
    ("bf16", 2, 3),
    ("fp32", 2, 3),
]
QUICK = (("base_model", "fp8", 1, 0), ("dpo_model", "bf16", 1, 0), ("lora_model", "bf16", 2, 3))
# fp32: two orders of the same sums. bf16 and fp8: what their roundings amount to on two small and overconfident layers;
# another model's weights differ by more than 3 nats here.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.03, "fp8": 0.3}
LEARN = {
    "steps": 40,
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
    "checkpoints": {"every_steps": 1000, "keep": 1},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return jobs.build_all(tmp_path_factory.mktemp("built"), LEARN)


def promoted(store: Store, asset: str) -> Manifest:
    pointer = store.promotion(asset)
    assert pointer is not None
    return store.manifest(asset, pointer.version)


def probe_of(folder: Path) -> Probe:
    probe = read_probe(folder)
    assert isinstance(probe, Probe), probe
    return probe


def error_of(folder: Path, manifest: Manifest) -> float:
    found = logprob_error(load(InputArtifact(folder, manifest), torch.device("cpu")), probe_of(folder))
    assert isinstance(found, Estimate), found
    return found.value


@pytest.mark.parametrize("asset", list(jobs.INPUTS))
def test_every_stage_exports_what_it_trained(built: Store, asset: str) -> None:
    manifest = promoted(built, asset)
    folder = built.folder(asset, manifest.version)
    probe = Probe.model_validate_json((folder / PROBE_FILE).read_bytes())
    assert 100 <= sum(map(len, probe.rows)) <= 256
    assert max(map(len, probe.rows)) <= 64, "the training's context"
    assert error_of(folder, manifest) < TOLERANCE["fp32"]


@pytest.mark.parametrize(
    ("asset", "precision", "processes", "stage"),
    [
        pytest.param(asset, *layout, marks=[] if (asset, *layout) in QUICK else pytest.mark.slow)
        for asset in ASSETS
        for layout in LAYOUTS
    ],
)
def test_under_every_precision_and_layout(
    built: Store, tmp_path: Path, asset: str, precision: str, processes: int, stage: int
) -> None:
    execution = Execution(device="cpu", threads=1, processes=processes, zero_stage=stage, micro_batch_tokens=128)
    job = jobs.make_job(built, asset, tmp_path / "attempt", LEARN | {"precision": precision}, execution)
    done = jobs.run(job, processes)
    assert done.code == 0, done.output
    manifest = jobs.published(built, tmp_path / "attempt")
    assert error_of(built.folder(asset, manifest.version), manifest) < TOLERANCE[precision]


def said_by(folder: Path, manifest: Manifest, probe: Probe) -> Answer:
    found = answer(load(InputArtifact(folder, manifest), torch.device("cpu")), probe)
    assert isinstance(found, Answer), found
    return found


PARENTS = {"sft_model": "base_model", "dpo_model": "sft_model", "lora_model": "dpo_model"}


@pytest.mark.parametrize(
    ("asset", "precision", "rate"),
    [("dpo_model", "bf16", 5e-7), ("lora_model", "bf16", 1e-2), pytest.param("sft_model", "fp8", 1e-6)],
)
def test_the_change_that_was_trained_is_saved(
    built: Store, tmp_path: Path, asset: str, precision: str, rate: float
) -> None:
    section = {"precision": precision, "optimizer": {"learning_rate": rate, "warmup_steps": 2}}
    done = jobs.run(jobs.make_job(built, asset, tmp_path / "attempt", section))
    assert done.code == 0, done.output
    manifest, before = jobs.published(built, tmp_path / "attempt"), promoted(built, PARENTS[asset])
    folder = built.folder(asset, manifest.version)
    probe = probe_of(folder)

    saved = said_by(folder, manifest, probe)
    parent = said_by(built.folder(before.asset, before.version), before, probe)

    cosine, ratio = change_cosine(probe, saved, parent), parent_ratio(probe, saved, parent)
    assert isinstance(cosine, Estimate), cosine
    assert isinstance(ratio, Estimate), ratio
    assert cosine.value >= 0.98
    assert ratio.value <= 0.5
    small = rate < 1e-5
    kinds = {tensor.dtype for tensor in load_file(folder / "model" / "model.safetensors").values()}
    assert kinds == {torch.float32} or not small
    log = " ".join(str(event) for event in done.events("log"))
    card = (folder / "model" / "README.md").read_text()
    for text in (log, card):
        assert ("float32: in bfloat16 the cosine of the saved and the trained change would be" in text) or not small


def copied(store: Store, asset: str, folder: Path) -> Manifest:
    manifest = promoted(store, asset)
    shutil.copytree(store.folder(asset, manifest.version), folder)
    return manifest


@pytest.mark.parametrize(
    ("asset", "other"), [("lora_model", "dpo_model"), ("dpo_model", "sft_model"), ("sft_model", "base_model")]
)
def test_another_models_weights_differ(built: Store, tmp_path: Path, asset: str, other: str) -> None:
    """An adapter that was not merged is the case of lora_model: its parent's weights."""
    manifest = copied(built, asset, tmp_path / "copy")
    parent = promoted(built, other)
    shutil.copyfile(
        built.folder(other, parent.version) / "model" / "model.safetensors",
        tmp_path / "copy" / "model" / "model.safetensors",
    )
    assert error_of(tmp_path / "copy", manifest) > 0.5


def test_a_bad_cast_and_a_wrong_setting_differ(built: Store, tmp_path: Path) -> None:
    manifest = copied(built, "sft_model", tmp_path / "copy")
    weights = tmp_path / "copy" / "model" / "model.safetensors"
    right = load_file(weights)
    save_file({name: value.to(torch.float8_e5m2).float() for name, value in right.items()}, weights, {"format": "pt"})
    rounded = error_of(tmp_path / "copy", manifest)
    save_file(right, weights, {"format": "pt"})
    config = tmp_path / "copy" / "model" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}))
    turned = error_of(tmp_path / "copy", manifest)
    assert min(rounded, turned) > 0.05


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "holds no probe.json"),
        ("{", "malformed"),
        ('{"rows": [], "logprobs": []}', "malformed"),
        ('{"rows": [[1, 2]], "logprobs": [[]]}', "one log-probability per token"),
        ('{"rows": [[1, 2]], "logprobs": [[NaN]]}', "malformed"),
        ('{"rows": [[1, 2]], "logprobs": [[0.5]]}', "positive"),
        ('{"rows": [[1, 99999]], "logprobs": [[-1.0]]}', "tokens that the model does not have"),
    ],
)
def test_a_bad_probe_gives_a_reason_and_no_number(
    built: Store, tmp_path: Path, content: str | None, reason: str
) -> None:
    manifest = copied(built, "base_model", tmp_path / "copy")
    path = tmp_path / "copy" / PROBE_FILE
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    found: Probe | Estimate | str = read_probe(tmp_path / "copy")
    if isinstance(found, Probe):
        found = logprob_error(load(InputArtifact(tmp_path / "copy", manifest), torch.device("cpu")), found)
    assert isinstance(found, str)
    assert reason in found
