"""A registry with something on every page: packs, a gate, a model, pull requests, and texts that mean harm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import msgspec
from huggingface_hub import CommitOperationAdd, HfApi

from skillhub.manifest import CodecInfo, Evaluation, Manifest, TensorEntry
from skillhub.packs import write_manifest
from skillhub.releases import RELEASES_SCHEMA, Event, event_line, release_event
from skillhub_registry import accounts, passwords
from skillhub_registry.tokens import create_token
from tests.support.packs import make_pack
from tests.support.registry_process import RegistryProcess

HARM = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"
"""A text that would show that it ran, wherever it is put unescaped."""

PASSWORD = "correct horse battery"
HTML = {"Accept": "text/html,application/xhtml+xml"}
VOID = {"meta", "link", "input", "br", "img", "hr", "wbr", "rect", "path"}


@dataclass(frozen=True)
class Site:
    """What was made, and who may do what: ``owner`` administers it all, ``guest`` nothing."""

    registry: RegistryProcess
    pack: str
    gated: str
    private: str
    model: str

    def open(self) -> httpx2.Client:
        """Return a browser that nobody has signed in with."""
        return httpx2.Client(base_url=self.registry.endpoint, headers=HTML, timeout=60)

    @contextmanager
    def sign_in(self, name: str, password: str = PASSWORD) -> Iterator[httpx2.Client]:
        """Yield a browser in which somebody has signed in."""
        with self.open() as client:
            answer = submit(client, "/login", "/login", {"name": name, "password": password})
            assert answer.status_code == 303, answer.text
            yield client


class Forms(HTMLParser):
    """The parts of a page that tests look at, after checking that its elements are closed as they were opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fields: dict[str, str] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag == "input" and values.get("name") == "form_token":
            self.fields["form_token"] = values.get("value") or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes what is not open: {self.getpos()}"


def submit(client: httpx2.Client, page: str, target: str, fields: dict[str, str]) -> httpx2.Response:
    """Fill a form on a page and send it."""
    return client.post(target, data={**Forms(client.get(page).text).fields, **fields})


def add_user(registry: RegistryProcess, name: str) -> None:
    """Make a user with a token and a password, as it is done on the command line, but quicker."""
    with registry.open_database() as database, database.write() as connection:
        user = accounts.add_account(connection, name)
        registry.tokens[name] = create_token(connection, user, "write", "default")
        passwords.set_password(connection, user, PASSWORD)


def set_password(registry: RegistryProcess, name: str, password: str) -> None:
    """Give a user another password."""
    with registry.open_database() as database, database.write() as connection:
        passwords.set_password(connection, accounts.get_account(connection, name, "user"), password)


def find_site(registry: RegistryProcess, folder: Path) -> Site:
    """Return what is on a registry, which is filled when it is first asked for."""
    site = Site(registry, "pages/math-pack", "pages/gated-pack", "pages/secret-pack", "pages/a-model")
    if "pages-owner" not in registry.tokens:
        _fill(site, folder)
    return site


def _fill(site: Site, folder: Path) -> None:
    registry = site.registry
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    for name in ("pages-owner", "pages-guest"):
        add_user(registry, name)
    with registry.open_database() as database, database.write() as connection:
        group = accounts.add_account(connection, "pages", "organization")
        for name in (registry.user, "pages-owner"):
            accounts.add_member(connection, group, accounts.get_account(connection, name, "user"), "admin")
    publish_releases(api, site.pack, folder / "pack", 11, requires=("pages/other-pack>=1", "nobody/at-all"))
    publish_releases(api, site.gated, folder / "gated", 1, requires=("pages/math-pack>=1",))
    api.update_repo_settings(site.gated, gated="manual")
    publish_releases(api, site.private, folder / "secret", 1, requires=("pages/math-pack",))
    api.update_repo_settings(site.private, private=True)
    api.create_repo(site.model)
    harm = CommitOperationAdd("README.md", f"# A model\n\n{HARM}\n\n![x](https://example.com/x.png)\n".encode())
    api.create_commit(site.model, [harm], commit_message=HARM)
    guest = HfApi(endpoint=registry.endpoint, token=registry.tokens["pages-guest"])
    guest.create_commit(
        site.model, [CommitOperationAdd(f"{'x' * 90}.txt", HARM.encode())], commit_message=HARM, create_pr=True
    )
    guest.comment_discussion(site.model, 1, f"{HARM} [link](javascript:alert(3))")


def publish_releases(api: HfApi, name: str, folder: Path, versions: int, *, requires: tuple[str, ...] = ()) -> None:
    """Commit releases 1.0, 1.1 …, the first of them withdrawn, with a card."""
    files: dict[str, bytes] = {}
    index = b""
    for number in range(versions):
        manifest = _write_pack(folder / str(number), name.partition("/")[2], f"1.{number}", requires)
        found = [path for path in (folder / str(number)).rglob("*") if path.is_file()]
        inside = {path.relative_to(folder / str(number)).as_posix(): path.read_bytes() for path in found}
        files.update({f"releases/1.{number}/{path}": data for path, data in inside.items()})
        index += event_line(release_event(manifest, {}))
    if versions > 1:
        index += event_line(Event(schema=RELEASES_SCHEMA, event="yank", version="1.0", reason=HARM))
    front = "library_name: skillhub\ntags: [skillpack, maths, '<b>tag</b>']\nsummary: '<i>sums</i>'\n"
    files["README.md"] = f"---\n{front}---\n# Notes\n\n{HARM}\n\n| a | b |\n|---|---|\n| 1 | 2 |\n".encode()
    files["releases.jsonl"] = index
    api.create_repo(name)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    api.create_commit(name, operations, commit_message="Release")


def _write_pack(folder: Path, name: str, version: str, requires: tuple[str, ...]) -> Manifest:
    made = make_pack(folder, name, version, requires=requires, files=1, size=64).manifest
    names = ["layers.0.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight", "embed_tokens.weight", HARM]
    tensors = {
        tensor: TensorEntry(
            shape=[64, 64], change="delta", codecs=["svd"], bytes=100 * place, relative_error=0.0, max_error=0.0
        )
        for place, tensor in enumerate(names, 1)
    }
    score = Evaluation(task=HARM, metric=HARM, base=0.1, tuned=None, pack=0.4, rows=100)
    (variant,) = made.variants
    codec = CodecInfo(preset="near", bits_per_weight=0.5, tensors=tensors)
    changed = msgspec.structs.replace(variant, codec=codec, evaluation=[score])
    manifest = msgspec.structs.replace(made, summary=HARM, license=HARM[:40], variants=[changed])
    write_manifest(folder, manifest)
    return manifest
