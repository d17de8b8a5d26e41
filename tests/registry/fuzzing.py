"""What a fuzzer of the registry's routes needs: repositories with something in all places, callers, and real values."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from huggingface_hub import HfApi
from schemathesis import Case, Response, SerializationContext, serializer

from skillhub_registry import accounts, passwords, sessions
from skillhub_registry.repositories import MEMBERS
from skillhub_registry.signing import load_signer
from skillhub_registry.tokens import create_token, list_tokens
from tests.registry.sites import HTML, PASSWORD, Forms, publish_releases
from tests.registry.test_xet import make_shard, pack_chunk, to_hex
from tests.support.packs import BASE, payload
from tests.support.registry_process import RegistryProcess

OWNER, READER, BROWSER, ORGANIZATION = "fuzz-owner", "fuzz-reader", "fuzz-browser", "fuzz-org"
TEMPLATE = "fuzz-template/pack"
"""What the repositories are copied from, again and again; nobody who fuzzes may change it."""

REPOSITORIES = {f"{OWNER}/pack": {}, f"{ORGANIZATION}/gated": {"gated": "manual"}, f"{OWNER}/secret": {"private": True}}
"""The repositories, and the settings of each."""

CONTENT = b"what a fuzzer sends"
LARGE = payload("a large file", 200)
XORB_HASH = bytes(range(32))
XORB = pack_chunk(CONTENT, 0)
SHARD = make_shard([(hashlib.sha256(CONTENT).digest(), [(XORB_HASH, len(CONTENT), 0, 1)])])
WORDS = ["\0", "\x1b[31m", "a/../b", "%2e%2e", "\u202e", "9" * 30, "İ", "refs/heads/main", "\x85", "<b>'\"{{7*7}}"]
"""Texts that have been trouble elsewhere."""


Change = Callable[[list[str], dict[str, Any]], dict[str, Any]]
"""What becomes of the schema of a text, of which these values are known."""


@serializer("application/x-ndjson")
def write_lines(context: SerializationContext, value: Any) -> bytes:
    """Return a body of lines, each of them JSON."""
    lines = value if isinstance(value, list) else [value]
    return b"\n".join(requests.compat.json.dumps(line).encode() for line in lines)


@dataclass
class World:
    """A registry that is fuzzed: its callers' headers, and the values of parameters that lead to something."""

    registry: RegistryProcess
    callers: dict[str, dict[str, str]] = field(default_factory=dict)
    values: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    form_token: str = ""
    seen: dict[str, Counter[str]] = field(default_factory=dict)
    changed: bool = True

    def send(self, case: Case, caller: str) -> Response:
        """Send a case as a caller."""
        if caller == "browser" and isinstance(case.body, Mapping):
            case.body = {**case.body, "form_token": self.form_token}
        with requests.Session() as session:
            response = case.call(
                base_url=self.registry.endpoint, session=session, headers=self.callers[caller], timeout=60
            )
        self.seen.setdefault(case.operation.label, Counter())[f"{caller} {response.status_code}"] += 1
        self.changed |= case.method != "GET" and response.status_code < 400
        return response

    def call(self, method: str, path: str, caller: str = "owner", **arguments: Any) -> requests.Response:
        """Send a request that is no fuzzer's, and that must succeed or find something there already."""
        address = f"{self.registry.endpoint}{path}"
        answer = requests.request(method, address, headers=self.callers[caller], timeout=60, **arguments)
        assert answer.ok or answer.status_code in (404, 409), (method, path, answer.status_code, answer.text)
        return answer

    def restore(self) -> None:
        """Have everything there again that a request may have changed."""
        if not self.changed:
            return
        for name, settings in REPOSITORIES.items():
            namespace, _, short = name.partition("/")
            while self.call("DELETE", "/api/repos/delete", json={"organization": namespace, "name": short}).ok:
                pass  # under its name, and then under names that lead to what was moved away
            self._fill(name, settings)
        self._sign_in()
        self._sign_links()
        self.changed = False

    def _fill(self, name: str, settings: dict[str, Any]) -> None:
        at = f"/api/models/{name}"
        self.call("POST", f"/api/models/{TEMPLATE}/duplicate", json={"repository": name})
        self.call("PUT", f"{at}/settings", json=settings)
        self.call("POST", f"{at}/branch/work", json={})
        self.call("POST", f"{at}/tag/main", json={"tag": "v1", "message": "first"})
        self.call("POST", f"{at}/discussions", json={"title": "A question", "description": "of *some* kind"})
        header = '{"key": "header", "value": {"summary": "Change it"}}\n'
        line = '{"key": "file", "value": {"path": "README.md", "content": "# Other\\n"}}\n'
        self.call("POST", f"{at}/commit/main?create_pr=1", data=(header + line).encode())
        if "gated" in settings:
            self.call("POST", f"/{name}/ask-access", "reader")
        head = self.call("GET", f"{at}/commits/main").json()[0]["id"]
        events = self.call("GET", f"{at}/discussions/1").json()["events"]
        self.places[name] = {
            "revision": ["main", "work", "v1", "refs/pr/2", head],
            "comment": [event["id"] for event in events if event["type"] == "comment"],
            "number": ["1", "2", "3"],
        }
        self.values["parentCommit"] = [head, head[:10]]

    def _sign_in(self) -> None:
        with self.registry.open_database() as database, database.write() as connection:
            account = accounts.get_account(connection, BROWSER, "user")
            secret = sessions.start_session(connection, account)
            create_token(connection, account, "read", "to be revoked")
            self.values["token"] = [str(token.id) for token in list_tokens(connection, account)]
            connection.execute("DELETE FROM sign_in_tries")
        self.callers["browser"] = {**HTML, "Cookie": f"{sessions.COOKIE}={secret}"}
        self.form_token = Forms(self.call("GET", "/models", "browser").text).fields["form_token"]

    def _sign_links(self) -> None:
        """Make links for one file, and an access token with which a xorb has been sent."""
        ((repository,),) = self.registry.query(
            "SELECT r.id FROM repositories r JOIN accounts a ON a.id = r.namespace_id WHERE a.name = ? AND r.name = ?",
            *f"{OWNER}/pack".split("/"),
        )
        size, sha256 = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
        claims = {"repository": repository, "sender": MEMBERS, "oid": sha256, "size": size}
        parts = {"upload": "f" * 32, "count": 1, "number": 1, "length": size}
        signer = load_signer(self.registry.data / "signing.key")
        for kind in ("object", "part", "complete"):
            self.values[kind] = [signer.grant(f"lfs-{kind}", {**claims, **parts}, 3600)]
        self.call("PUT", f"/lfs/object/{self.values['object'][0]}", "anonymous", data=CONTENT)
        token = self.call("GET", f"/api/models/{OWNER}/pack/xet-write-token/main").json()["accessToken"]
        self.callers["sender"] = {"Authorization": f"Bearer {token}"}
        self.call("POST", f"/xet/v1/xorbs/default/{to_hex(XORB_HASH)}", "sender", data=XORB)


