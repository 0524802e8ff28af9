"""The outbox: what is kept for MLflow, in the files that earlier versions wrote too."""

import json
import os
from pathlib import Path

from pipeline.tracking.outbox import delivery_turn, has_undelivered, open_record, records_of
from training.job.events import EVENTS_FILE

# As a home of an earlier version has it, with MLflow told of everything.
DELIVERED = {
    "key": "1" * 32,
    "started": 1_700_000_000.0,
    "start": 0,
    "end": 0,
    "outcome": "published",
    "version": "20261129-1",
    "error": "",
    "run_id": "2" * 32,
    "delivered": 0,
    "told": True,
}


def test_a_record_of_an_earlier_version_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "tracking-1.json"
    path.write_text(json.dumps(DELIVERED))
    [record] = records_of(tmp_path)
    assert record.build.outcome_delivered and record.is_delivered and not has_undelivered(tmp_path)

    record.change(outcome_delivered=False)
    assert json.loads(path.read_text()) == DELIVERED | {"told": False}
    assert has_undelivered(tmp_path)


def test_an_attempt_is_kept_until_mlflow_has_all_of_it(tmp_path: Path) -> None:
    assert not has_undelivered(tmp_path), "gc may take an attempt without a record"
    record = open_record(tmp_path)
    assert has_undelivered(tmp_path)
    record.change(outcome="failed", outcome_delivered=True)
    assert not has_undelivered(tmp_path)

    (tmp_path / EVENTS_FILE).write_text('{"kind": "phase"}\n{"kind": "cut sho')
    assert has_undelivered(tmp_path), "an attempt that went on"
    record.change(delivered=os.path.getsize(tmp_path / EVENTS_FILE))
    assert not has_undelivered(tmp_path)
    record.path.write_text("{")
    assert has_undelivered(tmp_path), "a damaged record may hide what is undelivered"


def test_a_build_that_was_cut_short_keeps_its_record(tmp_path: Path) -> None:
    first = open_record(tmp_path)
    first.change(run_id="3" * 32, outcome="killed", error="its process ended unexpectedly", outcome_delivered=True)
    again = open_record(tmp_path)
    assert again.path == first.path and again.build.run_id == "3" * 32
    assert (again.build.outcome, again.build.error, again.build.outcome_delivered) == ("", "", False)

    again.change(outcome="published", version="20261129-1")
    assert open_record(tmp_path).path != first.path


def test_one_delivers_at_a_time(tmp_path: Path) -> None:
    with delivery_turn(tmp_path / "tiny", 0) as first, delivery_turn(tmp_path / "tiny", 0.1) as second:
        assert first and not second
    with delivery_turn(tmp_path / "tiny", 0) as later:
        assert later
