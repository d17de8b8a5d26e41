"""What the audit log tells of passwords, sessions and tokens, and how passwords are changed in a browser."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import pytest
import requests

from skillhub_registry import accounts, audit, passwords
from skillhub_registry.audit import Change, clean_given, list_changes, record_change, record_failure
from skillhub_registry.tokens import create_token
from tests.registry.sites import PASSWORD, Forms, Site, add_user, find_site, set_password, submit
from tests.support.registry_process import RegistryProcess

PAGE = "/settings/password"
OTHER = "another horse battery"


@pytest.fixture(scope="module")
def site(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return find_site(registry, tmp_path_factory.mktemp("site"))


@pytest.fixture
def person(site: Site) -> str:
    """A user of the test's own, with a password and a token."""
    name = f"log-{len(site.registry.tokens)}"
    add_user(site.registry, name)
    return name


def told(registry: RegistryProcess, *options: str) -> list[dict[str, Any]]:
    """Return the latest entries of the audit log, the last one first, with their details."""
    entries = json.loads(registry.run("audit", "--json", *options))
    return [{**entry, "detail": json.loads(entry["detail"] or "{}")} for entry in entries]


def change(
    client: httpx2.Client, current: str, password: str, again: str | None = None, **more: str
) -> httpx2.Response:
    """Fill the form that changes a password and send it."""
    fields = {"current": current, "password": password, "again": password if again is None else again}
    return submit(client, PAGE, PAGE, {**fields, **more})


def test_signing_in_and_out_is_told_and_so_is_failing_to(site: Site, person: str) -> None:
    elsewhere = {"X-Forwarded-For": "192.0.2.77"}
    with site.open() as client:
        client.headers.update(elsewhere)
        submit(client, "/login", "/login", {"name": person, "password": "a wrong secret"})
        submit(
            client, "/login", "/login", {"name": f" {person}\x1b[31m\u202e hf_{'a' * 34} " + "x" * 500, "password": "b"}
        )
        submit(client, "/login", "/login", {"name": person.upper(), "password": PASSWORD})
        submit(client, "/", "/logout", {})
    out, entered, odd, wrong = told(site.registry, "--limit", "4")
    assert {entry["address"] for entry in (out, entered, odd, wrong)} == {"192.0.2.77"}
    assert (out["account"], out["action"], out["failed"]) == (person, "POST /logout", False)
    assert (entered["account"], entered["action"], entered["failed"]) == (person, "POST /login", False)
    assert entered["detail"] == {"outcome": "signed in"}
    assert (wrong["account"], wrong["action"], wrong["failed"]) == ("(nobody)", "POST /login", True)
    assert wrong["detail"] == {"name": person, "outcome": "wrong name or password"}
    assert odd["detail"]["name"].startswith(f"{person}?[31m? hf_*** xxx")
    assert odd["detail"]["name"].isprintable()
    assert len(odd["detail"]["name"]) == 96
    everything = json.dumps(told(site.registry))
    for secret in ("a wrong secret", PASSWORD, "a" * 34):
        assert secret not in everything
    shown = site.registry.run("audit", "--limit", "4")
    assert "(nobody) 192.0.2.77  FAILED\n    POST /login   {" in shown
    assert {entry["failed"] for entry in told(site.registry, "--failures")} == {True}
    assert {entry["failed"] for entry in told(site.registry, "--no-failures")} == {False}


def test_signing_in_again_is_told_once_and_not_as_the_one_before(site: Site, person: str) -> None:
    with site.sign_in("pages-owner") as client:
        fields = {**Forms(client.get("/").text).fields, "name": person}
        client.post("/login", data={**fields, "password": "wrong"})
        client.post("/login", data={**fields, "password": PASSWORD})
    entered, wrong, before = told(site.registry, "--limit", "3")
    assert [one["account"] for one in (entered, wrong, before)] == [person, "(nobody)", "pages-owner"]
    assert [one["failed"] for one in (entered, wrong, before)] == [False, True, False]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("192.0.2.78:4711", "192.0.2.78"),
        ("[2001:db8::78]:4711", "2001:db8::78"),
        ("2001:db8::79", "2001:db8::79"),
        ("fe80::1%x\x9b31m", "fe80::1"),
        ("198.51.100.1 root\x9b31m signed in", "(unknown)"),
    ],
)
def test_what_a_proxy_says_of_a_client_is_told_as_an_address_alone(
    site: Site, person: str, said: str, shown: str
) -> None:
    with site.open() as client:
        token = Forms(client.get("/login").text).fields["form_token"]
        fields = {"form_token": token, "name": person, "password": "a wrong password"}
        client.post("/login", data=fields, headers={"X-Forwarded-For": said.encode("latin-1")})  # type: ignore[dict-item]
    entry = told(site.registry, "--limit", "1")[0]
    assert (entry["address"], entry["detail"]["name"]) == (shown, person)


