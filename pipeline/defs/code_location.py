"""The code location that a run of the command line belongs to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import dagster as dg
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

NO_RETRY = {MAX_RETRIES_TAG: "0"}
"""Tag of a run of a command. The daemon retries runs that belong to a code location; a person repeats a command."""


@contextmanager
def in_code_location(instance: dg.DagsterInstance, location: str, job: str) -> Iterator[None]:
    """Runs that are made meanwhile belong to a code location, because Dagster's Timeline shows no others.

    `execute_in_process` has no argument for that.

    Args:
        location: Name of the code location, as `gatehouse up` serves it.
        job: Name of the job.
    """
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name="pipeline.definitions")
    repository = RemoteRepositoryOrigin(
        ManagedGrpcPythonEnvCodeLocationOrigin(target, location), SINGLETON_REPOSITORY_NAME
    )
    located = partial(instance.create_run_for_job, remote_job_origin=RemoteJobOrigin(repository, job))

    setattr(instance, "create_run_for_job", located)  # noqa: B010 - mypy refuses the plain assignment
    try:
        yield
    finally:
        delattr(instance, "create_run_for_job")
