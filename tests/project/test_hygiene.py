"""Nothing in the tree ties it to one machine or one package source."""

import re

# Spelt in parts, so that this file itself passes.
HOSTS = re.compile(
    "|".join(
        re.escape(".".join(parts))
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("repo", "maven", "apache", "org"),
            ("repo1", "maven", "org"),
            ("registry", "npmjs", "org"),
            ("proxy", "golang", "org"),
            ("crates", "io"),
            ("deb", "debian", "org"),
        )
    )
)
MACHINE_PATHS = re.compile(r"(?<![\w.*}])/(?:work|root|home/\w+|tmp/v)/" + "(?=[a-z.])")
SECRETS = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY|whsec_[A-Za-z0-9+/]{24,}|AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{36}")
CONFLICTS = re.compile(r"^(?:<{7}|>{7}) ", re.M)


def found(pattern: re.Pattern[str], root, tree_files) -> list[str]:
    """Return every match of a pattern in the files of the tree."""
    hits = []
    for name in tree_files:
        text = (root / name).read_bytes().decode("utf-8", "replace")
        hits += [f"{name}:{text.count(chr(10), 0, match.start()) + 1} {match[0]}" for match in pattern.finditer(text)]
    return hits


def test_no_package_source_is_named(root, tree_files):
    """No file names a package host, because the installing machine chooses it."""
    assert found(HOSTS, root, tree_files) == []


def test_no_path_of_one_machine_is_named(root, tree_files):
    """No file contains a path that only one machine has."""
    assert found(MACHINE_PATHS, root, tree_files) == []


def test_no_secret_is_kept(root, tree_files):
    """The tree contains no key or token."""
    assert found(SECRETS, root, tree_files) == []


def test_no_merge_is_half_done(root, tree_files):
    """No conflict mark is left."""
    assert found(CONFLICTS, root, tree_files) == []


def test_files_are_of_a_size_to_review(root, tree_files):
    """No file above 2 MB is kept: large inputs live elsewhere."""
    assert [name for name in tree_files if (root / name).stat().st_size > 2_000_000] == []
