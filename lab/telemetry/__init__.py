"""Telemetry of the virtual fabric: live on the wire, as recordings, or as rows."""
