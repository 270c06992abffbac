"""The container files follow the project's rules; the tests read them without a container engine."""

import json
import os
import re
import subprocess
import sys
from importlib.resources import files

import jsonschema
import pytest
from ruamel.yaml import YAML

OURS = ("collect", "process", "analyze", "dash", "capture")


@pytest.fixture(scope="module")
def compose(root) -> dict:
    """Return the parsed Compose file, anchors and merges resolved."""
    return YAML(typ="safe").load((root / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def services(compose) -> dict:
    """Return the services by name."""
    return compose["services"]


@pytest.fixture(scope="module")
def stages(root) -> list[list[str]]:
    """Return the Dockerfile's instructions, one list for each stage."""
    text = re.sub(r"\\\n\s*", "", (root / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    starts = [index for index, line in enumerate(lines) if line.startswith("FROM ")]
    return [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]


def test_the_compose_file_is_of_the_specification(compose):
    """The Compose specification's own schema accepts the file, and refuses a mistake in it."""
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    assert [f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(compose)] == []
    slip = json.loads(json.dumps(compose))
    slip["services"]["dash"]["heathcheck"] = slip["services"]["dash"].pop("healthcheck")
    assert not validator.is_valid(slip)


def test_there_is_one_container_for_each_service(services):
    """The services are the broker, the four of Weft, and capture only on request."""
    assert set(services) == {"kafka", *OURS}
    assert {name: service.get("profiles") for name, service in services.items() if "profiles" in service} == {"capture": ["capture"]}
    assert {name: services[name]["command"][0] for name in OURS} == {name: name for name in OURS} | {"capture": "collect"}


def test_ports_are_open_to_this_machine_only(services):
    """Each published port is bound to the loopback address."""
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert [name for name, service in services.items() if service.get("network_mode") == "host"] == ["capture"]


def test_every_container_is_hardened(services):
    """No container runs as root, keeps a capability, writes to its root file system, or grows without a bound."""
    for name, service in services.items():
        uid = int(service["user"].split(":")[0])
        assert uid > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["tmpfs"], name
        assert not service.get("privileged"), name
        assert service["mem_limit"] and service["pids_limit"], name
        assert service["security_opt"] == [f"no-new-privileges:{str(name != 'capture').lower()}"], name
        assert service.get("cap_add", []) == (["NET_RAW"] if name == "capture" else []), name


def test_every_container_tells_its_health(services):
    """Each service has a health check with all limits, and restarts after a crash."""
    for name, service in services.items():
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL"), name
        assert {"interval", "timeout", "start_period", "retries"} <= set(check), name
        assert service["restart"] == "unless-stopped", name


def test_services_wait_for_a_healthy_broker(services):
    """Services that use Kafka start when Kafka answers."""
    for name in ("collect", "process", "analyze", "capture"):
        assert services[name]["depends_on"]["kafka"]["condition"] == "service_healthy", name
        assert services[name]["environment"]["WEFT_BUS__KIND"] == "kafka", name
    advertised = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert (
        advertised
        == f"INTERNAL://{services['process']['environment']['WEFT_BUS__SERVERS']},HOST://"
        + (services["capture"]["environment"]["WEFT_BUS__SERVERS"])
    )


def test_the_store_has_one_writer(services):
    """Only `analyze` can write to the store; pages read it through a mount that cannot be written to."""
    mounts = {name: service["volumes"] for name, service in services.items() if any("store:" in v for v in service.get("volumes", []))}
    assert mounts == {"analyze": ["store:/data"], "dash": ["store:/data:ro"]}


def test_images_are_pinned(services, stages):
    """Every image has a version; none follows `latest`."""
    names = {stage[0].split(" AS ")[1] for stage in stages if " AS " in stage[0]}
    bases = {stage[0].split()[1] for stage in stages} - names
    for image in bases | {service["image"] for service in services.values()}:
        tag = image.partition(":")[2]
        assert re.search(r"\d+\.\d+", tag) and "latest" not in tag, image


def test_the_images_run_without_root(stages, services):
    """Both images that run end as the same user without privileges, and the Compose file names that user."""
    users = {stage[-1] for stage in (stages[-1], next(s for s in stages if s[0].endswith(" AS capture")))}
    assert users == {f"USER {services['collect']['user']}"}


def test_the_image_installs_from_the_lock_only(stages):
    """The image contains the locked packages, verified by hash, and Weft itself, with no other download."""
    installs = [line for stage in stages for line in stage if "pip install" in line]
    assert len(installs) == 2
    assert all("--require-hashes -r" in line or "--no-deps --no-build-isolation" in line for line in installs)


def test_the_image_tells_its_health_and_is_the_command(stages):
    """The image is the `weft` command, with a health check by the same command."""
    base = "\n".join(next(stage for stage in stages if stage[0].endswith(" AS base")))
    assert re.search(r'^ENTRYPOINT \["sh", "-c", ".*; exec weft \\"\$@\\"", "weft"\]$', base, re.M)
    assert re.search(r'^HEALTHCHECK .*CMD \["weft", ', base, re.M)


KERNEL = """
import sys
import numba

@numba.njit(cache=True)
def double(x):
    return x * 2

for value in map(eval, sys.argv[1:]):
    double(value)
print(sum(double.stats.cache_hits.values()), sum(double.stats.cache_misses.values()))
"""


def test_the_image_carries_compiled_kernels(stages, tmp_path):
    """The compiled kernels are found in the writable folder that the entry point fills, and the image is not changed."""
    build, base = (next(stage for stage in stages if stage[0].endswith(f" AS {name}")) for name in ("build", "base"))
    assert "RUN NUMBA_CACHE_DIR=/opt/weft/kernels /opt/weft/bin/python -m weft.commands.compile" in build
    entry = json.loads(next(line for line in base if line.startswith("ENTRYPOINT ")).removeprefix("ENTRYPOINT "))
    image, writable, module = tmp_path / "image", tmp_path / "tmp" / "numba", tmp_path / "kernel.py"
    module.write_text(KERNEL)
    (tmp_path / "tmp").mkdir()

    def run(folder, *values: str) -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
        command = [sys.executable, str(module), *values]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout.strip()

    assert run(image, "1") == "0 1"
    for path in (image, *image.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.read_bytes() for path in image.rglob("*") if path.is_file()}
    assert before
    fill = entry[2].replace("/opt/weft/kernels", str(image)).replace("exec weft", "exec echo")
    environment = {"PATH": os.environ["PATH"], "NUMBA_CACHE_DIR": str(writable)}
    for _ in range(2):
        assert subprocess.check_output(["sh", "-c", fill, "weft", "up"], env=environment, text=True, timeout=60) == "up\n"
    assert run(writable, "1") == "1 0"
    assert run(writable, "1.5") == "0 1"
    assert run(writable, "1", "1.5") == "2 0"
    assert {path: path.read_bytes() for path in image.rglob("*") if path.is_file()} == before


def test_the_build_sees_what_the_wheel_needs_and_no_more(root, pyproject):
    """The build context admits only the product's folders and the files that its build reads."""
    rules = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    rooms = {name.split(".")[1] for name in pyproject["tool"]["setuptools"]["packages"] if "." in name}
    modules = {path.name for path in root.glob("*.py")}
    assert let_in == rooms | modules | {"pyproject.toml", "requirements.lock", "README.md", "LICENSE"}


@pytest.mark.parametrize("name", OURS)
def test_the_commands_of_the_containers_exist(name, services):
    """Each container's command and health check is a command of Weft with known options."""
    check = services[name]["healthcheck"]["test"][1:]
    for words in (services[name]["command"], check[1:] if check[0] == "weft" else []):
        code = "import sys; from weft.cli import main; sys.argv[0] = 'weft'; sys.exit(main())"
        run = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
