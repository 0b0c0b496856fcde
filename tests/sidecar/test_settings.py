"""Settings: what is accepted, and that everything else is refused by name, origin, value and remedy, all at once."""

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.settings import Problem, Row, Settings, SettingsError, example_toml, is_loopback, load, origins, rows

ROOT = Path(__file__).parents[2]
REPLAY = ROOT / "tests" / "contract" / "replay.toml"

JWT = {"CATALOG_AUTH_MODE": "jwt", "CATALOG_AUTH_ISSUER": "us", "CATALOG_AUTH_AUDIENCE": "them"}
DISCOVERY = {
    "CATALOG_SOURCE_KIND": "discovery",
    "CATALOG_SOURCE_URL": "https://discovery.example.test",
    "CATALOG_SOURCE_OAUTH_URL": "https://lms.example.test/oauth2/access_token",
    "CATALOG_SOURCE_OAUTH_CLIENT_ID": "catalog",
    "CATALOG_SOURCE_OAUTH_CLIENT_SECRET": "hush",
}

WriteToml = Callable[[str], Path]


@pytest.fixture
def toml(tmp_path: Path) -> WriteToml:
    """Writes a settings file."""

    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path | None = None, environ: Mapping[str, str] | None = None) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(path, environ or {})
    return caught.value


