"""Pages that lead to repositories: home, search, a base's, a user's and an organisation's; and a sign of life."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import PlainTextResponse, Response

from skillhub_registry import limits
from skillhub_registry.accounts import find_account, list_members, list_memberships
from skillhub_registry.calls import Call
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, bad_request
from skillhub_registry.packs import BASE_TAG, find_bases
from skillhub_registry.pages.overviews import (
    VariantSummary,
    choose_described,
    read_manifest_summary,
    read_release_index,
)
from skillhub_registry.pages.rendering import render
from skillhub_registry.repositories import PACK_TAG, Repository, Search, count_tagged, read_tags, search_repositories
from skillhub_registry.revisions import DEFAULT_REF, resolve_revision
from skillhub_registry.rights import may_download

_FINGERPRINT: Final = re.compile(r"(?:skb1:)?([0-9a-f]{8,64})…?")
_ORDERS: Final = {"lastModified": "recently changed", "downloads": "most used", "createdAt": "newest"}
_ON_HOME: Final = 8


def home(call: Call) -> Response:
    """Answer ``GET /``."""
    readable = _readable(call)
    with call.registry.database.read() as connection:
        recent, more = (
            list_cards(connection, Search(tags=(PACK_TAG,), sort=sort, limit=_ON_HOME, readable=readable))[0]
            for sort in ("lastModified", "downloads")
        )
        packs = count_tagged(connection, PACK_TAG, readable)
        models = list_cards(connection, Search(limit=_ON_HOME, readable=readable))[0] if not packs else []
    used = [card for card in more if card["repository"].downloads]
    return render(call, "home.html", recent=recent, used=used, packs=packs, models=models)


def search(call: Call) -> Response:
    """Answer ``GET /models``: repositories by words of their names, a tag and a base, in pages."""
    query = call.request.query_params
    asked = {name: query.get(name, "").strip()[:200] for name in ("q", "tag", "base")}
    sort = query.get("sort", "lastModified")
    if sort not in _ORDERS:
        raise bad_request(f"sort must be one of {', '.join(_ORDERS)}")
    match = _FINGERPRINT.fullmatch(asked["q"])
    if match and not asked["base"]:  # pasted into the field that is at hand
        asked["q"], asked["base"] = "", f"skb1:{match[1]}"
    with call.registry.database.read() as connection:
        base_tags = _find_base_tags(connection, asked["base"], _readable(call))
        tags = tuple(tag for tag in (asked["tag"], *base_tags) if tag)
        wanted = Search(
            words=asked["q"],
            tags=tags,
            sort=sort,
            limit=limits.CARDS_PAGE,
            cursor=query.get("cursor") or None,
            readable=_readable(call),
        )
        cards, cursor = list_cards(connection, wanted)
    kept = {name: value for name, value in {**asked, "sort": sort}.items() if value}
    following = f"/models?{urlencode({**kept, 'cursor': cursor})}" if cursor else None
    return render(call, "search.html", cards=cards, asked=asked, sort=sort, orders=_ORDERS, following=following)


def _find_base_tags(connection: Connection, base: str, readable: Collection[int]) -> list[str]:
    """Return the tags of packs for a base: by its fingerprint or the beginning of one, or by its repository."""
    match = _FINGERPRINT.fullmatch(base)
    if match:
        found = find_bases(connection, f"skb1:{match[1]}", readable, limit=2)
        return [BASE_TAG + (found[0] if len(found) == 1 else f"skb1:{match[1]}")]
    return [f"base_model:{base}"] if base else []


def show_base(call: Call) -> Response:
    """Answer ``GET /bases/{fingerprint}``: the packs that fit a base, and what they say that it is."""
    fingerprint = call.parameters["fingerprint"]
    wanted = Search(
        tags=(BASE_TAG + fingerprint,),
        sort="downloads",
        limit=limits.CARDS_PAGE,
        cursor=call.request.query_params.get("cursor") or None,
        readable=_readable(call),
    )
    with call.registry.database.read() as connection:
        cards, cursor = list_cards(connection, wanted)
        said = next(
            filter(None, (_say_base(call, connection, card["repository"], fingerprint) for card in cards)), None
        )
    if not cards:
        raise HubError(404, "NotFound", "No pack here fits a base with that fingerprint")
    following = f"{call.request.scope['path']}?{urlencode({'cursor': cursor})}" if cursor else None
    return render(call, "fits.html", fingerprint=fingerprint, cards=cards, said=said, following=following)


def _say_base(call: Call, connection: Connection, repository: Repository, fingerprint: str) -> VariantSummary | None:
    """Return the variant of a pack's newest release for a base, if it may be shown."""
    if not may_download(connection, call.caller, repository):
        return None
    commit = resolve_revision(connection, repository.id, DEFAULT_REF)
    described = choose_described(read_release_index(connection, call.registry.blobs, commit))
    if described is None:
        return None
    manifest = read_manifest_summary(connection, call.registry.blobs, commit, described)
    variants = manifest.variants if manifest else ()
    return next((one for one in variants if one.fingerprint == fingerprint), None)


def show_account(call: Call) -> Response:
    """Answer ``GET /{account}``: a user's or an organisation's repositories, and who belongs to it or where it does."""
    with call.registry.database.read() as connection:
        account = find_account(connection, call.parameters["account"])
        if account is None:
            raise HubError(404, "NotFound", "There is no such page, user or organisation")
        inside = call.caller is not None and account.id in call.caller.namespace_ids
        wanted = Search(
            author=account.name,
            limit=limits.CARDS_PAGE,
            cursor=call.request.query_params.get("cursor") or None,
            readable=_readable(call),
        )
        cards, cursor = list_cards(connection, wanted)
        members = list_members(connection, account) if account.kind == "organization" else {}
        memberships = list_memberships(connection, account) if account.kind == "user" else ()
    following = f"/{account.name}?{urlencode({'cursor': cursor})}" if cursor else None
    return render(
        call,
        "account.html",
        account=account,
        inside=inside,
        cards=cards,
        members=members,
        organizations=[one.organization.name for one in memberships],
        following=following,
    )


def list_cards(connection: Connection, wanted: Search) -> tuple[list[dict[str, Any]], str | None]:
    """Return what lists tell of repositories, and the cursor of the next page if there is one."""
    found, cursor = search_repositories(connection, wanted)
    return [_describe(connection, repository) for repository in found], cursor


def _describe(connection: Connection, repository: Repository) -> dict[str, Any]:
    tags = read_tags(connection, repository.id)
    summary = repository.card.get("summary")
    return {
        "repository": repository,
        "summary": summary if isinstance(summary, str) else "",
        "tags": [tag for tag in tags if is_skill(tag)][:6],
        "bases": [tag.removeprefix(BASE_TAG) for tag in tags if tag.startswith(BASE_TAG)],
        "is_pack": PACK_TAG in tags,
    }


def is_skill(tag: str) -> bool:
    """Say whether a tag is one that people gave, not one that follows from something else."""
    return ":" not in tag and tag not in (PACK_TAG, "skillhub", "safetensors")


def _readable(call: Call) -> frozenset[int]:
    return call.caller.namespace_ids if call.caller else frozenset()


def healthy(call: Call) -> Response:
    """Answer ``GET /healthz``: the process runs and its database answers."""
    with call.registry.database.read() as connection:
        connection.execute("SELECT 1 FROM accounts LIMIT 1").fetchone()
    return PlainTextResponse("ok")
