"""The soak's own parts: a judge that cannot find anything would be none, and neither would be a full disk with room."""

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from indexer.source.file import read_corpus, search
from tests.fakes import Json
from tests.soak.__main__ import compiled, is_good
from tests.soak.judge import Claim, Judge, Register
from tests.soak.model import FRESH_ORGS, ORGS, Named, Value, corpus, courses_of, has, runs_key, shown
from tests.soak.tally import Tally
from tests.soak.traffic import Traffic
from tests.soak.wire import Door, NoAnswer, Reply
from tests.soak.writes import put_content

A, B = ORGS[:2]
CATALOG = Named("m0", "Movers0")
OTHER = Named("m1", "Movers0")
NEW = Named("n1", "Newcomers", fresh=True)
ASKED = "asked"


def judge_of(*made: tuple[Named, Value]) -> Judge:
    """A judge of catalogs that were made by the generations 1, 2, …, with content of version 0."""
    judge = Judge(contents={org: Register(org) for org in (*ORGS, *FRESH_ORGS)})
    for generation, (named, value) in enumerate(made, 1):
        judge.introduce(named)
        judge.written(named.uuid, judge.write(named.uuid, value), generation, ASKED)
    return judge


def one(judge: Judge) -> Judge:
    """Closes everything; for `found`."""
    judge.close(judge.open())
    return judge


def found(judge: Judge) -> list[str]:
    """The kinds of what was found."""
    return [violation.kind for violation in one(judge).violations]


def title(judge: Judge, generation: int, text: str, named: Named = CATALOG) -> None:
    judge.see(generation)
    judge.titles(generation, [(named.uuid, text)], ASKED, all_of_them=False)


def contains(*keys: str, named: Named = CATALOG) -> Claim:
    return Claim((named.uuid,), keys, "one")


def test_answers_as_they_should_be_are_right() -> None:
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    title(judge, 1, "m0 w1")
    step = judge.write(CATALOG.uuid, Value("m0 w2", B))
    title(judge, 2, "m0 w1")
    judge.claim(2, contains(f"{A}+base0"), "yes", ASKED)
    judge.written(CATALOG.uuid, step, 4, ASKED)
    title(judge, 3, "m0 w2")
    judge.claim(3, contains(f"{A}+base0"), "no", ASKED)
    judge.claim(3, contains(runs_key(f"{B}+base0")), "yes", ASKED)
    removed = judge.write(CATALOG.uuid, None)
    judge.written(CATALOG.uuid, removed, 5, ASKED)
    judge.claim(5, Claim((CATALOG.uuid,), (), "one"), "unknown catalog", ASKED)
    assert found(judge) == []
    assert judge.counts == {"judged": 4, "judged exactly": 4}


def test_a_title_that_nobody_wrote_is_wrong() -> None:
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    title(judge, 1, "m0 w7")
    assert found(judge) == ["wrong"]


def test_a_false_for_what_is_contained_is_wrong_and_one_that_may_be_is_not() -> None:
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.claim(1, contains(f"{A}+base0"), "no", ASKED)
    assert found(judge) == ["wrong"]
    # While a write is under way nobody can say of which side of it a generation is.
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.write(CATALOG.uuid, Value("m0 w2", B))
    judge.claim(2, contains(f"{A}+base0"), "no", ASKED)
    judge.claim(3, contains(f"{A}+base0"), "yes", ASKED)
    assert found(judge) == []


def test_what_becomes_known_later_judges_what_was_claimed_before() -> None:
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.write(CATALOG.uuid, Value("m0 w2", B))
    judge.claim(3, contains(f"{A}+base0"), "no", ASKED)
    title(judge, 5, "m0 w1")
    assert found(judge) == ["wrong"]


def test_two_answers_of_one_generation_that_differ_are_wrong() -> None:
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.write(CATALOG.uuid, Value("m0 w2", A))
    title(judge, 3, "m0 w1")
    title(judge, 3, "m0 w2")
    assert found(judge) == ["wrong"]
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.contents[A].step(after=1)
    judge.claim(3, contains(f"{A}+v1"), "yes", ASKED)
    judge.claim(3, contains(f"{A}+v1"), "no", ASKED)
    assert found(judge) == ["wrong"]


