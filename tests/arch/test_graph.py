"""The graph as one page: keys, dependencies, gates."""

from pathlib import Path

import dagster as dg

from pipeline.definitions import build_definitions

SNAPSHOT = Path(__file__).with_name("graph.txt")


def describe(definitions: dg.Definitions) -> str:
    graph = definitions.resolve_asset_graph()
    lines = []
    for key in graph.toposorted_asset_keys:
        node = graph.get(key)
        parents = ", ".join(sorted(parent.to_user_string() for parent in node.parent_keys))
        gates = ", ".join(sorted(check.name for check in graph.get_check_keys_for_assets({key})))
        lines.append(f"{key.to_user_string()} <- {parents or 'sources'}\n    {node.group_name}: {gates}")
    return "\n".join(lines) + "\n"


def test_the_graph_is_the_one_that_was_reviewed() -> None:
    """To accept a change, replace graph.txt with what this test shows, and say why in the commit."""
    assert describe(build_definitions("tiny")) == SNAPSHOT.read_text()


def test_every_asset_explains_itself() -> None:
    graph = build_definitions("tiny").resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and len(node.description) > 60, key
        assert node.owners and node.kinds and node.code_version, key
        checks = [graph.get_check_spec(check) for check in graph.get_check_keys_for_assets({key})]
        assert checks and all(check.blocking and check.description for check in checks), key


def test_another_recipe_has_its_own_keys() -> None:
    graph = build_definitions("smoke").resolve_asset_graph()
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {"smoke"}