def only_problem(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Problem:
    (problem,) = refusal(path, environ).problems
    return problem


def value_of(settings: Settings, row: Row) -> Any:
    return getattr(getattr(settings, row.section), row.name)


def outcome_of(environ: Mapping[str, str]) -> Settings | SettingsError:
    try:
        return load(None, environ)
    except SettingsError as error:
        return error


class TestTable:
    def test_defaults_need_neither_file_nor_environment(self) -> None:
        assert load(None, {}) == Settings()

    def test_every_default_passes_its_own_check(self) -> None:
        assert [row.full_name for row in rows() if row.accept(row.default) != row.default] == []

    def test_rows_give_the_default_that_the_dataclass_has(self) -> None:
        assert [row.full_name for row in rows() if row.default != value_of(Settings(), row)] == []

    def test_names_of_the_environment_are_section_and_name(self) -> None:
        names = {row.full_name: row.env for row in rows()}
        assert names["store.keep_generations"] == "CATALOG_STORE_KEEP_GENERATIONS"
        assert len(set(names.values())) == len(names)

    def test_every_row_has_a_sentence_of_help(self) -> None:
        assert [row.full_name for row in rows() if not re.fullmatch(r"[A-Z].+\.", row.help)] == []

    def test_names_of_the_secrets(self) -> None:
        secrets = [row.full_name for row in rows() if row.secret]
        assert secrets == ["source.oauth_client_secret", "auth.hs256_secret"]

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            Settings().store.url = "sqlite:///other.db"  # type: ignore[misc]


class TestExample:
    def test_config_example_is_the_rendered_table(self) -> None:
        assert (ROOT / "config.example.toml").read_text(encoding="utf-8") == example_toml()

    def test_example_changes_nothing(self, toml: WriteToml) -> None:
        assert load(toml(example_toml()), {}) == Settings()

    def test_example_uncommented_is_every_default(self, toml: WriteToml) -> None:
        uncommented = re.sub(r"^#(?! )", "", example_toml(), flags=re.MULTILINE)
        parsed = tomllib.loads(uncommented)
        assert {(row.section, row.name): row.default for row in rows()} == {
            (section, name): value for section, content in parsed.items() for name, value in content.items()
        }
        assert load(toml(uncommented), {}) == Settings()


class TestReading:
    def test_replay_settings_load(self) -> None:
        settings = load(REPLAY, {})
        for section, content in tomllib.loads(REPLAY.read_text(encoding="utf-8")).items():
            for name, value in content.items():
                assert getattr(getattr(settings, section), name) == value
        assert settings.indexer.refresh_s == Settings().indexer.refresh_s

    def test_file_overrides_default_and_environment_overrides_file(self, toml: WriteToml) -> None:
        path = toml("[sidecar]\nport = 1001\nmemory_mb = 128\n")
        settings = load(path, {"CATALOG_SIDECAR_PORT": "1002"})
        assert (settings.sidecar.port, settings.sidecar.memory_mb, settings.sidecar.poll_ms) == (1002, 128, 1000)

    def test_foreign_environment_is_ignored(self) -> None:
        assert load(None, {"PATH": "/bin", "CATALOGUE_URL": "x", "catalog_store_url": "x"}) == Settings()

    def test_a_token_for_one_run_is_no_setting_and_no_mistake(self) -> None:
        assert load(None, {"CATALOG_IMPORT_TOKEN": "hush"}) == Settings()

    def test_environment_reaches_every_setting(self) -> None:
        changed = {"str": "changed", "int": "77", "float": "7.5", "bool": "false"}
        special = {
            "store.url": "redis://127.0.0.1:6379/0",
            "registry.url": "postgresql+asyncpg://db.example.test/catalog",
            "sidecar.indexer_url": "http://indexer.example.test",
            "indexer.freshness_s": "100000",
            "quarantine.lost": "0.75",
            "sidecar.cors_origins": "https://portal.example.test, http://localhost:1991",
        }
        environ = {row.env: changed[row.type] for row in rows()}
        environ |= {row.env: "https://example.test" for row in rows() if row.accepts.startswith("http")}
        environ |= {row.env: row.choices[-1] for row in rows() if row.choices}
        environ |= {row.env: special[row.full_name] for row in rows() if row.full_name in special}

        settings = load(None, environ)

        assert {row.full_name: str(value_of(settings, row)).removesuffix(".0").lower() for row in rows()} == {
            row.full_name: environ[row.env] for row in rows()
        }

    @pytest.mark.parametrize(
        "text,value",
        [
            ("true", True),
            ("1", True),
            ("Yes", True),
            ("ON", True),
            ("false", False),
            ("0", False),
            ("no", False),
            ("off", False),
        ],
    )
    def test_words_for_booleans_in_the_environment(self, text: str, value: bool) -> None:
        assert load(None, {"CATALOG_SOURCE_RESTRICTED_RUNS": text}).source.restricted_runs is value

    @pytest.mark.parametrize("text", ["20", "20.0"])
    def test_whole_number_will_do_for_a_fraction(self, toml: WriteToml, text: str) -> None:
        for settings in (
            load(toml(f"[indexer]\nlease_s = {text}\n"), {}),
            load(None, {"CATALOG_INDEXER_LEASE_S": text}),
        ):
            assert settings.indexer.lease_s == 20.0
            assert isinstance(settings.indexer.lease_s, float)

    def test_empty_environment_value_empties_a_text(self, toml: WriteToml) -> None:
        path = toml('[sidecar]\nsocket = "/run/catalog.sock"\n')
        assert load(path, {"CATALOG_SIDECAR_SOCKET": ""}).sidecar.socket == ""


class TestRefusedFile:
    def test_missing(self, tmp_path: Path) -> None:
        problem = only_problem(tmp_path / "none.toml")
        assert problem.origin == str(tmp_path / "none.toml")
        assert "No such file" in problem.remedy

    def test_folder(self, tmp_path: Path) -> None:
        assert "directory" in only_problem(tmp_path).remedy

    def test_syntax_error_names_line_and_column(self, toml: WriteToml) -> None:
        problem = only_problem(toml("[store]\nurl = \n"))
        assert problem.remedy.startswith("not valid TOML:")
        assert "line 2" in problem.remedy

    @pytest.mark.parametrize("content", [b'[store]\nurl = "\xff"\n', b"[store]\nkeep_generations = " + b"9" * 5000])
    def test_unreadable_content(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "config.toml"
        path.write_bytes(content)
        assert only_problem(path).remedy.startswith("not valid TOML:")

    def test_environment_is_judged_even_so_but_no_clash_is_guessed_at(self, tmp_path: Path) -> None:
        environ = {"CATALOG_SIDECAR_PORT": "many", "CATALOG_SOURCE_KIND": "discovery"}
        error = refusal(tmp_path / "none.toml", environ)
        assert [problem.name for problem in error.problems] == ["the settings file", "sidecar.port"]


class TestRefusedName:
    @pytest.mark.parametrize(
        "text,name,remedy",
        [
            ('[stor]\nurl = "x"', "stor", "unknown section; did you mean store?"),
            ('[zzz]\nurl = "x"', "zzz", "unknown section; known are store, registry, source, lms, links, auth, "),
            ('[store]\nulr = "x"', "store.ulr", "unknown setting; did you mean store.url?"),
            ("[sidecar]\nlease_s = 1", "sidecar.lease_s", "unknown setting; did you mean indexer.lease_s?"),
            ("[store]\nport = 1", "store.port", "unknown setting; did you mean indexer.port or sidecar.port?"),
            ("[store]\n8 = 1", "store.8", "unknown setting; did you mean store."),
            ('store = "sqlite:///x.db"', "store", "must be a table: write [store] above its settings"),
            ('[[store]]\nurl = "sqlite:///x.db"', "store", "must be a table: write [store] above its settings"),
            ('url = "sqlite:///x.db"', "url", "unknown section; "),
        ],
    )
    def test_in_the_file(self, toml: WriteToml, text: str, name: str, remedy: str) -> None:
        path = toml(text)
        problem = only_problem(path)
        assert (problem.name, problem.origin, problem.given) == (name, str(path), None)
        assert problem.remedy.startswith(remedy)

    def test_in_the_environment(self) -> None:
        problem = only_problem(environ={"CATALOG_STORE_ULR": "redis://127.0.0.1"})
        assert str(problem) == "CATALOG_STORE_ULR (environment): unknown setting; did you mean CATALOG_STORE_URL?"

    @pytest.mark.parametrize(
        "environ",
        [
            {"CATALOG_SIDECAR_SERVICE_HOST": "10.0.0.1"},
            {"CATALOG_SIDECAR_PORT_18160_TCP_ADDR": "10.0.0.1"},
            {"CATALOG_SIDECAR_PORT": "tcp://10.0.0.1:18160"},
        ],
    )
    def test_service_links_of_kubernetes_are_explained(self, environ: dict[str, str]) -> None:
        assert "enableServiceLinks: false" in only_problem(environ=environ).remedy


class TestRefusedValue:
    @pytest.mark.parametrize(
        "name,given_value,shown",
        [
            ("store.url", '"memory://"', '"memory://"'),
            ("store.url", '"redis://"', '"redis://"'),
            ("store.url", '"sqlite://store.db"', '"sqlite://store.db"'),
            ("store.url", '"sqlite:///:memory:"', '"sqlite:///:memory:"'),
            ("store.url", '"redis://[::1"', '"redis://[::1"'),
            ("store.url", '"redis://a b"', '"redis://a b"'),
            ("store.url", "1", "1"),
            ("store.url", '["redis://a"]', "an array"),
            ("store.url", '{ a = "redis://a" }', "a table"),
            ("store.keep_generations", "1", "1"),
            ("store.keep_generations", "true", "true"),
            ("store.keep_generations", "24.0", "24.0"),
            ("store.keep_generations", '"24"', '"24"'),
            ("registry.url", '"sqlite:///var/registry.db"', '"sqlite:///var/registry.db"'),
            ("registry.url", '"sqlite+aiosqlite://"', '"sqlite+aiosqlite://"'),
            ("registry.url", '"postgresql://host/db"', '"postgresql://host/db"'),
            ("registry.url", '"postgresql+asyncpg://host"', '"postgresql+asyncpg://host"'),
            ("registry.url", '"mysql+pymysql://host/db"', '"mysql+pymysql://host/db"'),
            ("registry.url", '"mysql+asyncmy://[host/db"', '"mysql+asyncmy://[host/db"'),
            ("source.kind", '"http"', '"http"'),
            ("source.path", '" "', '" "'),
            ("source.restricted_runs", "1", "1"),
            ("source.restricted_runs", '"true"', '"true"'),
            ("lms.url", '"lms.example.test"', '"lms.example.test"'),
            ("links.lms", '"ftp://lms.example.test"', '"ftp://lms.example.test"'),
            ("links.learner_portal", '"https://"', '"https://"'),
            ("links.ecommerce", '"https://shop.example.test:port"', '"https://shop.example.test:port"'),
            ("links.ecommerce", '"https://shop.example.test/?a=b"', '"https://shop.example.test/?a=b"'),
            ("auth.mode", '"oauth"', '"oauth"'),
            ("indexer.lease_s", "0", "0"),
            ("indexer.lease_s", "nan", "nan"),
            ("indexer.lease_s", "inf", "inf"),
            ("indexer.lease_s", "true", "true"),
            ("indexer.lease_s", "1" + "0" * 400, "a very large number"),
            ("indexer.pulls", "0", "0"),
            ("sidecar.port", "0x" + "f" * 5000, "a very large number"),
            ("sidecar.host", '""', '""'),
            ("sidecar.host", '"[::1]"', '"[::1]"'),
            ("sidecar.host", '"::zz"', '"::zz"'),
            ("sidecar.host", '"127.0.0.1:80"', '"127.0.0.1:80"'),
            ("sidecar.port", "65536", "65536"),
            ("sidecar.port", "-1", "-1"),
            ("sidecar.socket", json.dumps("s" * 104), json.dumps("s" * 80 + "…", ensure_ascii=False)),
            ("sidecar.indexer_url", '""', '""'),
            ("sidecar.indexer_url", '"http://me:hunter2@indexer"', '"http://***@indexer"'),
            ("source.url", '"https://me@discovery"', '"https://***@discovery"'),
            ("source.timeout_s", "0", "0"),
            ("source.retries", "-1", "-1"),
            ("source.concurrency", "0", "0"),
            ("source.requests_per_hour", "-1", "-1"),
            ("log.level", "2026-01-01", "2026-01-01"),
        ],
    )
    def test_in_the_file(self, toml: WriteToml, name: str, given_value: str, shown: str) -> None:
        section, _, key = name.partition(".")
        path = toml(f"[{section}]\n{key} = {given_value}\n")
        (row,) = (row for row in rows() if row.full_name == name)
        assert only_problem(path) == Problem(name, str(path), shown, f"must be {row.accepts}")

    @pytest.mark.parametrize(
        "env,text",
        [
            ("CATALOG_SIDECAR_PORT", ""),
            ("CATALOG_SIDECAR_PORT", "1_000"),
            ("CATALOG_SIDECAR_PORT", " 80"),
            ("CATALOG_SIDECAR_PORT", "80.0"),
            ("CATALOG_SIDECAR_PORT", "٨٠"),
            ("CATALOG_SIDECAR_PORT", "9" * 5000),
            ("CATALOG_INDEXER_LEASE_S", "nan"),
            ("CATALOG_INDEXER_LEASE_S", "9" * 400),
            ("CATALOG_INDEXER_LEASE_S", "-1"),
            ("CATALOG_SOURCE_RESTRICTED_RUNS", "maybe"),
            ("CATALOG_LOG_LEVEL", "INFO"),
        ],
    )
    def test_in_the_environment(self, env: str, text: str) -> None:
        problem = only_problem(environ={env: text})
        assert problem.origin == f"environment, {env}"
        assert problem.remedy.startswith("must be ")

    def test_message_has_name_value_origin_and_remedy(self) -> None:
        error = refusal(environ={"CATALOG_SOURCE_KIND": "disk"})
        assert str(error) == (
            "the settings cannot be used:\n"
            '  source.kind = "disk" (environment, CATALOG_SOURCE_KIND): must be "file" or "discovery"'
        )

    @pytest.mark.parametrize(
        "url",
        [
            "sqlite:////absolute/store.db",
            "redis://:word@127.0.0.1:6379/0",
            "rediss://store.example.test",
            "redis+sentinel://a:26379,b:26379/catalog/0",
            "redis+cluster://a:6379,b:6379",
        ],
    )
    def test_stores_that_are_accepted(self, url: str) -> None:
        assert load(None, {"CATALOG_STORE_URL": url}).store.url == url

    @pytest.mark.parametrize(
        "url",
        ["postgresql+asyncpg:///catalog?host=/run/postgresql", "mysql+asyncmy://user:word@db.example.test/catalog"],
    )
    def test_registries_that_are_accepted(self, url: str) -> None:
        assert load(None, {"CATALOG_REGISTRY_URL": url}).registry.url == url

    def test_all_problems_are_reported_at_once(self, toml: WriteToml) -> None:
        path = toml('[store]\nurl = "memory://"\nsize = 1\n[cache]\n[sidecar]\nport = "x"\n')
        error = refusal(path, {"CATALOG_LOG_LEVEL": "loud", "CATALOG_X": "1", "CATALOG_SIDECAR_HOST": "0.0.0.0"})
        names = ["store.url", "store.size", "cache", "sidecar.port", "log.level", "CATALOG_X", "sidecar.host"]
        assert [problem.name for problem in error.problems] == names
        assert str(error).count("\n") == len(names)

    def test_wrong_value_in_the_file_is_refused_even_if_overridden(self, toml: WriteToml) -> None:
        path = toml("[sidecar]\nport = -1\n")
        assert only_problem(path, {"CATALOG_SIDECAR_PORT": "80"}).origin == str(path)


class TestClashes:
    @pytest.mark.parametrize("section", ["indexer", "sidecar"])
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "catalog.example.test"])
    def test_reachable_host_without_tokens(self, section: str, host: str) -> None:
        env = f"CATALOG_{section.upper()}_HOST"
        problem = only_problem(environ={env: host})
        assert (problem.name, problem.given) == (f"{section}.host", json.dumps(host))
        assert problem.origin == f"environment, {env}"
        assert 'set auth.mode to "jwt", because auth.mode = "none"' in problem.remedy

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LocalHost"])
    def test_loopback_needs_no_tokens(self, host: str) -> None:
        assert is_loopback(host)
        assert load(None, {"CATALOG_SIDECAR_HOST": host}).sidecar.host == host

    def test_reachable_host_with_tokens(self) -> None:
        environ = {**JWT, "CATALOG_AUTH_JWKS_FILE": "jwks.json", "CATALOG_SIDECAR_HOST": "0.0.0.0"}
        assert load(None, environ).sidecar.host == "0.0.0.0"

    def test_no_clash_is_reported_with_a_value_that_is_refused_itself(self) -> None:
        environ = {"CATALOG_AUTH_MODE": "jtw", "CATALOG_SIDECAR_HOST": "0.0.0.0"}
        assert only_problem(environ=environ).name == "auth.mode"

    def test_tokens_need_a_key_an_issuer_and_an_audience(self) -> None:
        error = refusal(environ={"CATALOG_AUTH_MODE": "jwt"})
        assert [problem.name for problem in error.problems] == ["auth.jwks_file", "auth.issuer", "auth.audience"]
        assert error.problems[1].origin == "default; CATALOG_AUTH_ISSUER sets it too"

    @pytest.mark.parametrize(
        "env, value",
        [
            ("CATALOG_AUTH_JWKS_FILE", "key"),
            ("CATALOG_AUTH_HS256_SECRET", "key"),
            ("CATALOG_AUTH_JWKS_URL", "https://lms.example.test/jwks.json"),
        ],
    )
    def test_any_kind_of_key_will_do(self, env: str, value: str) -> None:
        assert load(None, {**JWT, env: value}).auth.mode == "jwt"

    @pytest.mark.parametrize("missing", sorted(set(DISCOVERY) - {"CATALOG_SOURCE_KIND"}))
    def test_discovery_needs_its_addresses_and_its_client(self, missing: str) -> None:
        problem = only_problem(environ={env: text for env, text in DISCOVERY.items() if env != missing})
        assert missing in problem.origin
        assert problem.remedy == 'must be set, because source.kind = "discovery"'

    def test_discovery_with_all_that_it_needs(self) -> None:
        assert load(None, DISCOVERY).source.kind == "discovery"

    @pytest.mark.parametrize("refresh_s", ["86400", "90000"])
    def test_refresh_must_come_before_content_is_stale(self, refresh_s: str) -> None:
        problem = only_problem(environ={"CATALOG_INDEXER_REFRESH_S": refresh_s})
        assert problem.name == "indexer.refresh_s"
        assert problem.remedy.endswith("because indexer.freshness_s = 86400")


