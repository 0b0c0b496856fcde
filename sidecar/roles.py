"""Who may do what: the roles of a caller, and the gate that a route has. Pure; knows no token, no index, no server.

A role is "role:context" in the claim `roles` of a token: the context is the uuid of a customer, compared as a text, or
`*` for every one. What is not of this form gives nothing.

1. A route states its `Gate`: the access that it takes, and whose: of the customer that the path names, or of the
   customer of the catalog that it names, or of nobody in particular.
2. `Caller.may` tells whether somebody has that access; `refused` is what they are told if not.
3. What depends on more than the path (a list, other catalogs in a body) asks `caller_of(request)` again, in the
   question of its route. Without tokens that is EVERYBODY, who may do everything.
"""

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aiohttp import web

from sidecar.parameters import Refusal

EVERY: Final = "*"
ADMINS: Final = frozenset({"enterprise_admin", "enterprise_catalog_admin", "enterprise_openedx_operator"})
NOT_YOURS: Final = "You do not have permission to perform this action."


class Access(Enum):
    """What a route takes. The first three are had for a customer, the others at all."""

    LEARNER = auto()
    ADMIN = auto()
    # To see, make and change catalogs: what admins may, and those who set customers up.
    PROVISIONING = auto()
    # To see a list of catalogs, which shows the caller's own; staff gets an empty one.
    LISTING = auto()
    # To see a list of queries, which is whole or, for staff, empty; to find one's own, and hash filters.
    ALL_QUERIES = auto()
    QUERIES = auto()
    STAFF = auto()
    AUTHENTICATED = auto()
    SUPERUSER = auto()


HOLDERS: Final[Mapping[Access, frozenset[str]]] = MappingProxyType(
    {
        Access.LEARNER: ADMINS | {"enterprise_learner"},
        Access.ADMIN: ADMINS,
        Access.PROVISIONING: ADMINS | {"enterprise_provisioning_admin"},
    }
)
_MISSING: Final[Mapping[Access, str]] = MappingProxyType(
    {
        Access.LEARNER: "MISSING: catalog.has_learner_access",
        Access.ADMIN: "MISSING: catalog.has_admin_access",
        Access.PROVISIONING: "MISSING: catalog.has_admin_access",
    }
)


class Whose(Enum):
    """Of which customer an access has to be."""

    CATALOG = auto()  # `uuid` in the path is a catalog, and it is its customer.
    CUSTOMER = auto()  # `uuid` in the path is the customer, in the very spelling that a role names.
    NOBODY = auto()  # There is none: what takes one is the superuser's alone.


class Gate(NamedTuple):
    """The access that a route takes, but for methods that take another; `whose` is the same for all."""

    access: Access
    whose: Whose = Whose.NOBODY
    methods: Mapping[str, Access] = MappingProxyType({})

    def takes(self, method: str) -> Access:
        """The access that a method takes."""
        return self.methods.get(method, self.access)


# Of a route that states none: nothing is open because it was forgotten.
CLOSED: Final = Gate(Access.SUPERUSER)


class Caller:
    """Somebody who asks: what they are called, and what they may do."""

    __slots__ = ("_contexts", "_staff", "_superuser", "name")

    def __init__(self, name: str, roles: object = (), *, staff: bool = False, superuser: bool = False) -> None:
        self.name = name
        self._staff = staff
        self._superuser = superuser
        entries = roles if isinstance(roles, list | tuple) else ()
        # Nobody is called what could not be written into a database or an answer.
        held = [entry.partition(":")[::2] for entry in entries if isinstance(entry, str) and entry.isprintable()]
        self._contexts = {
            access: frozenset(context for role, context in held if context and role in holders)
            for access, holders in HOLDERS.items()
        }

    @property
    def contexts(self) -> int:
        """How many contexts are held, over all accesses."""
        return sum(map(len, self._contexts.values()))

    @classmethod
    def claimed(cls, claims: Mapping[str, Any]) -> "Caller":
        """The caller of a verified token."""
        return cls(
            str(claims["preferred_username"]),
            claims.get("roles"),
            staff=claims.get("administrator") is True,
            superuser=claims.get("superuser") is True,
        )

    def may(self, access: Access, customer: str | None = None) -> bool:
        """Whether the caller has an access, for a customer if it is one that is had for customers."""
        if self._superuser:
            return True
        contexts = self._contexts.get(access)
        if contexts is not None:
            return bool(customer) and (customer in contexts or EVERY in contexts)
        if access is Access.LISTING:
            return self._staff or bool(self._contexts[Access.PROVISIONING])
        if access is Access.QUERIES:
            return bool(self._contexts[Access.ADMIN])
        if access is Access.ALL_QUERIES:
            return self._staff or EVERY in self._contexts[Access.ADMIN]
        return access is Access.AUTHENTICATED or (access is Access.STAFF and self._staff)

    def customers(self, access: Access) -> frozenset[str] | None:
        """The customers that the caller has an access for; None: every one."""
        contexts = self._contexts[access]
        return None if self._superuser or EVERY in contexts else contexts

    def require(self, access: Access, customer: str | None = None) -> None:
        """Raises the Refusal that says what is missing."""
        if not self.may(access, customer):
            raise refused(access)


EVERYBODY: Final = Caller("", superuser=True)
_CALLER: Final = web.RequestKey("caller", Caller)


def caller_of(request: web.Request) -> Caller:
    """Who asks; EVERYBODY where no tokens are."""
    caller: Caller = request.get(_CALLER, EVERYBODY)
    return caller


def remember(request: web.Request, caller: Caller) -> None:
    """Keeps who asks with the request."""
    request[_CALLER] = caller


def refused(access: Access) -> Refusal:
    """What somebody is told who has no such access."""
    return Refusal(403, {"detail": _MISSING.get(access, NOT_YOURS)})
