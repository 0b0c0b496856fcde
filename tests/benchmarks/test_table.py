"""The README of benchmarks has the figures of a committed run, and of no other."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.results import FOLDER, Results, find
from benchmarks.rows import Row
from benchmarks.table import BEGIN, END, README, between_markers, section, with_section

MACHINE = {"cpu": "A CPU", "cores": 2, "platform": "Linux", "others": 0.01, "stolen": 0.02}
VERSIONS = {"python": "3.11", "aiohttp": "3", "uvloop": "0", "pyroaring": "1"}
ROWS = (
    Row("one", "a", "/s", "at least", 0.5, (1.0, 2.0), "peer", (2.0, 2.0), "a note"),
    Row("two", "b", "ms", "at most", 9.0, note="not built"),
)
RUN = Results("abc", True, "2026-01-01 00:00", MACHINE, VERSIONS, ROWS, {"latency": {"a": [(50.0, 1.5)]}})


def test_the_readme_has_exactly_what_its_file_of_results_makes() -> None:
    text = between_markers(README.read_text())
    named = re.search(r"\[samples\]\(results/([^)]+)\)", text)
    assert named is not None
    assert text == section(Results.read(FOLDER / named[1]), named[1])


def test_a_run_reads_what_it_wrote(tmp_path: Path) -> None:
    file = RUN.write(tmp_path)
    read = Results.read(file)
    assert file.name == "abc.json"
    assert read.rows == RUN.rows
    assert section(read, file.name) == section(RUN, file.name)


def test_a_section_has_a_table_for_each_question_with_its_notes_and_the_pictures() -> None:
    made = section(RUN, "abc.json")
    assert made.startswith("A full run of commit `abc`")
    assert "Others had 3% of the cores" in made
    assert made.index("**one**") < made.index("| a |") < made.index("* a note") < made.index("**two**")
    assert "| b | at most 9 ms | not built |  |  | MISSED |" in made
    assert made.endswith("![latency](results/abc-latency.png)\n")


def test_a_section_takes_the_place_of_the_one_before() -> None:
    text = f"before\n{BEGIN}old\n{END}after\n"
    assert between_markers(text) == "old\n"
    assert with_section(text, "new\n") == text.replace("old", "new")
    with pytest.raises(SystemExit):
        with_section("no markers", "new\n")


def test_results_are_found_by_the_beginning_of_their_commit(tmp_path: Path) -> None:
    file = RUN.write(tmp_path)
    short = replace(RUN, full=False).write(tmp_path)
    assert short != file
    assert find("ab", tmp_path) == file
    assert find("abc-short", tmp_path) == find(str(short)) == short
    (tmp_path / "abd.json").touch()
    with pytest.raises(SystemExit, match="2 files"):
        find("ab", tmp_path)
