"""The alerts name metrics that exist, say what to do, and are tested both ways; that they are valid, promtool says."""

import re
from pathlib import Path
from typing import Final

from indexer.metrics import Metrics as IndexerMetrics
from sidecar.metrics import Metrics as SidecarMetrics

DEPLOY: Final = Path(__file__).parent.parent / "deploy"
RULES: Final = (DEPLOY / "alerts.yml").read_text()
TESTS: Final = (DEPLOY / "alerts_test.yml").read_text()
# Of each alert its name and all that follows, up to the next one.
ALERTS: Final = dict(re.findall(r"- alert: (\w+)\n(.*?)(?=\n\n|\Z)", RULES, re.DOTALL))


def counted() -> set[str]:
    return {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for registry in (SidecarMetrics().registry, IndexerMetrics().registry)
        for metric in registry.collect()
    }


def test_every_alert_is_about_metrics_that_exist() -> None:
    assert len(ALERTS) == RULES.count("- alert:") > 20
    named = {name: set(re.findall(r"catalog_\w+", re.findall("expr: (.*)", text)[0])) for name, text in ALERTS.items()}
    assert all(named.values())
    # Those of expressions, and whatever else the text names.
    assert set(re.findall(r"catalog_(?:sidecar|indexer)_\w+", RULES)) - counted() == set()


def test_every_alert_says_what_is_wrong_and_in_one_line_what_to_do() -> None:
    for name, text in ALERTS.items():
        assert re.search(r"^ +labels: \{severity: (warning|critical)\}$", text, re.MULTILINE), name
        (summary,) = re.findall(r'^ +summary: "(.+)"$', text, re.MULTILINE)
        (runbook,) = re.findall(r'^ +runbook: "(.+)"$', text, re.MULTILINE)
        assert summary.endswith("."), name
        assert runbook.endswith("."), name
        # What has just happened is told at once; of what lasts it is told once it does.
        assert ("for: " in text) is ("[15m]" not in text), name


def test_every_alert_is_tested_to_fire_and_to_stay_silent() -> None:
    for name in ALERTS:
        firing = re.findall(rf"alertname: {name}\n +exp_alerts:(\n| \[\]\n)", f"{TESTS}\n")
        assert set(firing) == {"\n", " []\n"}, name


def test_what_alerts_watch_the_growth_of_begins_at_zero() -> None:
    """The first of a kind would otherwise be no growth: a series that was not there before has grown by nothing."""
    registry = SidecarMetrics().registry
    for tier in ("disk", "store"):
        assert registry.get_sample_value("catalog_sidecar_corrupt_objects_total", {"tier": tier}) == 0
    for outcome in ("failed", "unreachable", "unknown"):
        assert registry.get_sample_value("catalog_sidecar_writes_total", {"outcome": outcome}) == 0
    assert registry.get_sample_value("catalog_sidecar_broken_answers_total", {"reason": "lost"}) == 0