def make_world(registry: RegistryProcess, folder: Path) -> World:
    """Return a registry with accounts of each kind, and everything there once."""
    world = World(registry)
    with registry.open_database() as database, database.write() as connection:
        made = {name: accounts.add_account(connection, name) for name in (OWNER, READER, BROWSER, "fuzz-template")}
        for name in (READER, BROWSER):
            passwords.set_password(connection, made[name], PASSWORD)
        organization = accounts.add_account(connection, ORGANIZATION, "organization")
        for name, role in ((OWNER, "admin"), (BROWSER, "write")):
            accounts.add_member(connection, organization, made[name], role)
        secrets = {
            name: create_token(connection, account, "read" if name == READER else "write", "fuzzing")
            for name, account in made.items()
        }
    world.callers["anonymous"] = {}
    for caller, name in (("reader", READER), ("owner", OWNER)):
        world.callers[caller] = {"Authorization": f"Bearer {secrets[name]}"}
    api = HfApi(endpoint=registry.endpoint, token=secrets["fuzz-template"])
    publish_releases(api, TEMPLATE, folder, 2, requires=(f"{OWNER}/pack>=1", "nobody/at-all"))
    api.upload_file(path_or_fileobj=LARGE, path_in_repo="folder/a.safetensors", repo_id=TEMPLATE)
    world.values.update(list_values())
    world.restore()
    return world


