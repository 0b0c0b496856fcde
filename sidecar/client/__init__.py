"""The client that LMS and ecommerce code imports instead of calling HTTP by hand; nothing of the sidecar itself.

    errors, exchange   what a call can end with; the words of a request and an answer      } pure
    operations         what can be asked: requests, and what their answers come to         }
    connections, blocking        CatalogClient, with the standard library alone
    asynchronous                 AsyncCatalogClient, with aiohttp: import it from there

Importing this imports nothing but the standard library, and the distribution needs nothing else unless it is asked to.
"""

from sidecar.client.blocking import CatalogClient
from sidecar.client.errors import BadRequest, CannotTell, ClientError, Forbidden, NotAuthenticated, NotFound
from sidecar.client.exchange import Basis

__all__ = [
    "BadRequest",
    "Basis",
    "CannotTell",
    "CatalogClient",
    "ClientError",
    "Forbidden",
    "NotAuthenticated",
    "NotFound",
]
