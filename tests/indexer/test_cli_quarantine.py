"""What the command line tells of results that are held back, and what it decides about them."""

import json

import pytest

from sidecar.contract.words import query_hash
from tests.fakes import catalog_body, course, run, uuid_of
from tests.indexer.installation import Installation, cli, logging_as_before

__all__ = ["cli", "logging_as_before"]

COURSES = {"content_type": "course"}


@pytest.fixture
def held(cli: Installation) -> Installation:
    """A query whose last pull found two of nine courses, and another."""
    cli.add(catalog_body("a", COURSES, query_title="Everything"))
    cli.corpus(*(course(f"A+{n}", run(f"a{n}")) for n in range(9)))
    assert cli("build").exit_code == 0
    cli.corpus(*(course(f"A+{n}", run(f"a{n}")) for n in (0, 1, 9)))
    built = cli("build")
    assert built.exit_code == 1
    assert built.stderr.splitlines()[-1] == "held back: Everything; see `catalog-indexer quarantine show`"
    return cli


def members(cli: Installation) -> int:
    """How many there are after another build."""
    assert cli("build").exit_code in (0, 1)
    record = json.loads(cli.done("dump", query_hash(COURSES).hex()))[0]
    digest = record["v1"]["members"]
    return len(json.loads(cli.done("dump", digest))["record"]["ordinals"])


def test_lists_what_is_held_back_and_why(held: Installation) -> None:
    listed = held.done("quarantine", "list")
    assert query_hash(COURSES).hex() in listed
    assert "shrunk: 9 members before, 3 now, 7 lost (78%), 1 gained" in listed
    (told,) = json.loads(held.done("quarantine", "list", "--json"))
    assert (told["state"], told["times"], told["catalogs"]) == ("held", 1, 1)
    assert "1 results are held back" in held.done("status")


@pytest.mark.parametrize("name", ["Everything", "1", query_hash(COURSES).hex()])
def test_shows_what_would_be_lost_and_gained(held: Installation, name: str) -> None:
    shown = held.done("quarantine", "show", name)
    assert "lost (members): 7\n    A+2\n" in shown
    assert "gained (members): 1\n    A+9\n" in shown
    assert uuid_of("catalog a") in shown
    report = json.loads(held.done("quarantine", "show", name, "--json"))
    assert report["differences"]["members"]["lost"] == [f"A+{n}" for n in range(2, 9)]


def test_lets_pass_what_is_approved(held: Installation) -> None:
    assert members(held) == 9
    said = held.done("quarantine", "approve", "Everything", "--why", "the partner has left")
    assert said.startswith("approved: Everything; pull ")
    shown = held.done("quarantine", "show", "Everything")
    assert "approve by cli:" in shown
    assert "the partner has left (shrunk: 9 members" in shown
    assert members(held) == 3
    assert held.done("quarantine", "list") == ""


def test_keeps_what_is_served_when_a_result_is_rejected(held: Installation) -> None:
    held.done("quarantine", "reject", "Everything", "--why", "discovery is being reindexed")
    assert members(held) == 9
    assert " rejected " in held.done("quarantine", "list")
    assert "results are held back" not in held.done("status")


def test_decides_about_the_result_that_was_looked_at_alone(held: Installation) -> None:
    seen = json.loads(held.done("quarantine", "show", "Everything", "--json"))["result"]
    held.corpus()
    assert held("build").exit_code == 1
    refusal = held.refused("quarantine", "approve", "Everything", "--result", seen, "--why", "it is right")
    assert "is held back by now is" in refusal
    now = json.loads(held.done("quarantine", "show", "Everything", "--json"))["result"]
    held.done("quarantine", "approve", "Everything", "--result", now, "--why", "it is right")


def test_decides_about_all_or_none(held: Installation) -> None:
    refusal = held.refused("quarantine", "approve", "Everything", "Nothing", "--why", "x")
    assert refusal == "no catalog wants a query of hash, id or title 'Nothing'"
    assert " held " in held.done("quarantine", "list")


@pytest.mark.parametrize("what", ["approve", "reject", "show"])
def test_refuses_what_is_not_held_back(cli: Installation, what: str) -> None:
    cli.add(catalog_body("a", COURSES))
    why = () if what == "show" else ("--why", "x")
    assert cli.refused("quarantine", what, "1", *why) == (
        "nothing of '1' is held back; `catalog-indexer quarantine list` tells what is"
    )
    assert cli.refused("quarantine", what, "Nobody's", *why) == (
        'no catalog wants a query of hash, id or title "Nobody\'s"'
    )


def test_limits_of_one_query_are_set_told_and_taken_away(held: Installation) -> None:
    assert "lost    0.2\n" in held.done("quarantine", "limits", "Everything")
    assert held.refused("quarantine", "limits", "Everything", "--lost", "1").startswith("--why")
    assert held.refused("quarantine", "limits", "1", "--lost", "1", "--usual", "--why", "x").startswith("--usual")
    said = held.done("quarantine", "limits", "Everything", "--lost", "0.8", "--floor", "9", "--why", "it is seasonal")
    assert "lost    0.8  its own\n" in said
    assert "gained  2.0\n" in said
    assert members(held) == 3
    assert "its own" not in held.done("quarantine", "limits", "1", "--usual", "--why", "no longer")


@pytest.mark.parametrize("command", [("approve",), ("reject",), ("limits", "--lost", "1")])
def test_takes_no_empty_reason(held: Installation, command: tuple[str, ...]) -> None:
    refused = held("quarantine", *command, "Everything", "--why", "  ")
    assert (refused.exit_code, "--why is empty" in refused.stderr) == (2, True)


@pytest.mark.parametrize("limit", [("--lost", "nan"), ("--gained", "nan"), ("--gained", "inf"), ("--lost", "1.1")])
def test_takes_no_limit_that_is_no_finite_number_in_its_range(held: Installation, limit: tuple[str, str]) -> None:
    assert held("quarantine", "limits", "Everything", *limit, "--why", "by mistake").exit_code == 2
    assert "its own" not in held.done("quarantine", "limits", "Everything")
