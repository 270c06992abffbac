"""The glossary owns the nouns: public names avoid the words that it advises against."""

import ast
import re

import pytest

PAGE = "dashboards/docs/10-glossary.md"
# Contracts with the outside that keep their name: a family, its table and its views.
KEPT = re.compile(r"^(reading|readings|ReadingMetric)$")


def rows(text: str, section: str) -> list[tuple[str, str]]:
    """Return the two cells of each row of a section's table."""
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [(left.strip(), right.strip()) for left, right in re.findall(r"^\| (.+?) \| (.+?) \|$", body, re.MULTILINE)][1:]


@pytest.fixture(scope="module")
def glossary(root) -> str:
    """Return the text of the page."""
    return (root / PAGE).read_text()


def words(name: str) -> list[str]:
    """Return the words of a name in either spelling: ``LateRows``, ``late_rows``."""
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def test_every_term_is_defined_once(glossary):
    """Each term has one row, with a meaning."""
    terms = [term for section in ("The fabric", "Measurement", "The product") for term, _ in rows(glossary, section)]
    assert len(terms) > 60
    assert sorted(terms) == sorted(set(terms))


def test_public_names_use_the_words_of_the_glossary(glossary, product_files):
    """No public class, function or field is named with a word to avoid."""
    avoided = {word.strip() for cell, _ in rows(glossary, "Words to avoid") for word in re.sub(r"\(.*\)", "", cell).split(",")}
    assert {"told", "mend", "whom"} <= avoided
    found = [
        f"{source.path}:{node.lineno} {name}"
        for source in product_files
        for node in ast.walk(source.tree)
        for name in public_names(node)
        if set(words(name)) & avoided and not KEPT.match(name)
    ]
    assert found == []


def public_names(node: ast.AST) -> list[str]:
    """Return the public name that a node defines, in a list; nothing if it defines none."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [] if node.name.startswith("_") else [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
        return [node.target.id]
    return []
