"""Settings of Kafka's clients and topics: limits and times."""

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
# A member that delays a rebalance for longer is removed.
POLL_INTERVAL_MS = 60_000
REQUEST_TIMEOUT_MS = 10_000
RECONNECT_MAX_MS = 1_000
# The broker rejects a transaction until the one before it has ended.
RETRY_BACKOFF_MS = 10
# A wrong address is reported soon; a broker that has answered once may be away for ``patience_s``.
START_PATIENCE_S = 30.0
SEGMENT_MIN_BYTES = 32 * 1024**2
SEGMENT_MAX_BYTES = 256 * 1024**2

# A commit during a broker's crash may wait without end inside the client, even when the broker is back: a new client takes over.
COMMIT_S = 20.0


def client_settings(config: BusConfig) -> dict[str, Any]:
    """Return the settings of every client.

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
    """Return the further settings of the producer ``name``."""
    patience_ms = int(config.patience_s * 1000)
    return {
        "transactional_id": PRODUCER_PREFIX + name,
        "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
        "delivery_timeout_ms": int(COMMIT_S * 1000),
        # A start during a broker's crash may wait without end, too: it is repeated within ``patience_s``.
        "max_block_ms": min(patience_ms, int(COMMIT_S * 1000)),
        "batch_size": BATCH_BYTES,
        "linger_ms": 0,
        "max_request_size": MESSAGE_MAX_BYTES,
        "metrics_enabled": False,
    }


def reader_settings() -> dict[str, Any]:
    """Return the further settings of every consumer."""
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
    """Return the further settings of a member of a group."""
    return {
        "group_id": group,
        "group_instance_id": member,
        "max_poll_interval_ms": POLL_INTERVAL_MS,
        "session_timeout_ms": SESSION_TIMEOUT_MS,
        "heartbeat_interval_ms": HEARTBEAT_MS,
    }


def topic_settings(config: BusConfig, topic: str) -> dict[str, Any]:
    """Return the configuration of a topic: retention by age and size, or compaction for remembered values."""
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