class TestSecrets:
    def test_representation_hides_them(self) -> None:
        environ = DISCOVERY | {"CATALOG_AUTH_HS256_SECRET": "hush", "CATALOG_STORE_URL": "redis://me:hush@127.0.0.1"}
        shown = repr(load(None, environ))
        assert "hush" not in shown
        assert "oauth_client_secret=***" in shown
        assert 'url="redis://***@127.0.0.1"' in shown

    @pytest.mark.parametrize(
        "environ",
        [
            {"CATALOG_AUTH_HS256_SECRTE": "hush"},
            {"CATALOG_STORE_URL": "memory://me:hush@host"},
            {"CATALOG_STORE_URL": "redis:/:hush/@/x@"},
            {"CATALOG_STORE_URL": "me:hush@host"},
            {"CATALOG_REGISTRY_URL": "postgresql://host/db?user=me&password=hush&ssl=1"},
            {"CATALOG_SOURCE_URL": "https://host/?access_token=hush"},
            {"CATALOG_AUTH_MODE": "jwt", "CATALOG_AUTH_HS256_SECRET": "hush"},
        ],
    )
    def test_refusals_of_the_environment_hide_them(self, environ: dict[str, str]) -> None:
        assert "hush" not in str(refusal(environ=environ))

    @pytest.mark.parametrize(
        "text",
        [
            "[auth]\nhs256_secret = 1234567\n",
            "[auth]\nhs256_secret = [1234567]\n",
            "[auth]\nhs256_secrets = 1234567\n",
            '[store]\nurl = ["redis://:1234567@host"]\n',
            '[store]\nurl = { password = "1234567" }\n',
            'auth = "1234567"\n',
        ],
    )
    def test_refusals_of_the_file_hide_them(self, toml: WriteToml, text: str) -> None:
        assert "1234567" not in str(refusal(toml(text)))


