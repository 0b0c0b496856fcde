"""What several of these tests need."""

import pytest

from sidecar.health import DiskStatus, Health, StoreStatus, report


@pytest.fixture
def health() -> Health:
    """The report of a process that serves nothing yet."""
    return report(None, StoreStatus(), DiskStatus("ok"), memory=(0, 1, 0), freshness_s=1, now_ms=0)
