"""Resume in FP8, and what only a GPU can show: resume and a shortage of memory there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.jobs.launcher import open_launcher, run_job
from tests.chaos.trainings import Layout, Trainings, kill_once, published, read_job
from tests.integration import training_jobs as jobs
from tests.promises import Promise
from training.specs.execution import Launcher
from training.store.store import Store

# A row of 1024 tokens takes about 170 MB in these wide layers in bf16: 64 of them do not fit beside the rest.
WIDE = {
    "steps": 3,
    "batch_tokens": 65536,
    "curriculum": [{"context": 1024, "share": 1.0}],
    "precision": "bf16",
    "checkpoints": {"every_steps": 2},
    "architecture": jobs.ARCHITECTURE | {"intermediate_size": 8192, "max_position_embeddings": 1024},
}
ROOM = 4_000_000_000
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


class GpuTrainings(Trainings):
    """The same jobs, on the machine's first GPU."""

    def job(self, asset: str, layout: Layout, section: dict[str, Any] | None = None, micro: int = 128) -> Path:
        path = super().job(asset, layout, section, micro)
        job = read_job(path)
        execution = job.execution.model_copy(update={"device": "cuda"})
        path.write_text(job.model_copy(update={"execution": execution}).model_dump_json())
        return path


@pytest.fixture(scope="module")
def store_and_work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    work = tmp_path_factory.mktemp("trainings")
    return jobs.build_all(work), work


def resume(promise: Promise, trainings: Trainings, asset: str, layouts: list[Layout]) -> None:
    """Kill a job soon after a checkpoint and start it again; it ends as one that was never killed."""
    for trial in promise.trials(quick=1, full=8):
        with trial:
            layout = trial.random.choice(layouts)
            whole, job = trainings.whole(asset, layout), trainings.job(asset, layout)
            assert kill_once(job, layout[0], published(trial.random.choice((2, 4))), trial.random.random() * 0.01)
            done = jobs.run(job, layout[0])
            assert done.code == 0, done.output
            told = [event["message"] for event in done.events("log")]
            assert any("resumed from the checkpoint" in message for message in told), told
            assert trainings.result(job, asset) == whole, f"under {layout}"


@pytest.mark.promise(
    "{asset} in FP8 (emulated), killed after a checkpoint and started again, ends in the same bytes "
    "(1 and 2 processes, ZeRO 0 to 3)"
)
@pytest.mark.parametrize("asset", list(jobs.INPUTS))
def test_fp8(promise: Promise, store_and_work: tuple[Store, Path], asset: str) -> None:
    layouts: list[Layout] = [(processes, stage, "fp8") for processes in (1, 2) for stage in range(4)]
    resume(promise, Trainings(*store_and_work), asset, layouts)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.promise(
    "{asset} in {precision} on a GPU, killed after a checkpoint and started again, ends in the same bytes (ZeRO 0 to 3)"
)
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("asset", list(jobs.INPUTS))
def test_gpu(promise: Promise, store_and_work: tuple[Store, Path], asset: str, precision: str) -> None:
    resume(promise, GpuTrainings(*store_and_work), asset, [(1, stage, precision) for stage in range(4)])


@needs_gpu
@pytest.mark.gpu
@pytest.mark.promise("Out of a GPU's memory: the job starts again with half the micro-batch, until it fits")
def test_a_shortage_of_gpu_memory(promise: Promise, store_and_work: tuple[Store, Path]) -> None:
    on_gpu = GpuTrainings(*store_and_work)
    for trial in promise.trials(quick=1, full=3):
        with trial:
            free, _ = torch.cuda.mem_get_info()
            ballast = torch.empty(free - ROOM, dtype=torch.uint8, device="cuda")
            job, said = on_gpu.job("base_model", (1, 0, "bf16"), WIDE, micro=65536), list[str]()
            run_job(
                open_launcher(Launcher()),
                read_job(job),
                lambda events, said=said: said.extend(event["message"] for event in events if event["kind"] == "log"),
                forward_output=False,
            )
            del ballast
            torch.cuda.empty_cache()
            assert any("out of memory at a micro-batch of 65536 tokens" in message for message in said), said
            assert read_job(job).execution.micro_batch_tokens < 65536
