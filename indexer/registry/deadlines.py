"""How long a database server may be silent, and what it does with a client that is: nothing here waits.

A statement whose answer does not come ends its connection. What the server still holds for a client that has gone
without a goodbye (its machine died, its network was cut, it was paused) it lets go of by itself: TCP alone notices
after two hours, and a write transaction holds the row that every other writer waits for, and the next leader with them.
"""

import asyncio
from functools import partial
from importlib import import_module
from typing import Any, Final, NamedTuple


class Deadlines(NamedTuple):
    """Seconds, for a registry on a server.

    connect_s     until there is a connection to it; also how long to wait for one that others use.
    statement_s   for the answer to one statement: the longest reads all documents' records of a large registry.
    idle_s        that a write transaction may wait for its next statement, until the server takes it back.
    migrate_s     instead of `statement_s` where tables are changed, or another process that changes them is waited for.
    """

    connect_s: float = 5.0
    statement_s: float = 30.0
    idle_s: float = 30.0
    migrate_s: float = 600.0


DEADLINES: Final = Deadlines()


def driver_arguments(backend: str, deadlines: Deadlines) -> dict[str, Any]:
    """What the driver of a server is told of them."""
    if backend == "postgresql":
        return {"timeout": deadlines.connect_s, "command_timeout": deadlines.statement_s}
    return {"async_creator_fn": partial(_connected, deadlines.connect_s), "read_timeout": deadlines.statement_s}


async def _connected(within_s: float, **arguments: Any) -> Any:
    """A connection of asyncmy's, whose own limit ends before the server has said who it is."""
    connect = import_module("asyncmy").connect
    async with asyncio.timeout(within_s):
        return await connect(**arguments)
