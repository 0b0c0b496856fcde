"""Runs edx-enterprise's client, unmodified, in its own environment: a question a line in, an answer a line out.

    {"method": NAME, "arguments": [...], "named": {...}, "claims": {...}}
    {"value": ...} or {"raised": CLASS, "status": STATUS or null}; both with "logged": the errors that were logged

What has attributes in Django is sent as {"model": {...}}. The environment variable LMS has what its settings say: the
`url` of the service, and the `secret` of tokens. The first line out is a list of the methods that the client has.
"""

import json
import logging
import os
import sys
from types import SimpleNamespace
from typing import Any

import django
from django.conf import settings

settings.configure(
    ENTERPRISE_CATALOG_INTERNAL_ROOT_URL=json.loads(os.environ["LMS"])["url"],
    OAUTH_ID_TOKEN_EXPIRATION=3600,
    SECRET_KEY="of-this-test",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    LOGGING_CONFIG=None,
    USE_TZ=True,
)
django.setup()

# Only now: both read the settings when they are imported.
from enterprise.api_client.enterprise_catalog import (  # noqa: E402
    EnterpriseCatalogApiClient,
    NoAuthEnterpriseCatalogClient,
)
from requests.exceptions import RequestException  # noqa: E402


class Errors(logging.Handler):
    """Keeps the levels of what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.levels: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.levels.append(record.levelname)


def model(value: Any) -> Any:
    """A value, with models where the line has them."""
    if isinstance(value, dict) and list(value) == ["model"]:
        made = SimpleNamespace(**value["model"])
        if hasattr(made, "enterprise_customer_catalogs"):
            catalogs = [model(catalog) for catalog in made.enterprise_customer_catalogs]
            made.enterprise_customer_catalogs = SimpleNamespace(all=lambda: catalogs)
        return made
    return [model(one) for one in value] if isinstance(value, list) else value


def outcome(question: dict[str, Any]) -> dict[str, Any]:
    """What a method returned or raised."""
    client = EnterpriseCatalogApiClient(user=SimpleNamespace(claims=question["claims"]))
    asked = NoAuthEnterpriseCatalogClient() if question["method"] == "get_health" else client
    try:
        value = getattr(asked, question["method"])(*model(question["arguments"]), **question["named"])
    except RequestException as error:
        return {"raised": type(error).__name__, "status": getattr(error.response, "status_code", None)}
    return {"value": value}


def main() -> None:
    """Answers until there are no more questions."""
    errors = Errors()
    logging.getLogger("enterprise").addHandler(errors)
    own = [name for name in vars(EnterpriseCatalogApiClient) if name[0] != "_" and name[0].islower()]
    print(json.dumps(own), flush=True)
    for line in sys.stdin:
        errors.levels.clear()
        print(json.dumps(outcome(json.loads(line)) | {"logged": errors.levels}), flush=True)


if __name__ == "__main__":
    main()
