"""What property tests of the ground share: no deadline, since the first call of a kernel compiles it."""

from hypothesis import HealthCheck, settings

settings.register_profile("weft", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile("weft")
