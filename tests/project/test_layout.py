"""The structure of the tree: packages, imports between them, and sizes."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PRODUCT_LINES_MAX = 450
TEST_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
FOLDER_MODULES_MAX = 14
KERNEL_ARGUMENTS_MAX = 8

# A third-party package, and the only places that may import it.
DOORS = {
    "kafka": ("pipeline/bus/kafka",),
    "duckdb": ("analytics/store/",),
    "scapy": ("collectors/packets/receiver.py", "lab/"),
    "grpc": ("collectors/gnmi/receiver.py", "collectors/otlp/receiver.py", "lab/"),
    "streamlit": ("dashboards/",),
    "altair": ("dashboards/",),
    "llvmlite": (),
}
CLOCK = "pipeline/clock.py"
KAFKA_PRIVATE = "pipeline/bus/kafka_private.py"
WALL_CLOCK = {
    "time.time",
    "time.time_ns",
    "time.sleep",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
}


def imported(tree: ast.AST) -> dict[int, set[str]]:
    """Return the absolute module names that a file imports anywhere in it, by line."""
    found: dict[int, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.setdefault(node.lineno, set()).update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.setdefault(node.lineno, set()).add(node.module)
    return found


def dotted_uses(tree: ast.AST) -> list[tuple[int, str]]:
    """Return the full form of every name and attribute chain that starts at an import, under any alias."""
    alias_of: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            alias_of.update({a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names})
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            alias_of.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    uses = []
    for node in ast.walk(tree):
        parts: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id in alias_of:
            uses.append((node.lineno, ".".join([alias_of[inner.id], *reversed(parts)])))
    return uses


def test_the_package_list_is_the_tree(root, tree_files, pyproject):
    """Every folder with an `__init__.py` is installed, under the name `weft`, and nothing else is."""
    setup = pyproject["tool"]["setuptools"]
    folders = {Path(name).parent for name in tree_files if name.endswith("__init__.py") and not name.startswith("tests/")}
    assert sorted(".".join(("weft", *folder.parts)) for folder in folders) == sorted(setup["packages"])
    assert setup["package-dir"] == {"weft": "."}
    homes = {Path(name).parent for name in tree_files if name.endswith(".py") and not name.startswith("tests/")}
    assert homes - folders == set(), "a folder with Python files has no __init__.py"


@pytest.mark.parametrize("package", DOORS)
def test_a_third_party_package_comes_in_by_one_door(package, product_files):
    """A package that Weft might one day replace is imported in one place only."""
    outside = [
        f"{source.path}:{line}"
        for source in product_files
        if not source.path.startswith(DOORS[package])
        for line, modules in imported(source.tree).items()
        if any(module.split(".")[0] == package for module in modules)
    ]
    assert outside == []


def test_private_parts_of_kafkas_client_stay_in_one_file(product_files):
    """Only one file of the bus may use private attributes or private modules of the client."""
    outside = [
        f"{source.path}:{node.lineno} {node.attr}"
        for source in product_files
        if source.path.startswith("pipeline/bus/kafka") and source.path != KAFKA_PRIVATE
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    outside += [
        f"{source.path}:{line} {module}"
        for source in product_files
        if source.path != KAFKA_PRIVATE
        for line, modules in imported(source.tree).items()
        for module in modules
        if module.startswith("kafka.") and any(part.startswith("_") for part in module.split("."))
    ]
    assert outside == []


def test_time_comes_from_the_clock_only(product_files):
    """Only the clock module reads the time or sleeps, so that any part runs under a test's clock."""
    outside = [
        f"{source.path}:{line} {name}"
        for source in product_files
        if source.path != CLOCK
        for line, name in dotted_uses(source.tree)
        if name in WALL_CLOCK
    ]
    assert outside == []


def test_the_time_rule_sees_through_other_names():
    """The rule above finds a call under another name too, and allows other calls."""
    text = "import time as t\nfrom datetime import datetime as d\nfrom time import sleep\nt.time()\nd.now()\nsleep(1)\nt.monotonic_ns()\n"
    named = {name for _, name in dotted_uses(ast.parse(text)) if name in WALL_CLOCK}
    assert named == {"time.time", "datetime.datetime.now", "time.sleep"}


def test_files_are_short(python_files):
    """A file has one subject: at most 450 lines in the product, 600 in a test."""
    long = {
        source.path: lines
        for source in python_files
        if (lines := source.text.count("\n")) > (TEST_LINES_MAX if source.path.startswith("tests/") else PRODUCT_LINES_MAX)
    }
    assert long == {}


def test_folders_are_small(product_files):
    """A folder of the product holds at most 14 modules."""
    modules = Counter(str(Path(source.path).parent) for source in product_files)
    assert {folder: count for folder, count in modules.items() if count > FOLDER_MODULES_MAX} == {}


def test_class_names_are_unique(product_files):
    """One noun names one thing: no class name is defined in two files of the product."""
    homes: dict[str, set[str]] = {}
    for source in product_files:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, set()).add(source.path)
    assert {name: sorted(paths) for name, paths in homes.items() if len(paths) > 1} == {}


def test_kernels_take_few_arguments(product_files):
    """A compiled function takes at most 8 arguments; columns that belong together are one named tuple."""
    kernels = [
        (source.path, node)
        for source in product_files
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert len(kernels) > 100
    wide = {f"{path} {node.name}": len(node.args.args) for path, node in kernels if len(node.args.args) > KERNEL_ARGUMENTS_MAX}
    assert wide == {}


def test_functions_are_short(python_files):
    """A function fits on a screen: at most 70 lines."""
    long = {
        f"{source.path}:{node.lineno} {node.name}": length
        for source in python_files
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_every_test_states_its_promise(python_files):
    """Each test has a docstring that states what it checks."""
    silent = [
        f"{source.path}:{node.lineno} {node.name}"
        for source in python_files
        if source.path.startswith("tests/")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert silent == []


def test_every_module_says_why_it_exists(product_files):
    """Each file of the product with code has a docstring that states its purpose."""
    silent = [source.path for source in product_files if source.tree.body and not ast.get_docstring(source.tree)]
    assert silent == []


def test_imports_keep_the_floors(root):
    """Dashboards stand on analytics and collectors, both on pipeline; no import goes up or sideways."""
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