def test_refused_tries_are_told_once(site: Site, person: str) -> None:
    attempt = passwords.Attempt(person, "192.0.2.78", "POST /login")
    with site.registry.open_database() as database:
        for _ in range(passwords.TRIES_HERE + 5):
            with pytest.raises(Exception, match=r"no user of that name|Too many tries"):
                passwords.sign_in(database, attempt, "wrong")
    entries = [one for one in told(site.registry, "--failures") if one["detail"].get("name") == person]
    outcomes = [one["detail"]["outcome"] for one in entries]
    assert outcomes == ["too many tries", *["wrong name or password"] * passwords.TRIES_HERE]


def test_a_flood_of_failures_fills_no_disk(registry: RegistryProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many failures some are told, the others are counted, and the oldest go; changes stay."""
    with registry.open_database() as database:
        with database.write() as connection:
            connection.execute("UPDATE audit SET made_at = made_at - ? WHERE failed = 1", (audit.FAILURE_SECONDS,))
            before = count_rows(connection)
            record_change(connection, Change("ann", "", "a change"))
            for number in range(audit.FAILURES_TOLD + 50):
                record_failure(connection, Change("(nobody)", f"192.0.2.{number}", "POST /login"))
            assert count_rows(connection) == before + 1 + audit.FAILURES_TOLD + 1
            untold = list_changes(connection, failed=True, limit=1)[0]
            assert json.loads(untold.detail) == {"untold": 50}
        monkeypatch.setattr(audit, "FAILURES_KEPT", 20)
        with database.write() as connection:
            changes = len(list_changes(connection, failed=False, limit=10**6))
            connection.execute("UPDATE audit SET made_at = made_at - ? WHERE failed = 1", (audit.FAILURE_SECONDS,))
            record_failure(connection, Change("(nobody)", "192.0.2.1", "the last"))
            kept = list_changes(connection, failed=True, limit=10**6)
            assert (len(kept), kept[0].action) == (20, "the last")
            assert len(list_changes(connection, failed=False, limit=10**6)) == changes


def count_rows(connection: Any) -> int:
    return int(connection.execute("SELECT count(*) FROM audit").fetchone()[0])


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("ann", "ann"),
        ("a\nb\x00", "a?b?"),
        ("é" * 3, "???"),
        ("hf_" + "Q" * 34, "hf_***"),
        ("x" * 200, "x" * 93 + "..."),
    ],
)
def test_what_strangers_type_is_told_in_one_short_line(given: str, shown: str) -> None:
    assert clean_given(given) == shown


def test_tokens_are_told_by_number_from_their_making_to_their_end(site: Site, person: str) -> None:
    registry, page = site.registry, "/settings/tokens"
    with site.sign_in(person) as client:
        fields = {"name": "for a job", "scope": "read", "days": "30", "limits": f"pages {site.pack}"}
        submit(client, page, page, fields)
        number = told(registry, "--limit", "1")[0]["detail"]["number"]
        submit(client, page, f"{page}/{number}/revoke", {})
    revoked, made = told(registry, "--limit", "2")
    expected = {"number": number, "name": "for a job", "scope": "read", "days": 30, "limits": ["pages", site.pack]}
    assert (made["account"], made["detail"]) == (person, expected)
    assert (revoked["account"], revoked["detail"]) == (person, {"number": number, "name": "for a job", "user": person})
    secret = registry.run("token", "create", person).strip()
    made = told(registry, "--limit", "1")[0]
    registry.run("token", "revoke", str(made["detail"]["number"]))
    revoked = told(registry, "--limit", "1")[0]
    assert (revoked["account"], revoked["detail"]["user"]) == ("(command line)", person)
    assert secret not in registry.run("audit")


def test_using_a_token_after_its_end_is_told_once_a_day(site: Site, person: str) -> None:
    registry = site.registry
    with registry.open_database() as database, database.write() as connection:
        account = accounts.get_account(connection, person, "user")
        secret = create_token(connection, account, "read", "of last year", expires_at=int(time.time()) - 1)
    headers = {"Authorization": f"Bearer {secret}"}
    for _ in range(3):
        assert requests.get(f"{registry.endpoint}/api/whoami-v2", headers=headers).status_code == 401
    mine = [one for one in told(registry, "--failures") if one["account"] == person]
    (entry,) = mine
    assert (entry["action"], entry["address"]) == ("(expired token)", "127.0.0.1")
    assert entry["detail"]["name"] == "of last year"
    assert secret not in json.dumps(mine)


def test_a_password_is_changed_in_a_browser(site: Site, person: str) -> None:
    registry = site.registry
    with site.sign_in(person) as here, site.sign_in(person) as elsewhere:
        before = here.cookies["skillhub_session"]
        answer = change(here, PASSWORD, OTHER)
        assert answer.status_code == 303
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert here.cookies["skillhub_session"] != before
        assert 'role="status"' in here.get(answer.headers["location"]).text
        assert elsewhere.get(PAGE).status_code == 401
        elsewhere.cookies.set("skillhub_session", before)
        assert elsewhere.get(PAGE).status_code == 401
    assert whoami(registry, person).status_code == 200
    entry = told(registry, "--limit", "1")[0]
    assert (entry["account"], entry["action"], entry["failed"]) == (person, "POST /settings/password", False)
    assert entry["detail"] == {"outcome": "changed", "tokens_revoked": 0}
    with site.sign_in(person, OTHER), site.open() as client:
        assert submit(client, "/login", "/login", {"name": person, "password": PASSWORD}).status_code == 401
    (stored,) = registry.query(
        "SELECT p.hash FROM passwords p JOIN accounts a ON a.id = p.account_id WHERE a.name = ?", person
    )
    assert stored[0].startswith("$argon2id$v=19$")


def whoami(registry: RegistryProcess, person: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {registry.tokens[person]}"}
    return requests.get(f"{registry.endpoint}/api/whoami-v2", headers=headers)


def test_changing_a_password_may_end_all_tokens(site: Site, person: str) -> None:
    with site.sign_in(person) as client:
        assert change(client, PASSWORD, OTHER, tokens="revoke").status_code == 303
    assert whoami(site.registry, person).status_code == 401
    assert told(site.registry, "--limit", "1")[0]["detail"] == {"outcome": "changed", "tokens_revoked": 1}


def test_a_password_that_may_not_be_changed_stays(site: Site, person: str) -> None:
    with site.sign_in(person) as client, site.sign_in(person) as elsewhere:
        for status, said, fields in (
            (400, "differ", (PASSWORD, OTHER, OTHER + "x")),
            (400, "10 to 1000", (PASSWORD, "short")),
            (400, "choose another", (PASSWORD, PASSWORD)),
            (400, "10 to 1000", (PASSWORD, "x" * 1001)),
            (403, "not your current password", ("a wrong password", OTHER)),
        ):
            answer = change(client, *fields)
            assert (answer.status_code, said in answer.text) == (status, True)
            assert 'role="alert"' in answer.text
            assert OTHER not in answer.text
        assert client.get(PAGE).status_code == elsewhere.get(PAGE).status_code == 200
    entry = told(site.registry, "--limit", "1")[0]
    assert (entry["account"], entry["failed"]) == (person, True)
    assert entry["detail"] == {"name": person, "outcome": "wrong name or password"}


def test_guessing_a_password_in_somebody_elses_session_is_limited(site: Site, person: str) -> None:
    with site.sign_in(person) as client:
        answers = [change(client, f"a wrong password {number}", OTHER) for number in range(passwords.TRIES_HERE + 1)]
        assert [one.status_code for one in answers] == [403] * passwords.TRIES_HERE + [429]
        assert "Retry-After" in answers[-1].headers
        assert change(client, PASSWORD, OTHER).status_code == 429
    set_password(site.registry, person, PASSWORD)


def test_the_form_of_the_password_is_labelled_and_helps_password_managers(site: Site, person: str) -> None:
    with site.sign_in(person) as client:
        page = Forms(client.get(PAGE).text)
    asked = {values.get("autocomplete") for tag, values in page.elements if tag == "input"}
    assert {"username", "current-password", "new-password"} <= asked
    labelled = {values.get("for") for tag, values in page.elements if tag == "label"}
    inputs = [values for tag, values in page.elements if tag == "input" and values.get("type") != "hidden"]
    assert {values.get("id") for values in inputs} <= labelled
