"""A Ray cluster of several nodes on this one machine, for `bench scale --nodes N`.

Owns its start and its end. It must not know what runs on it. Invariants: its ports are open to this machine only and want
a token; its temporary directory is its own, and is removed; every process of it has ended when the block is left.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from trilogue.actors.protocol.errors import LaunchError
from trilogue.cluster.on_ray.ray_head import (
    OBJECT_STORE_BYTES,
    ensure_ray_token,
    environment_of,
    head_environment,
    short_temp_dir,
)
from trilogue.cluster.settings.config import NAMESPACE

NODE_CPUS = 1


@contextlib.contextmanager
def simulated_nodes(count: int, directory: Path) -> Iterator[None]:
    """Connect this process to a Ray of `count` nodes, which ends with the block. Raises `LaunchError`."""
    temp_dir = short_temp_dir()
    environment = head_environment(ensure_ray_token(directory))
    # Ray notes the newest cluster's address under RAY_TMPDIR, where `address="auto"` of other programs would find it.
    (temp_dir / "ray").mkdir()
    environment["RAY_TMPDIR"] = str(temp_dir)
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, temp_dir, ignore_errors=True)
        ends.enter_context(environment_of(environment))
        import ray
        from ray.cluster_utils import Cluster

        if ray.is_initialized():
            raise LaunchError("this process is connected to a Ray already: a simulated cluster needs one that is not")
        node_args = {
            "node_ip_address": "127.0.0.1",
            "num_cpus": NODE_CPUS,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "include_log_monitor": False,
            "temp_dir": str(temp_dir),
        }
        nodes = Cluster()
        ends.callback(nodes.shutdown)
        try:
            for _ in range(count):
                nodes.add_node(wait=True, **node_args)
            ray.init(address=nodes.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise LaunchError(f"{count} Ray nodes did not start: {' '.join(str(error).split())[:300]}") from None
        ends.callback(ray.shutdown)
        yield