def test_a_catalog_that_goes_back_is_wrong_in_whichever_order_it_is_seen() -> None:
    for order in ((3, 4), (4, 3)):
        judge = judge_of((CATALOG, Value("m0 w1", A)))
        judge.write(CATALOG.uuid, Value("m0 w2", A))
        for generation in order:
            title(judge, generation, "m0 w2" if generation == 3 else "m0 w1")
        assert found(judge) == ["wrong"]


def test_content_that_goes_back_or_comes_from_the_future_is_wrong() -> None:
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.see(3)
    judge.contents[A].step(after=3)
    judge.content(3, A, 1, ASKED)
    assert found(judge) == ["wrong"]
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.contents[A].step(after=1)
    judge.content(2, A, 1, ASKED)
    judge.content(5, A, 0, ASKED)
    assert found(judge) == ["wrong"]


def test_a_page_of_two_versions_or_of_another_organisation_is_wrong() -> None:
    for seen in (None, (B, 0)):
        judge = judge_of((CATALOG, Value("m0 w1", A)))
        judge.content_of(1, CATALOG.uuid, seen, ASKED)
        assert found(judge) == ["wrong"]


def test_an_acknowledged_write_that_a_generation_does_not_show_is_lost() -> None:
    """Whether the generation is seen before the acknowledgement or after it."""
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.written(CATALOG.uuid, judge.write(CATALOG.uuid, Value("m0 w2", A)), 3, ASKED)
    title(judge, 4, "m0 w1")
    assert found(judge) == ["lost"]
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    step = judge.write(CATALOG.uuid, Value("m0 w2", A))
    title(judge, 4, "m0 w1")
    judge.written(CATALOG.uuid, step, 3, ASKED)
    assert found(judge) == ["lost"]


def test_a_catalog_that_was_made_and_is_unknown_is_lost_and_one_that_was_removed_and_is_there_too() -> None:
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.titles(1, [], ASKED, all_of_them=True)
    assert found(judge) == ["lost"]
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    judge.written(CATALOG.uuid, judge.write(CATALOG.uuid, None), 2, ASKED)
    judge.dismiss(CATALOG.uuid)
    title(judge, 3, "m0 w1")
    assert found(judge) == ["lost"]


def test_a_write_of_which_nobody_can_tell_may_be_made_or_not_and_not_first_made_and_then_not() -> None:
    for seen, expected in (("m0 w1", []), ("m0 w2", ["wrong"])):
        judge = judge_of((CATALOG, Value("m0 w1", A)))
        judge.write(CATALOG.uuid, Value("m0 w2", A))
        title(judge, 3, seen)
        assert found(judge) == []
        title(judge, 4, "m0 w1")
        assert found(judge) == expected


def test_a_write_that_was_not_to_change_anything_and_did_is_wrong() -> None:
    for told_first in (True, False):
        judge = judge_of((CATALOG, Value("m0 w1", A)))
        step = judge.write(CATALOG.uuid, Value("m0 w2", A))
        if told_first:
            judge.refused(CATALOG.uuid, step, ASKED)
        title(judge, 3, "m0 w2")
        if not told_first:
            judge.refused(CATALOG.uuid, step, ASKED)
        assert found(judge) == ["wrong"]


def test_never_pulled_is_right_of_a_new_catalog_until_it_was_pulled() -> None:
    judge = judge_of((CATALOG, Value("m0 w1", A)), (NEW, Value("n1 w1", FRESH_ORGS[0], 1)))
    judge.claim(2, contains(f"{FRESH_ORGS[0]}+base0", named=NEW), "never pulled", ASKED)
    judge.claim(4, contains(f"{FRESH_ORGS[0]}+base0", named=NEW), "yes", ASKED)
    assert found(judge) == []
    judge.claim(5, contains(f"{FRESH_ORGS[0]}+base0", named=NEW), "never pulled", ASKED)
    judge.claim(5, contains(f"{A}+base0"), "never pulled", ASKED)
    assert found(judge) == ["wrong", "wrong"]


