"""Every error that can leave the contract, the store or a lookup: a sentence each, and the HTTP status it becomes.

Foreign exceptions (msgpack, zstd, pyroaring, sqlite, redis) stop at the one file that touches the foreign thing and
leave it as one of these. Nothing else is raised on purpose between the two packages.
"""


class CatalogError(Exception):
    """Base of all of these; `status` is what the HTTP API answers if one reaches a handler."""

    status = 500


class ContractError(CatalogError):
    """Raised when bytes do not follow the contract; the object is not used, and never half of it."""


class NotAnObject(ContractError):
    """Raised when the magic, the flags or the length of a header is wrong: cut, padded or something else entirely."""


class UnknownFormat(ContractError):
    """Raised for a format version that this build does not know, most likely one from the future."""


class WrongDigest(ContractError):
    """Raised when bytes do not hash to the digest under which they were stored."""


class WrongType(ContractError):
    """Raised when an object is sound, but of another type than the reference to it says."""


class Malformed(ContractError):
    """Raised when a payload is not what its type says: wrong shape, order, range, or a reference to nowhere."""


class StoreError(CatalogError):
    """Raised when the store cannot be read or written; nothing is known about what it holds."""

    status = 503


class ObjectMissing(StoreError):
    """Raised when a reference leads to an object that no tier has: evicted, swept too early, or an older replica."""


class PointerDamaged(StoreError):
    """Raised when what lies where the root pointer should be is none: bytes were flipped, or somebody wrote there."""


class Fenced(StoreError):
    """Raised when the root pointer would move to a lower (epoch, generation): this publisher was deposed."""


class PointerConflict(StoreError):
    """Raised when the same (epoch, generation) is published with another digest: two publishers believe they lead."""


class UnknownCatalog(CatalogError):
    """Raised when no catalog has the uuid that was asked for."""

    status = 404


class NotPulledYet(CatalogError):
    """Raised when a catalog is known but its query was never pulled: the answer is neither yes nor no."""

    status = 503


class NotReady(CatalogError):
    """Raised when no verified generation is loaded at all."""

    status = 503
