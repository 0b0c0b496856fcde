"""Every command, its exit code and its words. Commands run in this process; a few as processes of their own."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from indexer.catalog_body import read_catalog
from indexer.cli import main
from sidecar import __version__
from sidecar.contract.objects import Sealed
from sidecar.contract.records import Metadata, seal_record
from sidecar.contract.words import ContentType, query_hash
from sidecar.store.urls import open_store
from tests.fakes import catalog_body, course, customer, uuid_of
from tests.indexer.installation import Installation, cli, logging_as_before
from tests.neighbour import neighbour
from tests.sidecar.replayed import BODIES, GOLDEN

__all__ = ["cli", "logging_as_before"]

COURSES = {"content_type": "course"}
ROOT: Final = Path(__file__).parent.parent.parent


class TestCatalogs:
    @pytest.mark.parametrize(
        "wrapped", [lambda b: b, lambda b: [b], lambda b: {"catalogs": [b]}, lambda b: {"catalogs": [{"body": b}]}]
    )
    def test_are_added_from_any_of_the_forms(self, cli: Installation, wrapped: Any) -> None:
        body = wrapped(catalog_body("a", COURSES))
        assert cli.done("catalogs", "add", "-", input=json.dumps(body)) == "1 catalogs added, 0 were there already\n"

    def test_are_added_from_a_file(self, cli: Installation) -> None:
        (cli.path / "a.json").write_text(json.dumps(catalog_body("a", COURSES)))
        assert "1 catalogs added" in cli.done("catalogs", "add", str(cli.path / "a.json"))

    def test_are_added_once(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES))
        both = (catalog_body("a", COURSES), catalog_body("b", COURSES))
        assert cli.add(*both) == "1 catalogs added, 1 were there already\n"

    def test_are_all_added_or_none(self, cli: Installation) -> None:
        bodies = [catalog_body("a", COURSES), catalog_body("b", COURSES) | {"title": "", "enterprise_customer": "?"}]
        error = cli.refused("catalogs", "add", "-", input=json.dumps(bodies))
        assert error == (
            "<stdin>: catalog 2 of 2: title = '': This field may not be blank.; "
            "enterprise_customer = '?': Must be a valid UUID."
        )
        assert cli.done("catalogs", "list") == ""

    def test_of_another_body_are_refused_by_number(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES))
        error = cli.refused("catalogs", "add", "-", input=json.dumps(catalog_body("a", {})))
        assert error == (
            f"<stdin>: catalog 1 of 1: catalog {uuid_of('catalog a')} exists with another body; "
            "remove it first, or take another uuid"
        )

    @pytest.mark.parametrize("text", ["", "{", "nonsense", "[1,", "[" * 100_000, '{"catalogs": [{]}'])
    def test_that_are_no_json_are_refused(self, cli: Installation, text: str) -> None:
        assert cli.refused("catalogs", "add", "-", input=text).startswith("<stdin>: not JSON: ")

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_with_what_is_no_number_are_refused_by_its_name(self, cli: Installation, number: str) -> None:
        text = json.dumps(catalog_body("a", {"key": "?"})).replace('"?"', number)
        assert cli.refused("catalogs", "add", "-", input=text).startswith(f"<stdin>: not JSON: it has {number}, ")

    def test_with_half_a_character_in_the_filter_can_be_shown(self, cli: Installation) -> None:
        """JSON can spell half of a surrogate pair, which UTF-8 cannot."""
        body = catalog_body("a", {"key": "\ud800"}) | {"title": "Ä"}
        cli.add(body)
        (shown,) = json.loads(cli.done("catalogs", "list", "--json"))
        assert (shown["content_filter"], shown["title"]) == ({"key": "\ud800"}, "Ä")

    @pytest.mark.parametrize("text", ["1", '"a"', "null", "[[]]", "[null]", '{"catalogs": [7]}', '{"catalogs": 7}'])
    def test_that_are_no_objects_are_refused(self, cli: Installation, text: str) -> None:
        assert "catalog 1 of 1: " in cli.refused("catalogs", "add", "-", input=text)

    def test_from_a_file_that_does_not_exist_are_refused(self, cli: Installation) -> None:
        result = cli("catalogs", "add", str(cli.path / "none.json"))
        assert result.exit_code == 2
        assert "No such file" in result.stderr

    def test_can_be_said_to_be_older(self, cli: Installation) -> None:
        body = json.dumps(catalog_body("a", COURSES))
        cli.done("catalogs", "add", "-", "--created", "2020-01-31T12:00:00Z", input=body)
        assert cli("build").exit_code == 0
        record = json.loads(cli.done("dump", uuid_of("catalog a")))[0]
        assert record["created_ms"] == record["modified_ms"] == 1_580_472_000_000

    @pytest.mark.parametrize("time", ["yesterday", "", "1969-12-31T23:59:59Z", "0001-01-01"])
    def test_of_a_wrong_time_are_refused(self, cli: Installation, time: str) -> None:
        body = json.dumps(catalog_body("a", COURSES))
        assert cli.refused("catalogs", "add", "-", "--created", time, input=body).startswith(f"--created {time!r} is ")

    def test_are_listed_in_order_and_by_customer(self, cli: Installation) -> None:
        cli.add(catalog_body("b", COURSES, query_title="Everything"), catalog_body("a", {}, of="Other"))
        assert [line.split("  ") for line in cli.done("catalogs", "list").splitlines()] == [
            [uuid_of("catalog b"), uuid_of("Acme"), "Everything", "b"],
            [uuid_of("catalog a"), uuid_of("Other"), query_hash({}).hex(), "a"],
        ]
        for written in (uuid_of("Other"), uuid_of("Other").upper(), uuid_of("Other").replace("-", "")):
            assert uuid_of("catalog a") in cli.done("catalogs", "list", "--customer", written)
        assert cli.done("catalogs", "list", "--customer", uuid_of("nobody")) == ""
        assert cli.refused("catalogs", "list", "--customer", "Other") == "'Other' is not a uuid"

    def test_are_listed_as_json_that_can_be_added_elsewhere(self, cli: Installation, tmp_path: Path) -> None:
        cli.add(catalog_body("é", COURSES, query_title="t"), catalog_body("b", COURSES, of="Other"))
        listed = cli.done("catalogs", "list", "--json")
        assert [body["title"] for body in json.loads(listed)] == ["é", "b"]
        for body in json.loads(listed):
            read_catalog(body)
        (tmp_path / "other").mkdir()
        other = Installation(tmp_path / "other")
        other.done("catalogs", "add", "-", input=listed)
        assert other.done("catalogs", "list", "--json") == listed

    def test_are_removed_all_or_none(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES), catalog_body("b", COURSES))
        a, b, none = (uuid_of(f"catalog {name}") for name in ("a", "b", "none"))
        assert cli.refused("catalogs", "remove", a, none) == f"no catalog {none}"
        assert len(cli.done("catalogs", "list").splitlines()) == 2
        assert cli.refused("catalogs", "remove", "a") == "'a' is not a uuid"
        assert cli.done("catalogs", "remove", a.upper(), b.replace("-", ""), a) == "2 catalogs removed\n"
        assert cli.done("catalogs", "list") == ""


def test_the_version_is_said() -> None:
    said = CliRunner().invoke(main, ["--version"]).stdout
    assert said == f"catalog-indexer, version {__version__}\n"


class TestImport:
    def test_from_a_file_takes_over_what_is_new_and_says_so(self, cli: Installation) -> None:
        (cli.path / "a.json").write_text(json.dumps([catalog_body("a", COURSES)]))
        said = cli.done("import", "--from", str(cli.path / "a.json"))
        assert said == "1 catalogs taken over, 0 updated, 0 unchanged, 0 conflicts, 0 could not be taken over\n"
        said = cli.done("import", "--from", "-", input=json.dumps([catalog_body("a", COURSES)]))
        assert said == "0 catalogs taken over, 0 updated, 1 unchanged, 0 conflicts, 0 could not be taken over\n"

    def test_ends_with_1_if_something_was_left(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES))
        other = json.dumps([catalog_body("a", {}), catalog_body("b", COURSES) | {"title": ""}])
        result = cli("import", "--from", "-", "--json", input=other)
        report = json.loads(result.stdout)
        assert (result.exit_code, len(report["conflicts"]), len(report["not_taken"])) == (1, 1, 1)
        result = cli("import", "--from", "-", "--update", input=json.dumps([catalog_body("a", {})]))
        assert (result.exit_code, "1 updated" in result.stdout) == (0, True)

    def test_can_be_tried_before(self, cli: Installation) -> None:
        said = cli.done("import", "--from", "-", "--dry-run", input=json.dumps([catalog_body("a", COURSES)]))
        assert said.startswith("1 catalogs taken over, ")
        assert "nothing was written" in said
        assert cli.done("catalogs", "list") == ""

    @pytest.mark.parametrize(
        "origin, told",
        [
            ("none.json", "No such file or directory; name a file or the http:// URL of a service"),
            ("ftp://example.org", "--from: a service must be http://HOST"),
            ("http://me:hunter2@example.org", "--from: a service must be http://HOST"),
        ],
    )
    def test_from_nowhere_is_refused(self, cli: Installation, origin: str, told: str) -> None:
        error = cli.refused("import", "--from", origin)
        assert told in error
        assert "hunter2" not in error

    def test_from_a_file_that_is_no_json_is_refused(self, cli: Installation) -> None:
        assert cli.refused("import", "--from", "-", input="{").startswith("<stdin>: not JSON: ")

    def test_with_what_is_no_token_is_refused_and_does_not_show_it(self, cli: Installation) -> None:
        (cli.path / "token").write_text("JWT hunter2")
        origin = ("import", "--from", "http://127.0.0.1:1")
        for error in (
            cli.refused(*origin, "--token-file", str(cli.path / "token")),
            cli.refused(*origin, CATALOG_IMPORT_TOKEN="JWT hunter2"),
            cli.refused(*origin, "--token-file", str(cli.path / "none")),
        ):
            assert "hunter2" not in error
            assert "token" in error.lower()

    async def test_from_a_service_twice_changes_nothing_the_second_time(self, cli: Installation) -> None:
        cli.settings(source=f'path = "{GOLDEN}/corpus.json"')
        (cli.path / "other").mkdir()
        async with neighbour(cli.path / "other") as (_, proxy):
            first = await asyncio.to_thread(cli, "import", "--from", proxy.url, "--json", CATALOG_IMPORT_TOKEN="t0ken")
            again = await asyncio.to_thread(cli, "import", "--from", proxy.url)
        report = json.loads(first.stdout)
        assert (first.exit_code, report["taken"]) == (0, list(BODIES))
        assert {guess["field"] for guess in report["guessed"]} >= {"enterprise_customer_name", "enabled_course_modes"}
        assert set(proxy.tokens) == {"JWT t0ken", None}
        assert "t0ken" not in first.output
        assert (again.exit_code, again.stdout) == (
            *(0, "0 catalogs taken over, 0 updated, 15 unchanged, 0 conflicts, 0 could not be taken over\n"),
        )
        listed = json.loads((await asyncio.to_thread(cli, "catalogs", "list", "--json")).stdout)
        told = ("uuid", "title", "enterprise_customer", "content_filter", "catalog_query_uuid", "query_title")
        assert [[body[name] for name in told] for body in listed] == [
            [b[name] for name in told] for b in BODIES.values()
        ]

    async def test_from_a_service_whose_list_is_not_whole_writes_nothing(self, cli: Installation) -> None:
        (cli.path / "other").mkdir()
        async with neighbour(cli.path / "other") as (_, proxy):
            proxy.change("/enterprise-catalogs/?", lambda value: value.update(count=20))
            result = await asyncio.to_thread(cli, "import", "--from", proxy.url)
        problem = "catalogs page 1: `next` is null after 15 results, and `count` says 20"
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {problem}")
        assert (await asyncio.to_thread(cli, "catalogs", "list")).stdout == ""


class TestCompare:
    @pytest.fixture
    async def filled(self, cli: Installation) -> Installation:
        """With the recorded catalogs, published."""
        cli.settings(source=f'path = "{GOLDEN}/corpus.json"')
        await asyncio.to_thread(cli.add, *BODIES.values())
        assert (await asyncio.to_thread(cli, "build")).exit_code == 0
        return cli

    async def test_of_equals_ends_with_0_and_says_what_was_asked(self, filled: Installation) -> None:
        (filled.path / "other").mkdir()
        async with neighbour(filled.path / "other") as (rig, proxy):
            base = str(rig.client.make_url("")).rstrip("/")
            words = ("compare", "--with", proxy.url, "--base", base, "--per-second", "10000", "--seed", "5")
            result = await asyncio.to_thread(filled, *words, "--catalogs", "1", CATALOG_IMPORT_TOKEN="t0ken")
            assert (result.exit_code, "unexplained" in result.stdout, "--seed 5" in result.stdout) == (0, True, True)
            assert set(proxy.tokens) == {"JWT t0ken"}
            assert "t0ken" not in result.output
            proxy.change("/generate_diff/", lambda value: value.update(more=1))
            result = await asyncio.to_thread(filled, *words, "--catalogs", "1", "--json")
        told = json.loads(result.stdout)
        assert (result.exit_code, told["seed"], len(told["unexplained"])) == (1, 5, 2)
        assert told["unexplained"][0]["findings"] == [
            {"at": "more", "theirs": "1", "ours": "nothing", "explained_by": None}
        ]

    def test_with_nobody_named_is_refused(self, cli: Installation) -> None:
        assert cli.refused("compare").startswith("--with: a service must be http://HOST")
        error = cli.refused("compare", "--with", "http://me:hunter2@127.0.0.1")
        assert error.startswith("--with: a service must be ")
        assert "hunter2" not in error

    def test_before_anything_was_published_is_refused(self, cli: Installation) -> None:
        cli.refused("build", "--query", "none")
        assert "nothing was ever published" in cli.refused("compare", "--with", "http://127.0.0.1:1")


class TestBuild:
    def test_pulls_publishes_and_says_so(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES), catalog_body("b", {"key": "A+1"}))
        result = cli("build")
        assert (result.exit_code, result.stdout.startswith("generation 1: 2 queries pulled, ")) == (0, True)
        assert cli("build").stdout.startswith("generation 2: 2 queries pulled, ")

    def test_of_an_empty_registry_publishes_an_empty_generation_once(self, cli: Installation) -> None:
        assert cli("build").stdout.startswith("generation 1: 0 queries pulled, ")
        assert cli("build").stdout == "nothing to publish: the store shows the registry's state\n"

    def test_of_one_query_by_hash_id_or_title_leaves_the_others(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES, query_title="Everything"), catalog_body("b", {"key": "A+1"}))
        for query in ("Everything", "1", query_hash(COURSES).hex()):
            assert ": 1 queries pulled, " in cli("build", "--query", query).stdout
        states = {q["hash"]: q["state"] for q in json.loads(cli.done("status", "--json"))["queries"]}
        assert states == {query_hash(COURSES).hex(): "fresh", query_hash({"key": "A+1"}).hex(): "due"}

    def test_of_an_unknown_query_is_refused(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES))
        assert cli.refused("build", "--query", "none") == "no catalog wants a query of hash, id or title 'none'"

    def test_with_failures_ends_with_1_and_names_them(self, cli: Installation) -> None:
        cli.add(catalog_body("a", {"q": "x"}, query_title="Full text"), catalog_body("b", COURSES))
        result = cli("build")
        assert result.exit_code == 1
        assert "generation 1: 1 queries pulled" in result.stdout
        assert "failed: Full text; `catalog-indexer status` says why" in result.stderr
        result = cli("status")
        assert "only search/all itself can evaluate this" in result.stdout

    def test_with_a_customer_that_cannot_be_read_ends_with_1(self, cli: Installation) -> None:
        cli.corpus(course("A+1"), customers=(customer("Acme") | {"modified": "soon"},))
        cli.add(catalog_body("a", COURSES))
        result = cli("build")
        assert result.exit_code == 1
        assert "failed: the details of 1 customers" in result.stderr

    def test_without_its_corpus_publishes_that_everything_fails(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES))
        cli("build")
        (cli.path / "corpus.json").unlink()
        result = cli("build")
        assert result.exit_code == 1
        assert result.stdout.startswith("generation 2: 0 queries pulled, ")
        assert "No such file or directory" in cli("status").stdout

    def test_over_anothers_store_is_refused_unless_told_to(self, cli: Installation, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        other = Installation(tmp_path / "other")
        other.settings(store=f'url = "sqlite:///{cli.path}/store.db"')
        cli("build")
        assert "say --adopt to publish over it" in other.refused("build")
        assert other("build", "--adopt").stdout.startswith("generation 2: ")

    def test_goes_on_after_the_store_was_deleted(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES))
        cli("build")
        cli("build")
        for file in cli.path.glob("store.db*"):
            file.unlink()
        result = cli("build")
        assert (result.exit_code, result.stdout.startswith("generation 3: 1 queries pulled")) == (0, True)
        assert cli("check").exit_code == 0

    def test_from_a_discovery_that_does_not_answer_ends_with_1_and_the_status_says_why(self, cli: Installation) -> None:
        source = 'kind = "discovery"\nurl = "http://127.0.0.1:1"\noauth_url = "http://127.0.0.1:1/token"\nretries = 0'
        cli.settings(source=f'{source}\noauth_client_id = "me"\noauth_client_secret = "hunter2"')
        cli.add(catalog_body("a", COURSES))
        result = cli("build")
        assert (result.exit_code, "failed: " in result.stderr) == (1, True)
        status = cli.done("status")
        assert "access token: POST /token: ClientConnectorError" in status
        assert "hunter2" not in status + result.stderr


class TestServe:
    @pytest.mark.parametrize(
        "content, told", [(None, "No such file"), ("{", "not JSON"), ('{"keys": []}', "no public")]
    )
    def test_is_refused_with_keys_that_cannot_verify_any_token(
        self, cli: Installation, content: str | None, told: str
    ) -> None:
        keys = cli.path / "jwks.json"
        if content is not None:
            keys.write_text(content)
        cli.settings(auth=f'mode = "jwt"\njwks_file = "{keys}"\nissuer = "us"\naudience = "them"')
        text = cli.refused("serve")
        assert "auth.jwks_file" in text
        assert told in text


class TestRefresh:
    def test_asks_for_pulls_and_prints_their_ids(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES, query_title="t"), catalog_body("b", {"key": "B+1"}))
        lines = cli.done("refresh").splitlines()
        assert [line.split()[1:] for line in lines] == [
            [query_hash(COURSES).hex(), "t"],
            [query_hash({"key": "B+1"}).hex()],
        ]
        (again,) = cli.done("refresh", "t").splitlines()
        assert again == lines[0].rstrip()

    def test_of_a_query_that_no_catalog_wants_is_refused(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES))
        assert cli.refused("refresh", "nothing") == "no catalog wants a query of hash, id or title 'nothing'"


class TestStatus:
    def test_of_a_new_registry(self, cli: Installation) -> None:
        said = cli.done("status")
        assert "leader      nobody, epoch 0" in said
        assert "generation  none, published never" in said
        assert "queries     0 wanted by catalogs" in said

    def test_as_a_table_and_as_json(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES, query_title="Everything"), catalog_body("b", {"q": "x"}))
        before = json.loads(cli.done("status", "--json"))
        assert (before["status"], before["generation"], before["behind"]) == ("degraded", None, before["clock"])
        assert [q["state"] for q in before["queries"]] == ["due", "due"]
        cli("build")
        after = json.loads(cli.done("status", "--json"))
        assert (after["status"], after["generation"], after["behind"]) == ("degraded", 1, 0)
        assert [(q["state"], q["stale"]) for q in after["queries"]] == [("fresh", False), ("unpullable", False)]
        table = cli.done("status")
        assert "status      degraded" in table
        assert "never pulled" in table
        assert "1 catalogs  Everything" in table


class TestCheck:
    def test_of_a_sound_tree_ends_with_0_and_counts(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES))
        cli("build")
        said = cli.done("check")
        assert said.startswith("generation 1, epoch 1: ")
        assert "2 metadata" in said
        assert said.endswith(", 0 problems\n")

    def test_of_a_store_without_a_generation_ends_with_1(self, cli: Installation) -> None:
        cli.done("catalogs", "list")
        cli.refused("build", "--query", "none")
        result = cli("check")
        assert (result.exit_code, result.stdout) == (
            *(1, "the store has no root pointer: nothing was ever published here\n"),
        )

    def test_of_a_store_that_does_not_exist_is_refused_and_makes_none(self, cli: Installation) -> None:
        assert f"sqlite store {cli.path}/store.db: " in cli.refused("check")
        assert not (cli.path / "store.db").exists()


class TestDump:
    @pytest.fixture
    def filled(self, cli: Installation) -> Installation:
        cli.add(catalog_body("a", COURSES, catalog_query_uuid=uuid_of("q")))
        cli("build")
        return cli

    def dump(self, cli: Installation, what: str) -> Any:
        return json.loads(cli.done("dump", what))

    def test_of_the_root_and_of_what_it_names(self, filled: Installation) -> None:
        root = self.dump(filled, "root")
        assert (root["type"], root["record"]["generation"]) == ("ROOT", 1)
        assert self.dump(filled, root["digest"]) == root
        (branch,) = root["record"]["catalogs"].values()
        (shard,) = self.dump(filled, branch)["record"]["children"].values()
        for name in (shard, shard[:12], shard[:12].upper()):
            assert self.dump(filled, name)["record"]["records"][0]["title"] == "a"

    def test_of_records_by_catalog_customer_query_and_hash(self, filled: Installation) -> None:
        def kinds(what: str) -> list[str]:
            return [record["record"] for record in self.dump(filled, what)]

        assert kinds(uuid_of("catalog a")) == ["catalog"]
        assert kinds(uuid_of("catalog a").replace("-", "").upper()) == ["catalog"]
        assert kinds(uuid_of("Acme")) == ["customer"]
        assert kinds(query_hash(COURSES).hex()) == ["query", "freshness"]
        assert kinds(uuid_of("q")) == ["query"]

    def test_of_a_document_with_half_a_character(self, filled: Installation) -> None:
        """JSON can spell half of a surrogate pair, which UTF-8 cannot."""
        digest, data = seal_record(Metadata("A+1", ContentType.COURSE, (rb'{"title":"\ud800"}',)))

        async def put() -> None:
            store = open_store(f"sqlite:///{filled.path}/store.db", writable=True)
            await store.put([Sealed(digest, data)])
            await store.close()

        asyncio.run(put())
        assert self.dump(filled, digest.hex())["record"]["document"] == {"title": "\ud800"}

    def test_of_documents_and_bitmaps(self, filled: Installation) -> None:
        root = self.dump(filled, "root")["record"]
        (branch,) = [self.dump(filled, digest) for digest in root["content"]]
        (content,) = [self.dump(filled, digest) for digest in branch["record"]["children"].values()]
        documents = [self.dump(filled, digest)["record"] for digest in content["record"]["metadata"] if digest]
        assert [(d["key"], d["document"]["title"]) for d in documents] == [("A+1", "A course"), ("B+1", "A course")]
        query = self.dump(filled, query_hash(COURSES).hex())[0]
        assert self.dump(filled, query["v1"]["members"])["record"] == {"ordinals": [0, 1]}

    @pytest.mark.parametrize(
        "what, problem",
        [
            ("0" * 64, "is not in the store"),
            ("z" * 64, "is neither 'root' nor a digest"),
            ("zz", "is neither 'root' nor a digest"),
            ("", "have a digest that begins with ''"),
            ("f" * 20, "0 objects below the root"),
            ("z" * 32, "is neither a uuid nor a query hash"),
            ("0" * 32, "generation 1 has no record of"),
        ],
    )
    def test_of_nothing_is_refused(self, filled: Installation, what: str, problem: str) -> None:
        assert problem in filled.refused("dump", what)

    def test_without_a_generation_is_refused(self, cli: Installation) -> None:
        cli.refused("build", "--query", "none")
        assert "nothing was ever published here" in cli.refused("dump", "root")
        assert "nothing was ever published here" in cli.refused("dump", uuid_of("a"))


class TestSettings:
    def test_that_are_wrong_are_all_named(self, cli: Installation) -> None:
        cli.config.write_text('[indexer]\nport = "x"\n[source]\nkind = "wish"\n')
        result = cli("status")
        assert result.exit_code == 2
        assert "indexer.port" in result.stderr
        assert "source.kind" in result.stderr

    def test_that_do_not_exist_are_refused(self, cli: Installation) -> None:
        cli.config.unlink()
        result = cli("build")
        assert result.exit_code == 2
        assert "No such file" in result.stderr

    def test_from_the_environment_win(self, cli: Installation) -> None:
        assert cli("build", CATALOG_REGISTRY_URL=f"sqlite+aiosqlite:///{cli.path}/other.db").exit_code == 0
        assert (cli.path / "other.db").exists()
        assert not (cli.path / "registry.db").exists()

    def test_of_a_registry_without_its_driver_or_server_are_refused_without_the_password(
        self, cli: Installation
    ) -> None:
        cli.settings(registry='url = "postgresql+asyncpg://me:hunter2@127.0.0.1:1/db"')
        error = cli.refused("status")
        assert "127.0.0.1:1/db" in error
        assert "hunter2" not in error

    def test_of_a_store_whose_url_is_wrong_are_refused(self, cli: Installation) -> None:
        cli.settings(store='url = "redis://:hunter2@127.0.0.1/zero"')
        for command in ("build", "check", "serve"):
            result = cli(command)
            assert result.exit_code == 2
            assert 'store.url = "redis://***@127.0.0.1/zero"' in result.stderr
            assert "the database must be a number" in result.stderr
            assert "hunter2" not in result.stderr


class TestProcesses:
    def spawn(self, cli: Installation, *words: str) -> "subprocess.Popen[str]":
        environ = {key: value for key, value in os.environ.items() if not key.startswith("CATALOG_")}
        command = [sys.executable, "-m", "indexer", *words]
        return subprocess.Popen(
            command, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def test_serve_publishes_and_ends_with_0_when_told_to(self, cli: Installation) -> None:
        cli.add(catalog_body("a", COURSES))
        child = self.spawn(cli, "serve", "--config", str(cli.config))
        assert child.stderr is not None
        watchdog = threading.Timer(60, child.kill)
        watchdog.start()
        said = []
        for line in child.stderr:
            said.append(line)
            if "published" in line and "generation=" in line:
                child.send_signal(signal.SIGTERM)
        assert child.wait() == 0, said
        watchdog.cancel()
        assert child.stdout is not None
        assert child.stdout.read() == ""
        child.stdout.close()
        child.stderr.close()
        assert json.loads(cli.done("status", "--json"))["holder"] is None
        assert cli("check").exit_code == 0

    def test_serve_says_that_its_port_is_taken(self, cli: Installation) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            cli.settings(indexer=f"port = {port}")
            assert f"127.0.0.1:{port} is in use" in cli.refused("serve")
