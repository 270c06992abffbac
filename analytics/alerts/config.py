"""What a user may set under ``[analyze.alerts]``."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlertsConfig:
    """Which rules run, and how many alerts they may hold."""

    # Folder with one TOML file per rule of the user's own; a rule named like a default one takes its place.
    rules: str = ""
    # Names of default rules that do not run.
    disabled: tuple[str, ...] = ()
    # Label sets that one rule may have pending or firing; further ones are dropped and counted.
    alerts_per_rule_max: int = 500
    # Resolved alerts that stay in the table, newest first.
    resolved_kept_max: int = 10_000