@hypothesis.settings(deadline=None)
@given(st.sampled_from(rows()), st.text())
def test_any_text_in_the_environment_is_either_taken_or_refused_by_name(row: Row, text: str) -> None:
    outcome = outcome_of({row.env: text})
    if isinstance(outcome, SettingsError):
        assert any(row.full_name in str(problem) or row.env in str(problem) for problem in outcome.problems)
    else:
        assert type(value_of(outcome, row)).__name__ == row.type


def test_a_store_may_lie_in_a_folder_with_a_space_in_its_name() -> None:
    url = "sqlite:////srv/open edx/store.db"
    assert load(None, {"CATALOG_STORE_URL": url}).store.url == url


@pytest.mark.parametrize(
    "name, env, value",
    [
        ("store.url", "CATALOG_STORE_URL", "sqlite:///{folder}/one file.db"),
        ("registry.url", "CATALOG_REGISTRY_URL", "sqlite+aiosqlite:///{folder}/one file.db?timeout=5"),
        ("source.path", "CATALOG_SOURCE_PATH", "{folder}/one file.db"),
    ],
)
def test_a_disk_copy_in_the_place_of_another_file_is_refused(tmp_path: Path, name: str, env: str, value: str) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "one file.db")
    for disk in ("one file.db", "sub/../one file.db", "./one file.db", "link.db"):
        problem = only_problem(None, {env: value.format(folder=tmp_path), "CATALOG_SIDECAR_DISK": f"{tmp_path}/{disk}"})
        assert problem.name == "sidecar.disk"
        assert f"alone, because {name} = " in problem.remedy


