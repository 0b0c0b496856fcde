"""Hypothesis judges answers here and not their speed, which a busy machine changes."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
