"""Checkpoints: whole or invisible."""

from pathlib import Path

import pytest

from training.engine.checkpoints import CheckpointFolder

LAYOUT: dict[str, int | str] = {"processes": 1, "zero_stage": 0, "device": "cpu", "precision": "fp32"}


def folder(root: Path, log: list[str], identity: str = "one", layout: dict[str, int | str] | None = None,
           keep: int = 2) -> CheckpointFolder:
    return CheckpointFolder(root, identity, layout or LAYOUT, keep, log.append)


def write(checkpoints: CheckpointFolder, step: int) -> Path:
    staged = checkpoints.staging(step)
    (staged / "states").mkdir(parents=True)
    (staged / "states" / "rank0.pt").write_bytes(b"weights of step %d" % step)
    (staged / "latest").write_text(f"global_step{step}")
    return checkpoints.publish(step)


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


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "added", "manifest", "no manifest"])
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
    assert folder(tmp_path, log, layout={**LAYOUT, "processes": 2}).latest() is None
    assert folder(tmp_path, log, identity="two").latest() is None
    assert "processes 1 became 2" in log[0]
    assert "identity" in log[1]
