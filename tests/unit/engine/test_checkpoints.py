"""Checkpoints: whole or invisible."""

from pathlib import Path

import pytest

from training.engine.checkpoints import CheckpointFolder
from training.errors import StoreError
from training.specs.optimization import Checkpoints

LAYOUT: dict[str, int | str] = {"processes": 1, "zero_stage": 0, "device": "cpu", "precision": "fp32"}


def folder(
    root: Path,
    log: list[str],
    identity: str = "one",
    layout: dict[str, int | str] | None = None,
    reach: int = 0,
    **rule: int,
) -> CheckpointFolder:
    return CheckpointFolder(root, identity, layout or LAYOUT, Checkpoints.model_validate(rule), log.append, reach)


def write(checkpoints: CheckpointFolder, step: int, loss: float = 1.0) -> Path:
    staged = checkpoints.staging(step)
    (staged / "states").mkdir(parents=True)
    (staged / "states" / "rank0.pt").write_bytes(b"weights of step %d" % step)
    (staged / "latest").write_text(f"global_step{step}")
    checkpoints.publish(step, loss)
    checkpoints.settle()
    return staged.with_name(f"step-{step:08d}")


def test_newest_is_found_and_old_ones_are_pruned(tmp_path: Path) -> None:
    log: list[str] = []
    checkpoints = folder(tmp_path, log)
    for step in (5, 10, 15):
        write(checkpoints, step)
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, found.folder.name) == (15, "step-00000015")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    assert log == []


def test_half_written_checkpoint_is_invisible_and_cleared(tmp_path: Path) -> None:
    log: list[str] = []
    checkpoints = folder(tmp_path, log)
    write(checkpoints, 5)
    staged = checkpoints.staging(10)
    staged.mkdir()
    (staged / "half").write_bytes(b"x")
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 5
    checkpoints.clear_staging()
    assert not staged.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "added", "linked", "manifest", "no manifest"])
def test_damaged_checkpoint_is_skipped_with_its_reason(tmp_path: Path, damage: str) -> None:
    log: list[str] = []
    checkpoints = folder(tmp_path, log)
    write(checkpoints, 5)
    newest = write(checkpoints, 10)
    states = newest / "states" / "rank0.pt"
    data = states.read_bytes()
    if damage == "flip":
        states.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "cut":
        states.write_bytes(data[:-1])
    elif damage == "missing":
        states.unlink()
    elif damage == "added":
        (newest / "evil.pt").write_bytes(b"pickle")
    elif damage == "linked":
        (newest / "global_step10").symlink_to(tmp_path)
    elif damage == "manifest":
        (newest / "manifest.json").write_text("{")
    else:
        (newest / "manifest.json").unlink()
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 5
    assert len(log) == 1
    assert "step-00000010 is skipped" in log[0]


def test_skipped_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    log: list[str] = []
    checkpoints = folder(tmp_path, log)
    (write(checkpoints, 5) / "latest").unlink()
    assert checkpoints.latest() is None
    write(checkpoints, 5)
    assert checkpoints.latest() is not None


def test_checkpoint_of_another_layout_or_artifact_is_not_loaded(tmp_path: Path) -> None:
    log: list[str] = []
    write(folder(tmp_path, log), 5)
    assert folder(tmp_path, log, layout={**LAYOUT, "zero_stage": 2}).latest() is None
    assert folder(tmp_path, log, identity="two").latest() is None
    assert "zero_stage 0 became 2" in log[0]
    assert "identity" in log[1]


def test_a_checkpoint_of_other_processes_is_found(tmp_path: Path) -> None:
    log: list[str] = []
    write(folder(tmp_path, log, layout={**LAYOUT, "processes": 4}), 5)
    found = folder(tmp_path, log).latest()
    assert found is not None
    assert (found.step, found.processes, log) == (5, 4, [])


def steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.iterdir())


def test_some_are_kept_for_good(tmp_path: Path) -> None:
    """The newest two; beside them every fourth step and the two of the lowest loss, which also outlast the training."""
    checkpoints = folder(tmp_path, [], every_steps=1, keep=2, keep_every=4, keep_best=2)
    for step, loss in enumerate([9.0, 1.0, 2.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.5], start=1):
        write(checkpoints, step, loss)
    assert steps(tmp_path) == [2, 3, 4, 8, 9, 10]
    checkpoints.retire()
    assert steps(tmp_path) == [2, 3, 4, 8]


@pytest.mark.parametrize(
    ("every", "keep_every", "steps", "due"),
    [(250, None, 800, [250, 500, 750]), (250, 300, 900, [250, 300, 500, 600, 750, 900]), (2, 4, 8, [2, 4, 6, 8])],
)
def test_checkpoints_are_written_where_one_is_kept_for_good(
    every: int, keep_every: int | None, steps: int, due: list[int]
) -> None:
    rule = Checkpoints(every_steps=every, keep_every=keep_every)
    assert [step for step in range(1, steps + 1) if rule.due(step)] == due
    assert rule.written(steps) == len(due)
    kept = [step for step in due if keep_every and step % keep_every == 0]
    assert [step for step in due if rule.for_good(step)] == kept


def test_going_back_removes_later_ones(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path, [], keep=3)
    for step in (5, 10, 15):
        write(checkpoints, step)
    checkpoints.remove_after(10)
    assert steps(tmp_path) == [5, 10]


def test_what_the_job_cannot_load_does_not_crowd_out_what_it_can(tmp_path: Path) -> None:
    log: list[str] = []
    for step in (800, 850):
        write(folder(tmp_path, log), step)
    other = folder(tmp_path, log, layout={**LAYOUT, "zero_stage": 2})
    assert other.latest() is None
    write(other, 50)
    found = other.latest()
    assert found is not None and found.step == 50
    assert steps(tmp_path) == [50]


def test_a_rollback_finds_one_to_go_back_to(tmp_path: Path) -> None:
    """A divergence at step 21 goes back to before step 13, one at step 24 to before step 16."""
    checkpoints = folder(tmp_path, [], reach=8, keep=2)
    for step in (4, 8, 12, 16, 20):
        write(checkpoints, step)
    assert steps(tmp_path) == [12, 16, 20]


@pytest.mark.parametrize(
    ("rule", "steps", "cut", "count"),
    [
        ({"keep": 3}, 1000, False, 4),
        ({"keep": 3}, 100, False, 3),  # no more than two are ever written, and one is in the making
        ({"keep": 3, "keep_every": 100, "keep_best": 2}, 1000, False, 16),
        ({"keep": 3}, 1000, True, 6),
    ],
)
def test_too_little_room_is_told_before_training(
    tmp_path: Path, rule: dict[str, int], steps: int, cut: bool, count: int
) -> None:
    checkpoints = folder(tmp_path / "checkpoints", [], **rule)
    checkpoints.require_room(1000, 1000, steps, cut)
    with pytest.raises(StoreError, match=rf"\({count} checkpoints of 1,000,000,000 MB.*lower checkpoints\.keep"):
        checkpoints.require_room(10**15, 1000, steps, cut)


def test_a_disk_that_fails_is_told_and_earlier_ones_stay(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path, [])
    write(checkpoints, 5)
    checkpoints.publish(10, 1.0)  # nothing was staged: as if the disk had lost it
    with pytest.raises(StoreError, match="no checkpoint could be written"):
        checkpoints.settle()
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 5
