"""The settings of ``[analyze.alerts]``."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlertsConfig:
    """Which rules run, and how many alerts are stored."""

    # Folder with one TOML file per user rule; a rule with the name of a default rule replaces it.
    rules: str = ""
    # Names of default rules that do not run.
    disabled: tuple[str, ...] = ()
    # Traffic that thresholds expect: "idle", links that are idle most of the time; or "training", a burst in every iteration.
    profile: str = "idle"
    # Alerts that one rule may have pending or firing; further ones are dropped and counted.
    alerts_per_rule_max: int = 500
    # Resolved alerts that stay in the table: the newest.
    resolved_kept_max: int = 10_000