def test_of_a_customer_any_catalog_may_have_a_key_and_one_that_was_never_pulled_leaves_it_open() -> None:
    both, key = (CATALOG.uuid, OTHER.uuid), f"{B}+base0"
    judge = judge_of((CATALOG, Value("m0 w1", A)), (OTHER, Value("m1 w1", B)))
    judge.claim(2, Claim(both, (key,), "any"), "yes", ASKED)
    judge.claim(2, Claim(both, (f"{ORGS[2]}+base0",), "any"), "no", ASKED)
    assert found(judge) == []
    judge.claim(3, Claim(both, (key,), "any"), "no", ASKED)
    assert found(judge) == ["wrong"]
    both = (CATALOG.uuid, NEW.uuid)
    for asked, expected in (("any", ["wrong"]), ("all", [])):
        judge = judge_of((CATALOG, Value("m0 w1", A)), (NEW, Value("n1 w1", FRESH_ORGS[0], 1)))
        claim = Claim(both, (f"{A}+base0",), "any" if asked == "any" else "all")
        judge.claim(2, claim, "never pulled", ASKED)
        assert found(judge) == expected


def test_what_the_model_says_of_the_content_is_what_a_corpus_has() -> None:
    for version in (0, 1):
        text = corpus(version)
        documents = [c["full"] for c in text["courses"] if c["full"]["key"].startswith(f"{A}+")]
        assert shown(documents) == (A, version)
        assert shown(documents[1:]) is None
        keys = {document["key"] for document in documents}
        assert (
            keys == set(courses_of(A, version)) == {key for key in courses_of(A, 1) + courses_of(A, 0) if key in keys}
        )
        assert all(has(A, version, key) and has(A, version, runs_key(key)) for key in keys)
    assert not has(A, 0, f"{A}+odd")
    assert not has(A, 0, f"{A}+v1")
    assert not has(A, 0, f"{B}+base0")


def test_a_corpus_can_be_pulled_by_the_filters_of_the_model(tmp_path: Path) -> None:
    put_content(tmp_path / "corpus.json", 3)
    read = read_corpus((tmp_path / "corpus.json").read_bytes(), "here")
    for value in (Value("a", A), Value("b", A, 7)):
        pulled = search(read, value.content_filter)
        assert {item.key for item in pulled.members} == set(courses_of(A, 3))


def test_a_failure_is_explained_by_a_fault_of_its_kind_of_that_sidecar_at_that_time_alone() -> None:
    now_s = iter([10.0, 20.0])
    tally = Tally()
    with tally.fault("it was killed", lambda: next(now_s), no_answer=[1]):
        assert not tally.is_calm(15.0)
        tally.fail("no answer", 1, "no answer", ASKED, 9.0, 11.0)
    tally.fail("no answer", 1, "no answer", ASKED, 19.0, 21.0)
    assert tally.unexplained == []
    tally.fail("no answer", 1, "no answer", ASKED, 21.0, 22.0)
    tally.fail("no answer", 0, "no answer", ASKED, 11.0, 12.0)
    tally.fail("write", 1, "503", ASKED, 11.0, 12.0)
    assert len(tally.unexplained) == 3
    assert tally.failures == {"no answer: it was killed": 2, "no answer: unexplained": 2, "503: unexplained": 1}
    assert tally.is_calm(21.0)


class Scripted(Door):
    """A door behind which everything is answered with one reply, or with none."""

    def __init__(self, reply: Reply | None, before: int = 0) -> None:
        super().__init__(0, path="/nowhere")
        self.reply = reply
        self.before = before

    async def ask(
        self, method: str, target: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[Reply, int]:
        if self.reply is None:
            raise NoAnswer("gone", sent=True)
        return self.reply, self.before


def reply(status: int, body: bytes, generation: int = 9) -> Reply:
    headers = {"x-catalog-generation": str(generation)} if generation else {}
    return Reply(status, headers, body)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        reply(500, b'{"detail":"A server error occurred."}'),
        reply(503, b'{"detail":"It cannot be told yet: no generation is loaded yet."}', 0),
        reply(503, b'{"detail":"It cannot be told yet: object 00 is in no tier."}'),
    ],
)
async def test_a_failure_without_a_fault_is_unexplained_and_fails_the_soak(answer: Reply | None) -> None:
    judge = judge_of((CATALOG, Value("m0 w1", A)))
    traffic = Traffic([Scripted(answer)], judge, Tally(), random.Random(0), time.monotonic, [0])
    await traffic.ask(traffic.question(), traffic.doors[0], time.monotonic())
    assert len(traffic.tally.unexplained) == 1
    assert not is_good({"wrong": 0, "lost": 0, "unexplained": 1, "did_not_come_back": 0})


