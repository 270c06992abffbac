"""Settings of the property tests: no deadline, because the first call of a kernel compiles it."""

from hypothesis import HealthCheck, settings

settings.register_profile("weft", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile("weft")
