"""The README's table of who waits for how long says what the constants say, and they fit into one another."""

import re
from pathlib import Path

from indexer import api, patience, web
from indexer.leadership import BEATS_PER_LEASE
from indexer.registry.deadlines import DEADLINES as REGISTRY
from sidecar import forward, handlers, intake, keys, tiers, upstream
from sidecar.client import exchange
from sidecar.settings import Settings
from sidecar.store.servers import DEADLINES as REDIS

README = (Path(__file__).parent.parent / "README.md").read_text()


def rows() -> list[tuple[str, str]]:
    """The third and the second column, as they are written."""
    table = README.partition("**Who waits for what, and for how long at most**")[2].partition("\n\n")[2]
    cells = [line.strip("|").split("|") for line in table.partition("\n\n")[0].splitlines()[2:]]
    return [(who.strip(), seconds.strip()) for who, _, seconds, _ in cells]


def test_the_table_has_the_constants() -> None:
    write = forward.DEADLINES
    assert [seconds for _, seconds in rows()] == [
        "0",
        f"{tiers.STORE_DEADLINE_S:g}",
        f"{handlers.WAIT_S:g}",
        f"{write.connect_s:g}; {write.exchange_s:g}; {write.answer_s:g}",
        f"{patience.ANSWER_S:g}",
        f"{web.LOOK_S:g}",
        f"{api.PUBLISHED_WITHIN_S:g}",
        f"{intake.BODY_S:g}",
        f"{upstream.CONNECT_S:g}; `upstream.timeout_s`",
        f"{REDIS.connect_s:g}; {REDIS.answer_s:g}",
        f"{REGISTRY.connect_s:g}; {REGISTRY.statement_s:g}",
        f"{REGISTRY.idle_s:g}",
        "`indexer.lease_s`",
        "`source.timeout_s`",
        f"{keys.FETCH_S:g}",
        f"{exchange.QUESTION_S:g}; {exchange.LONG_S:g}",
    ]
    assert re.search(r"it stops leading, a third of its lease later", README)
    assert BEATS_PER_LEASE == 3


def test_each_deadline_leaves_time_for_those_within_it() -> None:
    """So that a caller hears the reason, and not that there was none."""
    # A look at the registry that is given up takes the driver of PostgreSQL two seconds more.
    assert forward.DEADLINES.exchange_s > patience.ANSWER_S + api.PUBLISHED_WITHIN_S + 2
    assert forward.DEADLINES.exchange_s < forward.DEADLINES.answer_s < exchange.LONG_S
    assert web.LOOK_S + 2 < patience.ANSWER_S
    assert REGISTRY.connect_s < patience.ANSWER_S
    assert Settings().indexer.lease_s / BEATS_PER_LEASE >= REGISTRY.connect_s
