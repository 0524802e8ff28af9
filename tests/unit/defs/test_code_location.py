"""Runs of the command line belong to a code location, as runs of the browser do."""

import dagster as dg
from dagster._core.storage.tags import MAX_RETRIES_TAG

from pipeline.defs.code_location import NO_RETRY, in_code_location


def test_a_run_that_was_made_here_is_shown_in_the_timeline_of_its_location() -> None:
    @dg.op
    def work() -> None:
        pass

    @dg.job
    def everything() -> None:
        work()

    with dg.DagsterInstance.local_temp() as instance:
        with in_code_location(instance, "mine", everything.name):
            located = everything.execute_in_process(instance=instance, tags=NO_RETRY)
        outside = everything.execute_in_process(instance=instance)
        run, other = (instance.get_run_by_id(made.run_id) for made in (located, outside))

    assert run is not None and run.remote_job_origin is not None
    assert run.remote_job_origin.location_name == "mine"
    assert run.remote_job_origin.job_name == "everything"
    assert run.tags[MAX_RETRIES_TAG] == "0", "the daemon must not start it a second time"
    assert other is not None and other.remote_job_origin is None
