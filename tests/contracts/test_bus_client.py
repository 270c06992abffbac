"""The bus uses Kafka's client by its public interface, so that a release of the client cannot break it unnoticed."""

import ast
from pathlib import Path

from weft.pipeline import bus

SOURCES = sorted(Path(bus.__file__).parent.glob("kafka*.py"))


def _private(tree: ast.AST) -> list[str]:
    """Return the private names that are imported, or read from anything but ``self``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kafka"):
            found += [name for name in [*(node.module or "").split("."), *(each.name for each in node.names)] if name.startswith("_")]
        elif (
            isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not (isinstance(node.value, ast.Name) and node.value.id == "self")
        ):
            found.append(node.attr)
    return sorted(found)


def test_no_private_part_of_the_client_is_used() -> None:
    """No module of the Kafka bus imports or touches a private name of another object; the check itself finds such names."""
    assert {path.name: found for path in SOURCES if (found := _private(ast.parse(path.read_text())))} == {}
    assert len(SOURCES) >= 5
    assert _private(ast.parse("from kafka.admin._groups import x\nself._client._net.sleep(client._sender)")) == [
        "_groups",
        "_net",
        "_sender",
    ]
