"""SONiC high-frequency telemetry: IPFIX messages of counters sampled every 10 us to some ms."""
