"""Signing in to the pages: passwords, sessions, forms, tokens, and what is decided in a browser."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from skillhub_registry import passwords, sessions
from skillhub_registry.calls import Permission
from skillhub_registry.routes.table import ENDPOINTS
from tests.registry.sites import HARM, PASSWORD, Forms, Site, add_user, find_site, set_password, submit
from tests.support.registry_process import RegistryProcess


@pytest.fixture(scope="module")
def site(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return find_site(registry, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def owner(site: Site) -> Iterator[httpx2.Client]:
    with site.sign_in("pages-owner") as client:
        yield client


@pytest.fixture(scope="module")
def guest(site: Site) -> Iterator[httpx2.Client]:
    with site.sign_in("pages-guest") as client:
        yield client


def test_a_session_is_a_cookie_that_ends_when_somebody_signs_out(site: Site) -> None:
    with site.open() as client:
        before = client.get("/login").cookies["skillhub_session"]
        answer = submit(client, "/login?next=/pages", "/login", {"name": "PAGES-OWNER", "password": PASSWORD})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        for part in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age=1209600"):
            assert part in cookie
        assert "Secure" not in cookie
        secret = client.cookies["skillhub_session"]
        assert secret != before
        assert ">pages-owner</a>" in client.get("/").text
        assert client.get(f"/{site.private}").status_code == 200
        assert site.registry.query("SELECT 1 FROM sessions WHERE digest = ?", secret) == []
        assert submit(client, "/", "/logout", {}).status_code == 303
        client.cookies.set("skillhub_session", secret)
        assert client.get(f"/{site.private}").status_code == 404


def test_behind_https_the_cookie_is_for_https_only(site: Site) -> None:
    with site.open() as client:
        answer = client.get("/login", headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("cookie", [r'"a\012b"', r'"\377"', "x" * 3000, "short"])
def test_a_cookie_that_the_registry_did_not_make_is_replaced(site: Site, cookie: str) -> None:
    with site.open() as client:
        answer = client.get("/login", headers={"Cookie": f"skillhub_session={cookie}"})
    assert answer.status_code == 200
    assert re.match(r"skillhub_session=[A-Za-z0-9_-]{43};", answer.headers["set-cookie"])


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("/pages/math-pack?a=b", True),
        ("//evil.example", False),
        ("/\\evil.example", False),
        ("https://evil.example", False),
        ("/a\r\nb", False),
    ],
)
def test_signing_in_leads_nowhere_else(site: Site, asked: str, allowed: bool) -> None:
    with site.open() as client:
        page = Forms(client.get("/login", params={"next": asked}).text)
        shown = next(values["value"] for tag, values in page.elements if values.get("name") == "next")
        assert shown == (asked if allowed else "/")
        entered = submit(client, "/login", "/login", {"name": "pages-guest", "password": PASSWORD, "next": asked})
        assert (entered.status_code, entered.headers["location"]) == (303, shown)


def test_wrong_names_and_passwords_are_told_the_same(site: Site) -> None:
    with site.open() as client:
        tried = [("pages-owner", "a wrong password"), ("nobody-here", PASSWORD), (site.registry.user, PASSWORD)]
        answers = [submit(client, "/login", "/login", {"name": a, "password": b}) for a, b in tried]
    assert {(answer.status_code, answer.headers["X-Error-Code"]) for answer in answers} == {(401, "WrongPassword")}
    texts = {re.sub(r'value="[^"]*"', "", answer.text) for answer in answers}
    assert len(texts) == 1
    assert "There is no user of that name with that password" in texts.pop()


def test_tries_are_limited_by_account_and_address(site: Site, registry: RegistryProcess) -> None:
    add_user(registry, "pages-guarded")
    with registry.open_database() as database:

        def try_it(name: str, password: str, address: str) -> str:
            return passwords.sign_in(database, passwords.Attempt(name, address, "POST /login"), password)

        for _ in range(passwords.TRIES_HERE):
            with pytest.raises(Exception, match="no user of that name"):
                try_it("pages-guarded", "wrong", "192.0.2.1")
        with pytest.raises(Exception, match="Too many tries"):
            try_it("Pages-Guarded", PASSWORD, "192.0.2.1")
        assert try_it("pages-guarded", PASSWORD, "192.0.2.2")
        for number in range(passwords.TRIES_OF_ADDRESS):
            with database.write() as connection:
                passwords._count_try(connection, passwords._subjects(f"somebody-{number}", f"2001:db8::{number:x}"))
        with pytest.raises(Exception, match="Too many tries"):
            try_it("pages-guarded", PASSWORD, "2001:db8::ffff")
        with database.write() as connection:
            connection.execute("UPDATE sign_in_tries SET since = since - ?", (passwords.WINDOW_SECONDS,))
        assert try_it("pages-guarded", PASSWORD, "192.0.2.1")


def test_sessions_expire_and_end_with_the_password(site: Site, registry: RegistryProcess) -> None:
    with site.sign_in("pages-guarded") as client, site.sign_in("pages-guarded") as other:
        with registry.open_database() as database, database.write() as connection:
            digest = sessions._digest(client.cookies[sessions.COOKIE])
            connection.execute("UPDATE sessions SET expires_at = 1 WHERE digest = ?", (digest,))
        assert [one.get("/settings/tokens").status_code for one in (client, other)] == [401, 200]
        set_password(registry, "pages-guarded", "another password")
        assert [one.get("/settings/tokens").status_code for one in (client, other)] == [401, 401]


def test_passwords_are_long_and_stored_as_hashes(registry: RegistryProcess, site: Site) -> None:
    with pytest.raises(Exception, match="10 to 1000"):
        set_password(registry, "pages-guest", "too short")
    (stored,) = registry.query(
        "SELECT p.hash FROM passwords p JOIN accounts a ON a.id = p.account_id WHERE a.name = ?", "pages-owner"
    )
    assert stored[0].startswith("$argon2id$v=19$")


POSTED = [one for one in ENDPOINTS if one.sessions and one.method == "POST"]


def fill(path: str) -> str:
    values = {"namespace": "pages", "name": "a-model", "number": "1"}
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], path)


@pytest.mark.parametrize("endpoint", POSTED, ids=lambda one: one.path)
def test_forms_of_other_pages_are_refused(
    owner: httpx2.Client, guest: httpx2.Client, site: Site, endpoint: object
) -> None:
    path = fill(endpoint.path)  # type: ignore[attr-defined]
    fields = {
        "title": "A title",
        "comment": "x",
        "status": "closed",
        "name": "x",
        "scope": "write",
        "password": PASSWORD,
    }
    stolen = Forms(guest.get(f"/{site.model}/discussions/1").text).fields
    for token in ({}, {"form_token": ""}, {"form_token": "0" * 64}, stolen):
        answer = owner.post(path, data={**fields, **token})
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (403, "InvalidForm")
    with site.open() as nobody:
        assert nobody.post(path, data=fields).status_code in (401, 403)


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if not one.sessions], ids=lambda one: one.path)
def test_the_protocol_knows_no_sessions(owner: httpx2.Client, site: Site, endpoint: object) -> None:
    asks = endpoint.permission not in (Permission.ANYONE, Permission.GRANT, Permission.OPERATE)  # type: ignore[attr-defined]
    path = re.sub(r"\{(\w+)(?::path)?\}", "x", endpoint.path.replace("{namespace}/{name}", site.private))  # type: ignore[attr-defined]
    answer = owner.request(endpoint.method, path, headers={"Accept": "*/*"}, json={})  # type: ignore[attr-defined]
    assert not asks or answer.status_code in (401, 404)


def test_every_page_that_changes_something_is_posted() -> None:
    assert {one.method for one in ENDPOINTS if one.sessions} == {"GET", "POST"}


def test_tokens_are_made_shown_once_and_revoked(
    owner: httpx2.Client, guest: httpx2.Client, site: Site, registry: RegistryProcess
) -> None:
    page = "/settings/tokens"
    made = submit(owner, page, page, {"name": HARM, "scope": "read", "days": "30", "limits": site.private})
    assert made.status_code == 200
    assert made.headers["cache-control"] == "no-store"
    assert "<script>alert" not in made.text
    found = re.search(r"hf_\w{34}", made.text)
    assert found
    assert found[0] not in owner.get(page).text
    api = HfApi(endpoint=registry.endpoint, token=found[0])
    assert api.whoami()["auth"]["accessToken"]["role"] == "read"
    assert f">{site.private}</td>" in made.text
    assert api.repo_exists(site.private)
    number = re.findall(r"/settings/tokens/(\d+)/revoke", made.text)[-1]
    assert submit(guest, page, f"{page}/{number}/revoke", {}).status_code == 404
    assert submit(owner, page, f"{page}/{number}/revoke", {}).status_code == 303
    with pytest.raises(Exception, match="Invalid user token"):
        api.whoami()
    good = {"name": "x", "scope": "read", "days": "0", "limits": ""}
    for bad in ({"name": ""}, {"scope": "all"}, {"name": "a\nb"}, {"days": "7"}, {"limits": "pages, nobody/x"}):
        assert submit(owner, page, page, {**good, **bad}).status_code == 400
    for name in (site.private, "pages/missing"):
        refused = submit(guest, page, page, {**good, "limits": name})
        assert f"There is no repository {name}" in refused.text


def test_no_token_makes_another(registry: RegistryProcess, site: Site) -> None:
    with site.open() as client:
        headers = {"Authorization": f"Bearer {registry.token}"}
        for method in ("GET", "POST"):
            assert client.request(method, "/settings/tokens", headers=headers).status_code == 403


def test_access_is_asked_for_and_given_in_a_browser(owner: httpx2.Client, guest: httpx2.Client, site: Site) -> None:
    page = f"/{site.gated}"
    assert "Ask for access" in guest.get(page).text
    assert submit(guest, page, f"{page}/access", {}).status_code == 303
    assert "has not decided yet" in guest.get(page).text
    assert guest.get(f"{page}/access-requests").status_code == 403
    requests = f"{page}/access-requests"
    assert ">pages-guest</a>" in owner.get(requests).text
    assert submit(owner, requests, requests, {"user": "pages-guest", "status": "rejected"}).status_code == 303
    assert "did not give you access" in guest.get(page).text
    assert submit(owner, requests, requests, {"user": "pages-guest", "status": "accepted"}).status_code == 303
    assert "Size by kind of module" in guest.get(page).text
    assert guest.get(f"{page}/resolve/main/README.md").status_code == 200
    assert submit(owner, requests, requests, {"user": "pages-guest", "status": "odd"}).status_code == 400


def test_a_pull_request_is_talked_about_and_merged(owner: httpx2.Client, guest: httpx2.Client, site: Site) -> None:
    page = f"/{site.model}/discussions/1"
    assert "Merge into" not in guest.get(page).text
    assert submit(guest, page, f"{page}/merge", {}).status_code == 403
    assert submit(guest, page, f"{page}/comment", {"comment": f"**Well** {HARM}"}).status_code == 303
    assert "<strong>Well</strong> &lt;script&gt;" in guest.get(page).text
    assert submit(guest, page, f"{page}/comment", {"comment": ""}).status_code == 400
    assert submit(guest, page, f"{page}/status", {"status": "closed"}).status_code == 303
    assert "closes it" in owner.get(page).text
    assert submit(owner, page, f"{page}/merge", {}).status_code == 409
    assert submit(owner, page, f"{page}/status", {"status": "open"}).status_code == 303
    assert submit(owner, page, f"{page}/merge", {}).status_code == 303
    assert "merges it" in owner.get(page).text


def test_discussions_and_drafts_begin_in_a_browser(guest: httpx2.Client, site: Site) -> None:
    page = f"/{site.model}/discussions"
    for kind, word in (("discussion", "Discussion"), ("pull request", "Pull request")):
        made = submit(guest, page, page, {"title": HARM, "description": "Why", "kind": kind})
        assert made.status_code == 303
        assert f"{word} {made.headers['location'].rpartition('/')[2]} by" in guest.get(made.headers["location"]).text
    assert submit(guest, page, page, {"title": "x"}).status_code == 400
    assert str(HARM) not in guest.get(page).text


def test_passwords_are_set_on_the_command_line(registry: RegistryProcess, site: Site, tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.support.registry_process import registry_environment

    def set_one(name: str, typed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skillhub_registry", "user", "password", name, "--data", str(registry.data)]
        environment = registry_environment()
        return subprocess.run(
            [*command, *registry.place], input=typed, text=True, env=environment, capture_output=True, check=False
        )

    assert set_one("pages-guarded", "from the command line\n").returncode == 0
    with site.sign_in("pages-guarded", "from the command line") as client:
        assert client.get("/settings/tokens").status_code == 200
    assert "10 to 1000 characters" in set_one("pages-guarded", "short\n").stderr
    assert "no user" in set_one("pages-nobody", "from the command line\n").stderr


def test_who_is_shut_out_is_let_in_no_more(site: Site) -> None:
    registry = site.registry
    add_user(registry, "shut-out")
    registry.run("org", "add", "shut-out-team", "--member", "shut-out")
    api = HfApi(endpoint=registry.endpoint, token=registry.tokens["shut-out"])
    for name in ("shut-out/own", "shut-out-team/shared"):
        api.create_repo(name, private=True)
    with site.sign_in("shut-out") as client:
        assert client.get("/shut-out/own").status_code == 200
        registry.run("user", "shut-out", "shut-out")
        assert client.get("/shut-out/own").status_code == 404
    with site.open() as client:
        answer = submit(client, "/login", "/login", {"name": "shut-out", "password": PASSWORD})
        assert answer.status_code == 401
    with pytest.raises(HfHubHTTPError) as refused:
        api.whoami()
    assert refused.value.response.status_code == 401
    again = HfApi(endpoint=registry.endpoint, token=registry.create_token("shut-out"))
    assert [one.id for one in again.list_models(author="shut-out")] == ["shut-out/own"]
    assert again.whoami()["orgs"] == []
    assert list(again.list_models(author="shut-out-team")) == []
    audit = json.loads(registry.run("audit", "--json"))
    told = [one for one in audit if one["action"].endswith("user shut-out")]
    assert [json.loads(one["detail"]) for one in told] == [
        {"name": "shut-out", "tokens": 1, "memberships": {"shut-out-team": "admin"}}
    ]


def test_who_is_shut_out_has_no_access_to_gated_repositories_any_more(site: Site) -> None:
    registry = site.registry
    add_user(registry, "shut-out-reader")
    reader = HfApi(endpoint=registry.endpoint, token=registry.tokens["shut-out-reader"])
    owner = HfApi(endpoint=registry.endpoint, token=registry.find_user("shut-out-owner"))
    name = owner.create_repo("shut-out-owner/gated").repo_id
    owner.upload_file(path_or_fileobj=b"weights", path_in_repo="a.txt", repo_id=name)
    owner.update_repo_settings(name, gated="auto")
    owner.grant_access(name, "shut-out-reader")
    assert reader.get_hf_file_metadata(url=hf_hub_url(name, "a.txt", endpoint=registry.endpoint)).size == 7
    registry.run("user", "shut-out", "shut-out-reader")
    again = HfApi(endpoint=registry.endpoint, token=registry.create_token("shut-out-reader"))
    with pytest.raises(GatedRepoError):
        again.get_hf_file_metadata(url=hf_hub_url(name, "a.txt", endpoint=registry.endpoint))


def test_a_body_that_never_had_anything_keeps_no_rights_either(site: Site) -> None:
    registry, user = site.registry, "shut-out-empty"
    add_user(registry, user)
    HfApi(endpoint=registry.endpoint, token=registry.tokens[user]).create_repo(f"{user}/own")
    address = urlsplit(registry.endpoint)
    with contextlib.closing(HTTPConnection(address.hostname or "", address.port)) as slow:
        slow.putrequest("POST", f"/api/models/{user}/own/branch/late")
        slow.putheader("Authorization", f"Bearer {registry.tokens[user]}")
        slow.putheader("Transfer-Encoding", "chunked")
        slow.endheaders()
        registry.run("user", "shut-out", user)
        slow.send(b"0\r\n\r\n")
        assert slow.getresponse().status == 401
    again = HfApi(endpoint=registry.endpoint, token=registry.create_token(user))
    assert [one.name for one in again.list_repo_refs(f"{user}/own").branches] == ["main"]


@pytest.mark.parametrize("what", ["token", "commit"])
def test_a_request_that_was_begun_before_is_refused_when_it_ends_after_being_shut_out(site: Site, what: str) -> None:
    registry, user = site.registry, f"shut-out-slow-{what}"
    add_user(registry, user)
    secret = registry.tokens[user]
    HfApi(endpoint=registry.endpoint, token=secret).create_repo(f"{user}/own")
    with site.sign_in(user) as client:
        page = Forms(client.get("/settings/tokens").text)
        form = {"form_token": page.fields["form_token"], "name": "kept", "scope": "write", "days": "0", "limits": ""}
        cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    if what == "token":
        path, body, headers = "/settings/tokens", urlencode(form), {"Cookie": cookies, "Origin": registry.endpoint}
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    else:
        path, headers = f"/api/models/{user}/own/commit/main", {"Authorization": f"Bearer {secret}"}
        lines = [
            {"key": "header", "value": {"summary": "Late"}},
            {"key": "file", "value": {"path": "late", "content": ""}},
        ]
        body = "\n".join(json.dumps(line) for line in lines)
    address = urlsplit(registry.endpoint)
    with contextlib.closing(HTTPConnection(address.hostname or "", address.port)) as slow:
        slow.putrequest("POST", path)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            slow.putheader(name, value)
        slow.endheaders(body[:1].encode())
        registry.run("user", "shut-out", user)
        slow.send(body[1:].encode())
        assert slow.getresponse().status in (401, 403)
    found = registry.query(
        "SELECT count(*) FROM tokens t JOIN accounts a ON a.id = t.account_id WHERE a.name = ?", user
    )
    assert found[0][0] == 0
    again = HfApi(endpoint=registry.endpoint, token=registry.create_token(user))
    assert [one.title for one in again.list_repo_commits(f"{user}/own")] == ["initial commit"]


def test_shutting_out_somebody_who_is_not_there_says_so(registry: RegistryProcess) -> None:
    with pytest.raises(RuntimeError, match="no user nobody-at-all"):
        registry.run("user", "shut-out", "nobody-at-all")