async def test_an_answer_that_is_behind_its_connection_or_a_write_through_its_sidecar_is_wrong() -> None:
    for before, floor in ((10, 0), (0, 10)):
        judge = judge_of((CATALOG, Value("m0 w1", A)))
        door = Scripted(reply(200, b"{}"), before)
        traffic = Traffic([door], judge, Tally(), random.Random(0), time.monotonic, [floor])
        await traffic.get(door, "one", "/", time.monotonic())
        assert found(judge) == ["wrong"]


async def test_answers_are_judged_by_what_was_asked() -> None:
    """Every kind of question, answered with nonsense."""
    for number in range(60):
        judge = judge_of((CATALOG, Value("m0 w1", A)))
        answer = reply(200, b'{"results": [], "count": 3, "catalog_list": ["x"], "title": "?"}')
        answer = Reply(200, answer.headers, answer.body.replace(b"}", b', "contains_content_items": null}'))
        traffic = Traffic([Scripted(answer)], judge, Tally(), random.Random(number), time.monotonic, [0])
        question = traffic.question()
        await traffic.ask(question, traffic.doors[0], time.monotonic())
        assert "wrong" in found(judge), question.kind


async def test_a_kept_connection_that_was_closed_costs_a_read_nothing_and_one_that_breaks_off_counts(
    tmp_path: Path,
) -> None:
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The first two connections answer once and are closed; the third breaks off within an answer."""
        nonlocal served
        served += 1
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nX-Catalog-Generation: 7\r\nContent-Length: 2\r\n\r\n"
        writer.write(head + (b"ok" if served < 3 else b"o"))
        await writer.drain()
        writer.close()

    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(serve, path)
    door = Door(0, path=path)
    async with server:
        for _ in range(2):
            answer, _ = await door.ask("GET", "/")
            assert (answer.status, answer.generation, answer.body) == (200, 7, b"ok")
        assert door.again == 1
        with pytest.raises(NoAnswer):
            await door.ask("GET", "/")
        door.close()


FULL = """
import os, sqlite3, sys
path = sys.argv[1]
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("CREATE TABLE t (x)")
open(path + ".full", "w").close()
for name, work in {
    "sqlite": lambda: connection.execute("INSERT INTO t VALUES (1)"),
    "write": lambda: os.write(file, b"x"),
    "truncate": lambda: os.ftruncate(file, 4096),
    "sync": lambda: os.fsync(file),
    "elsewhere": lambda: open(path[:-1], "w").write("x"),
}.items():
    file = os.open(path + "-more", os.O_CREAT | os.O_RDWR)
    try:
        work()
        print(name, "done")
    except (OSError, sqlite3.OperationalError) as error:
        print(name, error)
print(connection.execute("SELECT count(*) FROM t").fetchall())
os.unlink(path + ".full")
connection.execute("INSERT INTO t VALUES (1)")
print(connection.execute("SELECT count(*) FROM t").fetchall())
"""


def test_a_full_disk_reaches_python_and_its_sqlite_and_ends_with_its_flag(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    environment: Json = {**os.environ, "LD_PRELOAD": str(compiled(tmp_path)), "SOAK_DISKS": f"/elsewhere:{path}"}
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], env=environment, check=True, capture_output=True, text=True
    )
    assert ran.stdout.splitlines() == [
        "sqlite database or disk is full",
        "write [Errno 28] No space left on device",
        "truncate [Errno 28] No space left on device",
        "sync [Errno 28] No space left on device",
        "elsewhere done",
        "[(0,)]",
        "[(1,)]",
    ]
