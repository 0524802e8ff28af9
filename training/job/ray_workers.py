"""The parts of a data stage on a Ray cluster whose nodes share the folders of attempts, store and sources.

Ray only carries a function and its argument to a free core. Which parts there are, what a finished part is and in which
order they are merged is decided by `training.job.parts`, as on one machine: the bytes are the same.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.errors import RecipeError

_TRIES = 3
_PATIENCE = 10  # seconds
_PROJECT = Path(__file__).resolve().parents[2]


def _call(task: Callable[[Any], str | None], part: Any) -> str | None:
    return task(part)


class RayWorkers:
    """Gives parts to the nodes of a cluster.

    Args:
        address: Of the cluster, such as `10.0.0.1:6379`; `auto` is the one that runs on this machine.
        memory: Bytes that each part may take; a node works on as many at a time as it has room and cores for.
    """

    def __init__(self, address: str, memory: int) -> None:
        self._address, self._memory = address, memory

    def run(
        self, task: Callable[[Any], str | None], parts: Sequence[Any], error_of: Callable[[str], Exception]
    ) -> Iterator[Any]:
        """Call a function for each part, somewhere; each part as it is done.

        Args:
            task: Works on a part, and returns what it says of an error.
            parts: What the function is called with.
            error_of: Makes an error of that.

        Raises:
            RecipeError: The cluster cannot be reached, or a part killed the processes that worked on it.
        """
        import ray  # an extra: most machines have no cluster

        self._connect()
        largest = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if largest < self._memory:  # Ray would wait for such a node for ever
            raise RecipeError(
                f"no node of the Ray cluster at {self._address} has {self._memory / 1e9:.1f} GB of memory, which a "
                f"part may take; the largest has {largest / 1e9:.1f} GB. Lower memory_megabytes in launchers.yaml "
                "(reading sources needs 4.3 GB), or add a larger node"
            )
        remote = ray.remote(num_cpus=1, memory=self._memory, max_retries=0)(_call)
        shared_task = ray.put(task)
        waiting = [(part, 1) for part in reversed(parts)]
        working: dict[Any, tuple[Any, int]] = {}
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting or working:
            while waiting and len(working) < most:
                part, tries = waiting.pop()
                working[remote.remote(shared_task, part)] = part, tries

            done, _ = ray.wait(list(working), num_returns=1)
            part, tries = working.pop(done[0])
            try:
                message = ray.get(done[0])
            except ray.exceptions.RayTaskError as failure:
                raise RuntimeError(f"{part}:\n{failure}") from None
            except ray.exceptions.RayError as failure:  # its process or its node is gone
                if tries >= _TRIES:
                    what = part.shown or f"part {part.name}"
                    raise RecipeError(
                        f"{what}: it failed {_TRIES} times on the cluster ({failure}); raise memory_megabytes in "
                        "launchers.yaml, or leave this file out. The other parts stay finished"
                    ) from None
                waiting.append((part, tries + 1))
                continue
            if message is not None:
                raise error_of(message)
            yield part

    def end(self) -> None:
        """Leave the cluster; what still runs there is cancelled."""
        import ray

        if ray.is_initialized():
            ray.shutdown()

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # No working directory: Ray would upload it, with the store in it. Every node has the code under the same path.
        environment = {"PYTHONPATH": f"{_PROJECT}{os.pathsep}{_PROJECT / 'kernels'}", "TOKENIZERS_PARALLELISM": "false"}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            self._reach()
            ray.init(self._address, log_to_driver=False, runtime_env={"env_vars": environment})
        except OSError as error:  # a ConnectionError where `auto` finds none
            raise RecipeError(
                f"launchers.yaml: no Ray cluster answers at {self._address} ({error}); start one with "
                "`ray start --head`, or correct `ray` of the launcher"
            ) from error
        signal.signal(signal.SIGTERM, handler)  # Ray sets one of its own, which would not record why the job ends

    def _reach(self) -> None:
        """Try the address for a few seconds, because Ray would for minutes."""
        host, _, port = self._address.rpartition(":")
        if port.isdecimal():
            socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
