"""Events survive a kill: whole lines are read, a line cut short is not."""

from pathlib import Path

from training.job.events import EventReader, EventWriter


def test_reader_follows_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.poll() == []
    writer = EventWriter(path)
    writer.phase("train")
    writer.metrics(1, {"loss": float("nan"), "lr": 0.5})
    assert [event["kind"] for event in reader.poll()] == ["phase", "metrics"]
    assert reader.poll() == []
    writer.progress(1, 2, "steps", "loss 3")
    assert reader.poll()[0]["note"] == "loss 3"


def test_nan_is_kept_as_text(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "e")
    writer.metrics(1, {"loss": float("inf")})
    assert EventReader(tmp_path / "e").poll()[0]["values"] == {"loss": "inf"}


def test_a_line_cut_short_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_bytes(b'{"t": 1, "kind": "ph')
    reader = EventReader(path)
    assert reader.poll() == []
    with path.open("ab") as file:
        file.write(b'\n{"t": 2, "kind": "log", "level": "info", "message": "m"}\n')
    assert [event["t"] for event in reader.poll()] == [2]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    EventWriter(None).phase("train")
    assert list(tmp_path.iterdir()) == []
