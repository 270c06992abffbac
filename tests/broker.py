"""A real Kafka broker on loopback for tests and benchmarks, started from the jars that Maven downloads once.

As a script (``python tests/broker.py``) it prints the broker's address and runs until its input ends or it
gets a signal.
"""

import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from xml.etree import ElementTree

POM = Path(__file__).with_name("kafka-pom.xml")
MAVEN_TIMEOUT_S = 600
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60
HEAP_MIB = 512

PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={logs}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
"""


class BrokerMissing(Exception):
    """No broker can be started here; the text is one line with what to install."""


def _version() -> str:
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    found = ElementTree.parse(POM).find("m:dependencies/m:dependency/m:version", space)
    if found is None or not found.text:
        raise BrokerMissing(f"{POM} names no version of Kafka")
    return found.text


def jars() -> Path:
    """Return the folder with the broker's jars, filled by Maven at the first call."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise BrokerMissing(
                f"{tool} is not installed: install a Java runtime (17 or later) and Maven, or set WEFT_TEST_KAFKA=host:port"
            )
    cache = Path(os.environ.get("WEFT_CACHE") or Path.home() / ".cache" / "weft")
    folder = cache / f"kafka-{_version()}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    fetched = Path(tempfile.mkdtemp(prefix="kafka-", dir=cache))
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MAVEN_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        shutil.rmtree(fetched, ignore_errors=True)
        raise BrokerMissing("Maven cannot fetch Kafka: " + " ".join(done.stdout.split())[:300])
    with contextlib.suppress(OSError):
        # Another process may have been faster; its copy is as good.
        fetched.rename(folder)
    shutil.rmtree(fetched, ignore_errors=True)
    return folder


def free_port() -> int:
    """Return an unused loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Broker:
    """One node in KRaft combined mode; its data lives in ``folder`` and survives ``kill`` and ``start``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        classpath = str(jars() / "*")
        properties = self._folder / "server.properties"
        if not properties.exists():
            self._format(classpath, properties)
        log = (self._folder / "broker.log").open("ab")
        command = ["java", f"-Xmx{HEAP_MIB}m", "-XX:+UseSerialGC", "-cp", classpath, "kafka.Kafka", str(properties)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        self._await_answer()

    def _format(self, classpath: str, properties: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        text = PROPERTIES.format(port=self._port, controller_port=free_port(), logs=self._folder / "data")
        properties.write_text(text)
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # Joined by "=": one identifier in sixty-four begins with a dash, which stands for an option of its own otherwise.
        tool = ["java", "-cp", classpath, "kafka.tools.StorageTool", "format", "--standalone", f"--cluster-id={cluster}"]
        done = subprocess.run([*tool, "-c", str(properties)], capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
        if done.returncode != 0:
            properties.unlink()
            raise BrokerMissing("Kafka's storage cannot be formatted: " + " ".join(done.stderr.split())[-300:])

    def _await_answer(self) -> None:
        # Probe with the client: the port is open before the broker can serve.
        from kafka import KafkaAdminClient
        from kafka.errors import KafkaError

        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                    pass
                admin = KafkaAdminClient(bootstrap_servers=self.address, bootstrap_timeout_ms=5000)
                try:
                    admin.list_topics()
                    return
                finally:
                    admin.close()
            except (OSError, KafkaError):
                time.sleep(0.2)
        log = (self._folder / "broker.log").read_text(errors="replace")
        self.kill()
        raise BrokerMissing("Kafka does not start: " + " ".join(log.split())[-300:])

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def pause(self) -> None:
        """Stop its threads, as on a machine that hangs."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it continue."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as a machine that loses power."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def stop(self) -> None:
        """End it in order. Idempotent."""
        self.resume()
        self._signal(signal.SIGTERM)
        if self._process is not None:
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None


def main() -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    folder = Path(tempfile.mkdtemp(prefix="weft-kafka-"))
    broker = Broker(folder)
    try:
        broker.start()
        print(broker.address, flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
        while not stop.wait(1.0):
            pass
    except BrokerMissing as missing:
        print(missing, file=sys.stderr)
        return 1
    finally:
        broker.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