def list_values() -> dict[str, list[str]]:
    """Return values of parameters and members that lead to something, by name."""
    digests = [hashlib.sha256(data).hexdigest() for data in (LARGE, CONTENT)]
    full = [*REPOSITORIES, f"{OWNER}/new", f"{ORGANIZATION}/new", TEMPLATE]
    files = ["README.md", "releases.jsonl", "releases/1.1/skillpack.json", "folder/a.safetensors", "folder", "new.txt"]
    return {
        "namespace": [OWNER, ORGANIZATION],
        "name": ["pack", "secret", "new", READER],
        "target.name": full,
        **{name: [PASSWORD] for name in ("password", "current", "again")},
        "title": ["A title", "<b>"],
        "summary": ["Change it", "<b>"],
        "repository": full,
        "fromRepo": full,
        "toRepo": full,
        "organization": [ORGANIZATION, OWNER, READER],
        "account": [ORGANIZATION, OWNER],
        "user": [READER, OWNER],
        "author": [READER, OWNER],
        "path": files,
        "paths": files,
        "rest": ["x", "fuzz-owner/pack"],
        "branch": ["work", "main", "new", "v1"],
        "tag": ["v1", "v2", "maths"],
        "startingPoint": ["main", "v1"],
        "number": ["1", "2", "3", "0"],
        "revision": ["main", "0" * 40],
        "comment": ["0" * 24, "0" * 23 + "1"],
        "status": ["pending", "accepted", "rejected"],
        "fingerprint": [BASE, BASE[:20]],
        "base": [BASE, BASE[:20], "acme/base-model"],
        "file": ["style.css", "copy.js", "icon.svg"],
        "prefix": ["default"],
        "hash": [to_hex(XORB_HASH), "0" * 64],
        "version": ["1.0", "1.1"],
        "expand": ["config", "safetensors", "siblings", "tags", "model-index", "usedStorage", "gguf", "baseModels"],
        "filter": ["skillpack", "maths", "base_model:acme/base-model", "dataset:x"],
        "search": ["pack", "%", "_"],
        "next": ["/models", "//example.com", "/settings/tokens"],
        "limits": [f"{OWNER}/pack", ORGANIZATION, "nobody/at-all"],
        "oid": digests,
        "sha256": digests,
        "sha": digests,
        "content": ["aGVsbG8=", "---\ntags: [a]\n---\n", "---\ntags: {\n---\n"],
        "sample": ["aGVsbG8="],
    }


def narrow(document: dict[str, Any], values: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the description of the routes, in which texts of known names are real values only."""
    return _change(document, lambda known, schema: {"enum": known} if known else schema, values)


def widen(document: dict[str, Any], values: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the description of the routes, in which texts may also be real values, or odd ones."""
    return _change(document, lambda known, schema: {"anyOf": [{"enum": [*known, *WORDS]}, schema]}, values)


def _change(document: dict[str, Any], change: Change, values: Mapping[str, list[str]]) -> dict[str, Any]:
    described = copy.deepcopy(document)

    def rewrite(schema: dict[str, Any], name: str = "", outer: str = "") -> dict[str, Any]:
        made = {**schema}
        if schema.get("type") == "string" and not schema.keys() & {"enum", "format"}:
            return change(values.get(f"{outer}.{name}") or values.get(name, []), schema)
        if "properties" in schema:
            made["properties"] = {key: rewrite(inner, key, name) for key, inner in schema["properties"].items()}
        if "items" in schema:
            made["items"] = rewrite(schema["items"], name, outer)
        for keyword in ("oneOf", "prefixItems"):
            if keyword in schema:
                made[keyword] = [rewrite(inner, name, outer) for inner in schema[keyword]]
        return made

    for operations in described["paths"].values():
        for operation in operations.values():
            operation["security"] = []  # the callers bring it along
            for parameter in operation["parameters"]:
                if parameter["in"] == "query":  # those of the path are chosen apart, as they must fit each other
                    parameter["schema"] = rewrite(parameter["schema"], parameter["name"])
            for content in operation.get("requestBody", {}).get("content", {}).values():
                content["schema"] = rewrite(content["schema"])
    return described
