"""What the Kafka bus says to client and broker: limits, times, and the settings of clients and topics."""

from pathlib import Path
from typing import Any

from ..errors import BusError
from . import BusConfig

MEMORY_TOPIC = "weft.memory.v1"
# A cluster may serve other programs, too.
PRODUCER_PREFIX = "weft-"
MESSAGE_MAX_BYTES = 16 * 1024**2
FETCH_MAX_BYTES = 16 * 1024**2
FETCH_WAIT_MS = 100
BATCH_BYTES = 512 * 1024
POLL_MAX_MESSAGES = 4096
TRANSACTION_TIMEOUT_MS = 15_000
SESSION_TIMEOUT_MS = 10_000
# Members learn of a rebalance with a heartbeat.
HEARTBEAT_MS = 1_000
# A member that holds up a rebalance for longer is left behind.
POLL_INTERVAL_MS = 60_000
REQUEST_TIMEOUT_MS = 10_000
RECONNECT_MAX_MS = 1_000
# A transaction right after another is asked to wait until that one is through.
RETRY_BACKOFF_MS = 10
# A wrong address should be said soon; a broker that was there may stay away for the whole patience.
START_PATIENCE_S = 30.0
SEGMENT_MIN_BYTES = 32 * 1024**2
SEGMENT_MAX_BYTES = 256 * 1024**2

# A commit that met a dying broker may wait for ever inside the client, also when the broker is back; a new client goes on.
COMMIT_S = 20.0


def client_settings(config: BusConfig) -> dict[str, Any]:
    """Return what every client is made with.

    Raises:
        BusError: the password file cannot be read.
    """
    settings: dict[str, Any] = {
        "bootstrap_servers": config.servers.replace(" ", "").split(","),
        "security_protocol": config.security_protocol,
        "bootstrap_timeout_ms": int(min(config.patience_s, START_PATIENCE_S) * 1000),
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
        "retry_backoff_ms": RETRY_BACKOFF_MS,
    }
    if config.tls_ca_file:
        settings["ssl_cafile"] = config.tls_ca_file
    if config.sasl_mechanism:
        settings["sasl_mechanism"] = config.sasl_mechanism
        settings["sasl_plain_username"] = config.sasl_username
        settings["sasl_plain_password"] = _password(config.sasl_password_file)
    return settings


def _password(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        problem = f"the password file {path or '(none named)'} cannot be read ({error.strerror})"
        raise BusError(problem, "name a readable file in bus.sasl_password_file") from error


def producer_settings(config: BusConfig, name: str) -> dict[str, Any]:
    """Return what the producer of that name is made with, beside the settings of every client."""
    patience_ms = int(config.patience_s * 1000)
    return {
        "transactional_id": PRODUCER_PREFIX + name,
        "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
        "delivery_timeout_ms": int(COMMIT_S * 1000),
        # A start that met a dying broker may wait for ever, too; it is made anew within the patience.
        "max_block_ms": min(patience_ms, int(COMMIT_S * 1000)),
        "batch_size": BATCH_BYTES,
        "linger_ms": 0,
        "max_request_size": MESSAGE_MAX_BYTES,
        "metrics_enabled": False,
    }


def reader_settings() -> dict[str, Any]:
    """Return what every consumer is made with, beside the settings of every client."""
    return {
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "max_poll_records": POLL_MAX_MESSAGES,
        "fetch_max_wait_ms": FETCH_WAIT_MS,
        "fetch_max_bytes": FETCH_MAX_BYTES,
        "max_partition_fetch_bytes": FETCH_MAX_BYTES,
        "metrics_enabled": False,
    }


def member_settings(group: str, member: str | None) -> dict[str, Any]:
    """Return what makes a consumer a member of a group."""
    return {
        "group_id": group,
        "group_instance_id": member,
        "max_poll_interval_ms": POLL_INTERVAL_MS,
        "session_timeout_ms": SESSION_TIMEOUT_MS,
        "heartbeat_interval_ms": HEARTBEAT_MS,
    }


def topic_settings(config: BusConfig, topic: str) -> dict[str, Any]:
    """Return how a topic is made: cut by age and size, but what is remembered is kept, the newest of each key."""
    settings: dict[str, Any] = {"max.message.bytes": MESSAGE_MAX_BYTES, "min.insync.replicas": 2 if config.replication > 2 else 1}
    if topic == MEMORY_TOPIC:
        settings |= {"cleanup.policy": "compact", "segment.bytes": SEGMENT_MIN_BYTES, "min.cleanable.dirty.ratio": 0.1}
    else:
        share_bytes = max(config.retention_bytes // config.partitions, SEGMENT_MIN_BYTES)
        segment_bytes = min(max(share_bytes // 4, SEGMENT_MIN_BYTES), SEGMENT_MAX_BYTES)
        settings |= {"retention.ms": config.retention_s * 1000, "retention.bytes": share_bytes, "segment.bytes": segment_bytes}
    return {
        "num_partitions": config.partitions,
        "replication_factor": config.replication,
        "configs": {name: str(value) for name, value in settings.items()},
    }