def test_a_disk_copy_in_the_place_of_the_settings_file_is_refused(toml: WriteToml) -> None:
    path = toml("")
    relative = os.path.relpath(path)
    problem = only_problem(path, {"CATALOG_SIDECAR_DISK": relative})
    assert (problem.name, problem.origin) == ("sidecar.disk", "environment, CATALOG_SIDECAR_DISK")
    assert problem.remedy == "that is the settings file itself; name a file that is the disk copy's alone"


def test_without_a_disk_copy_it_is_in_nobodys_place() -> None:
    assert load(None, {"CATALOG_SIDECAR_DISK": ""}).sidecar.disk == ""


@pytest.mark.parametrize(
    "value", ["", " ", "https://a.example.test", "https://a.example.test , http://localhost:8080,"]
)
def test_origins_are_what_browsers_send(value: str) -> None:
    listed = load(None, {"CATALOG_SIDECAR_CORS_ORIGINS": value}).sidecar.cors_origins
    assert all(origin.startswith("http") for origin in origins(listed))
    assert len(origins(listed)) == value.count("//")


@pytest.mark.parametrize(
    "value", ["*", "null", "https://A.example.test", "https://a.example.test/", "a.example.test", "https://a.test:443"]
)
def test_what_no_browser_sends_is_no_origin(value: str) -> None:
    for text in (value, f"https://portal.example.test,{value}"):
        problem = only_problem(None, {"CATALOG_SIDECAR_CORS_ORIGINS": text})
        assert problem.name == "sidecar.cors_origins"
