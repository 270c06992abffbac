"""Every imported module of the project exists, also those imported only when a command runs."""

import ast
import importlib.util


def imported(source) -> set[str]:
    """Return the full names of the modules of this project that a file imports from."""
    package = ["weft", *source.path.split("/")[:-1]]
    found = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "weft"}


def test_every_import_of_our_own_resolves(product_files):
    """No file imports a module that was moved or removed."""
    names = {(source.path, name) for source in product_files for name in imported(source)}
    assert len(names) > 500
    missing = [f"{path}: {name}" for path, name in sorted(names) if importlib.util.find_spec(name) is None]
    assert missing == []
