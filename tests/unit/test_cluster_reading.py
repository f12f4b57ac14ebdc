"""Which partition is read where: on a node that has a store of it, none with more than its share."""

from __future__ import annotations

from typing import Any

from trilogue.cluster.on_ray.reading import _nodes, assign


class Part:
    """Stands for a task: importing the real one imports Ray."""

    def __init__(self, partition: int, host: str = "") -> None:
        self.partition, self.host = partition, host

    def _replace(self, host: str) -> Any:
        return Part(self.partition, host)


def assigned(hosts: dict[int, list[str]], nodes: dict[str, str]) -> dict[str, list[int]]:
    found = assign([Part(partition) for partition in hosts], hosts, nodes)  # type: ignore[misc]
    assert all(part.host == host for host, parts in found.items() for part in parts)
    return {host: [part.partition for part in parts] for host, parts in found.items()}


def test_partitions_are_spread_over_the_nodes_that_have_a_store_of_them() -> None:
    nodes = {"a": "1", "b": "2", "c": "3"}
    everywhere = {partition: ["a", "b", "c"] for partition in range(6)}
    assert assigned(everywhere, nodes) == {"a": [0, 3], "b": [1, 4], "c": [2, 5]}
    assert assigned({0: ["a"], 1: ["a", "b"], 2: ["c", "b", "a"]}, nodes) == {"a": [0], "b": [1], "c": [2]}


def test_partition_that_no_node_has_is_read_wherever_there_is_room() -> None:
    assert assigned({0: ["x"], 1: [], 2: ["a"]}, {"a": "1"}) == {"": [0, 1], "a": [2]}


def test_host_with_several_nodes_names_none_of_them() -> None:
    def node(host: str, name: str, alive: bool = True) -> dict[str, Any]:
        return {"NodeManagerAddress": host, "NodeID": name, "Alive": alive}

    found = _nodes([node("a", "1"), node("b", "2"), node("b", "3"), node("c", "4"), node("c", "5", alive=False)])
    assert found == {"a": "1", "c": "4"}
