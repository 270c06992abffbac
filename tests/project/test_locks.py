"""The locks: exactly the listed packages are installed, from any index."""

import re

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

LOCKS = ("requirements.lock", "requirements-dev.lock")
PINNED = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>\S+?)(?: ; (?P<marker>.+?))? \\$", re.M)


def pins(text: str) -> dict[str, list[tuple[Version, str]]]:
    """Return the locked versions of each package, with the marker each is for."""
    found: dict[str, list[tuple[Version, str]]] = {}
    for match in PINNED.finditer(text):
        found.setdefault(match["name"], []).append((Version(match["version"]), match["marker"] or ""))
    return found


def normal(name: str) -> str:
    """Return a package's name as the locks spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address(lock, root):
    """A lock works with any index: it holds names, versions and hashes, no address."""
    text = (root / lock).read_text()
    assert not re.search(r"https?|://|\.org\b|\.com\b|--(extra-)?index-url|--find-links|--trusted-host", text)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes(lock, root):
    """Each pinned package has the hashes that its download is checked against."""
    entries = re.split(r"\n(?=[a-z0-9])", (root / lock).read_text())
    bare = [entry.splitlines()[0] for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)]
    assert bare == []
    assert len(entries) == sum(len(versions) for versions in pins((root / lock).read_text()).values())


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_answers_the_project_file(lock, root, pyproject):
    """Each dependency of the project file is locked at a version that it allows."""
    groups = pyproject["dependency-groups"]
    wanted = pyproject["project"]["dependencies"] + pyproject["build-system"]["requires"]
    if "dev" in lock:
        wanted += [line for line in groups["dev"] if isinstance(line, str)]
    locked = pins((root / lock).read_text())
    for line in wanted:
        requirement = Requirement(line)
        versions = [version for version, _ in locked.get(normal(requirement.name), [])]
        assert versions, f"{line} is not in {lock}: run `make lock`"
        assert all(version in requirement.specifier for version in versions), f"{lock} has {versions} for {line}: run `make lock`"


def test_tests_run_on_what_users_get(root):
    """The development lock holds the user's lock, version by version."""
    user, developer = (pins((root / lock).read_text()) for lock in LOCKS)
    assert {name: developer.get(name) for name in user} == user


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_one_version_for_each_surrounding(root, python, system, machine):
    """On every supported system and Python, at most one version of a package applies."""
    surrounding = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": system, "platform_machine": machine}
    surrounding |= {"platform_system": {"linux": "Linux", "darwin": "Darwin"}[system], "os_name": "posix"}
    for name, versions in pins((root / LOCKS[1]).read_text()).items():
        assert sum(not marker or Marker(marker).evaluate(surrounding) for _, marker in versions) <= 1, name
