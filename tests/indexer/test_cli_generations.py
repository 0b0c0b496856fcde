"""The commands about generations, their exit codes and words, over an installation that nobody leads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import catalog_body, course, run, uuid_of
from tests.indexer.installation import Installation, logging_as_before

__all__ = ["logging_as_before"]

COURSES = {"content_type": "course"}
WHY = ("--why", "half of it is gone")


@pytest.fixture
def cli(tmp_path: Path) -> Installation:
    """Three generations: A+1 and B+1; then A+1 and C+1; then a catalog more."""
    made = Installation(tmp_path)
    made.add(catalog_body("a", COURSES, query_title="All courses"))
    assert made("build").exit_code == 0
    made.corpus(course("A+1", run("a1")), course("C+1", run("c1")))
    assert made("build").exit_code == 0
    made.add(catalog_body("b", {"key": ["A+1"]}))
    assert made("build").exit_code == 0
    return made


def quietly(cli: Installation, *words: str) -> str:
    """What a command says on standard output; it logs on the other one."""
    result = cli(*words)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def listed(cli: Installation) -> Any:
    return json.loads(cli.done("generations", "--json"))


class TestGenerations:
    def test_are_listed_newest_first(self, cli: Installation) -> None:
        lines = cli.done("generations").splitlines()
        assert [line.split()[0] for line in lines] == ["3", "2", "1"]
        assert re.fullmatch(
            r" +3  epoch 3    20\S+\+00:00 +\d+ objects +[\d,]+ bytes  published, served",
            lines[0],
        )
        assert cli.done("generations", "--last", "1").splitlines() == lines[:1]

    def test_are_listed_as_json(self, cli: Installation) -> None:
        found = listed(cli)
        assert (found["pinned"], found["held"], found["decisions"], found["store"]) == (None, 0, [], None)
        assert [(g["generation"], g["state"], g["served"], g["in_store"]) for g in found["generations"]] == [
            (3, "published", True, True),
            (2, "published", False, True),
            (1, "published", False, True),
        ]

    def test_there_are_none_before_the_first(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        empty = Installation(tmp_path / "empty")
        empty.add(catalog_body("a", COURSES))
        result = empty("generations")
        assert (result.exit_code, result.stdout) == (1, "no generation was ever published\n")
        assert "the store cannot be read: sqlite store" in result.stderr
        assert not (tmp_path / "empty" / "store.db").exists()


class TestDiff:
    def test_says_what_differs(self, cli: Installation) -> None:
        assert cli.done("diff", "1", "2").splitlines() == [
            f"~ query {json.loads(cli.done('diff', '1', '2', '--json'))['queries_changed'][0]['id']}  All courses",
            "    v1 members: gained 1 (C+1); lost 1 (B+1)",
            "    v1 contained: gained 2 (C+1, c1); lost 2 (B+1, b1)",
            "+ documents: 1 (C+1)",
        ]
        assert f"+ catalog {uuid_of('catalog b')}  b" in cli.done("diff", "2", "3").splitlines()
        assert f"- catalog {uuid_of('catalog b')}  b" in cli.done("diff", "3", "2").splitlines()

    def test_of_the_same_says_so(self, cli: Installation) -> None:
        assert cli.done("diff", "2", "2") == "generations 2 and 2 show the same\n"

    def test_of_one_that_nobody_knows_is_refused(self, cli: Installation) -> None:
        for pair in (("1", "9"), ("9", "1")):
            assert cli.refused("diff", *pair) == (
                "no generation 9 is known here; `catalog-indexer generations` lists those that are"
            )

    def test_of_many_keys_shows_some(self, cli: Installation) -> None:
        cli.settings(quarantine="lost = 1.0\ngained = 1000.0")
        cli.corpus(*(course(f"D+{n}") for n in range(1200)))
        quietly(cli, "build")
        text = cli.done("diff", "3", "4")
        assert "gained 1,200 (D+0, D+1, D+10, D+100, D+1000, and 1,195 more)" in text


class TestRollbackAndPin:
    def test_and_back_again(self, cli: Installation) -> None:
        assert quietly(cli, "rollback", "1", *WHY) == (
            "readers see generation 4, which shows the tree of generation 1, pinned\n"
        )
        cli.add(catalog_body("c", {"key": ["C+1"]}))
        assert "held back: generation 1 is pinned; `catalog-indexer unpin` publishes" in quietly(cli, "build")
        text = cli.done("generations")
        assert "generation 1 is pinned; 2 held back behind it" in text
        assert "pinned      generation 1, 2 held back behind it; `catalog-indexer generations` says" in cli.done(
            "status"
        )
        assert re.search(r"rollback 1  cli:\w+: half of it is gone", text)
        assert cli("check").exit_code == 0
        assert quietly(cli, "unpin", "--why", "mended").startswith("readers see generation 7\n")
        assert [d["action"] for d in listed(cli)["decisions"]] == ["unpin", "rollback"]
        assert cli("check").exit_code == 0

    def test_by_default_to_the_one_before(self, cli: Installation) -> None:
        assert "shows the tree of generation 2" in quietly(cli, "rollback", *WHY)

    def test_a_pin_keeps_readers_where_they_are(self, cli: Installation) -> None:
        assert quietly(cli, "pin", *WHY) == "readers see generation 3, pinned\n"
        cli.add(catalog_body("c", {"key": ["C+1"]}))
        assert "generation 4: 3 queries pulled, held back: generation 3 is pinned" in quietly(cli, "build")
        newest = listed(cli)["generations"][0]
        assert (newest["generation"], newest["state"]) == (4, "held back")
        assert quietly(cli, "unpin", *WHY) == "readers see generation 5\n"

    @pytest.mark.parametrize("words", [("rollback", "1"), ("pin",), ("unpin",)])
    def test_without_a_reason_are_refused(self, cli: Installation, words: tuple[str, ...]) -> None:
        assert "Missing option '--why'" in cli(*words).stderr
        result = cli(*words, "--why", "  ")
        assert (result.exit_code, "--why is empty" in result.stderr) == (2, True)
        assert listed(cli)["decisions"] == []

    def test_that_change_nothing_are_refused(self, cli: Installation) -> None:
        assert cli.refused("unpin", *WHY) == "no generation is pinned"
        assert cli.refused("rollback", "3", *WHY).startswith("readers see generation 3 already")
        assert cli.refused("rollback", "9", *WHY).startswith("no generation 9 is known here")
        assert listed(cli)["decisions"] == []

    def test_without_a_store_are_refused(self, cli: Installation) -> None:
        cli.settings(store='url = "redis://127.0.0.1:1"')
        for words in (("rollback", "1"), ("pin",), ("unpin",)):
            assert "redis store" in cli.refused(*words, *WHY)
