"""The contract of each route that ``table.py`` lists: what it takes and answers with, by the handler's name."""

from __future__ import annotations

from typing import Final

from skillhub_registry.contracts import (
    BYTES,
    COUNT,
    DONE,
    FLAG,
    FORM,
    HTML,
    JSON,
    LINES,
    NEVER,
    NOT_EMPTY,
    NUMBER_OF_A_PAGE,
    PAGE,
    PLAIN,
    SENT_ON,
    SHA256,
    TEXT,
    Answer,
    Body,
    Contract,
    Schema,
    choice,
    form_body,
    json_body,
    listed,
    record,
    told,
    told_list,
)
from skillhub_registry.gates import AUTOMATIC, MANUAL, STATUSES
from skillhub_registry.limits import TITLE
from skillhub_registry.repositories import SORTS

_WORD: Final = (Answer(200, PLAIN),)
_START: Final[dict[str, Schema]] = {"cursor": NUMBER_OF_A_PAGE}
_CURSOR: Final[dict[str, Schema]] = {"cursor": TEXT}
_MODEL: Final = choice("model")
_VISIBILITY: Final[dict[str, Schema]] = {"private": FLAG, "visibility": choice("public", "private")}
_OBJECT: Final = record({"oid": SHA256, "size": COUNT})
_COMMENT: Final[dict[str, Schema]] = {"comment": TEXT}
_TITLE: Final[Schema] = {"type": "string", "minLength": 3, "maxLength": TITLE}

# the registry's operation
WORD: Final = Contract(_WORD)
DESCRIPTION: Final = Contract(told("openapi", "info", "paths"))
METRICS: Final = Contract(_WORD)

# accounts
WHO_AM_I: Final = Contract(told("type", "name", "orgs", "auth"))
OWN_REPOSITORIES: Final = Contract(told_list("id", "visibility", "storage"), query=_CURSOR)
REPOSITORIES: Final = Contract(told_list("id", "visibility", "storage"), (403, 404), _CURSOR)
USER: Final = Contract(told("user", "numModels", "orgs"), (404,))
ORGANIZATION: Final = Contract(told("name", "numUsers", "numModels"), (404,))
MEMBERS: Final = Contract(told_list("user", "type"), (404,), _START)

# repositories
CREATE: Final = Contract(
    told("url", "name", "id", "private"),
    (403, 409),
    body=json_body(record({"name": TEXT}, organization=TEXT, type=_MODEL, **_VISIBILITY)),
)
DELETE: Final = Contract(DONE, (403, 404), body=json_body(record({"name": TEXT}, organization=TEXT, type=_MODEL)))
MOVE: Final = Contract(DONE, (403, 404, 409), body=json_body(record({"fromRepo": TEXT, "toRepo": TEXT}, type=_MODEL)))
DUPLICATE: Final = Contract(
    told("url", "filesCopyPending"), (403, 404, 409), body=json_body(record({"repository": TEXT}, **_VISIBILITY))
)
CARD: Final = Contract(told("errors", "warnings"), body=json_body(record({"content": TEXT})))
SEARCH: Final = Contract(
    told_list("_id", "id", "modelId"),
    query={
        "search": TEXT,
        "author": TEXT,
        "filter": listed(TEXT),
        "pipeline_tag": TEXT,
        "gated": FLAG,
        "sort": choice(*SORTS),
        "direction": choice("-1", "1"),
        "limit": COUNT,
        "cursor": TEXT,
        "expand": listed(TEXT),
        "full": FLAG,
        "cardData": FLAG,
        "config": FLAG,
        "inference": TEXT,
        "inference_provider": TEXT,
    },
)
MODEL: Final = Contract(told("_id", "id", "modelId"), query={"expand": listed(TEXT), "blobs": FLAG})
NOTHING: Final = Contract(NEVER, (404,))
SETTINGS: Final = Contract(
    told("private", "visibility", "gated"),
    body=json_body(record(**_VISIBILITY, gated={"enum": [AUTOMATIC, MANUAL, False]})),
)
ACCESS: Final = Contract(DONE)
ASK_ACCESS: Final = Contract(told("status"))
ACCESS_REQUESTS: Final = Contract(told_list("requestId", "user", "status"), query=_START)
HANDLE_ACCESS: Final = Contract(
    DONE,
    body=json_body(
        {
            "oneOf": [
                record({"status": choice(*STATUSES), "user": TEXT}),
                record({"status": choice(*STATUSES), "requestId": TEXT}),
            ]
        }
    ),
)
GRANT_ACCESS: Final = Contract(told("user", "status"), body=json_body(record({"user": TEXT})))
TENSORS: Final = Contract(told("index", "headers"))

# packs
RELEASES: Final = Contract(told("name", "newest", "releases"), query=_START)
DEPENDENCIES: Final = Contract(told("version", "requires", "conflicts"), query={"version": TEXT})
DEPENDENTS: Final = Contract(told("dependents"), query=_START)

# files
TREE: Final = Contract(told_list("type", "oid", "path"), query={"recursive": FLAG, "expand": FLAG, **_START})
PATHS: Final = Contract(
    told_list("type", "oid", "path"), body=Body((JSON, FORM), record(paths=listed(TEXT), expand=FLAG))
)
FILE: Final = Contract((Answer(200, "*/*"), Answer(206, "*/*"), Answer(302), Answer(307)), (416,))

# commits and refs
PREUPLOAD: Final = Contract(
    told("files"),
    query={"create_pr": FLAG},
    body=json_body(record({"files": listed(record({"path": TEXT, "size": COUNT}, sample=TEXT))})),
)
_HEADER: Final = record(
    {"key": choice("header"), "value": record({"summary": NOT_EMPTY}, description=TEXT, parentCommit=TEXT)}
)
_OPERATIONS: Final[dict[str, Schema]] = {
    "file": record({"path": TEXT, "content": TEXT}, encoding=choice("base64", "utf-8")),
    "lfsFile": record({"path": TEXT, "oid": SHA256}, algo=choice("sha256"), size=COUNT),
    "deletedFile": record({"path": TEXT}),
    "deletedFolder": record({"path": TEXT}),
}
COMMIT: Final = Contract(
    told("success", "commitOid", "commitUrl"),
    (409, 412),
    query={"create_pr": FLAG},
    body=Body(
        (LINES,),
        {
            **listed({"oneOf": [record({"key": choice(key), "value": it}) for key, it in _OPERATIONS.items()]}),
            "prefixItems": [_HEADER],
            "minItems": 1,
        },
    ),
)
COMMITS: Final = Contract(told_list("id", "title", "authors", "date"))
SQUASH: Final = Contract(DONE, (409,), body=json_body(record(message=TEXT), required=False))
REFS: Final = Contract(told("branches", "tags", "converts"), query={"include_prs": FLAG})
TAG: Final = Contract(DONE, (409,), body=json_body(record({"tag": TEXT}, message=TEXT)))
BRANCH: Final = Contract(DONE, (409,), body=json_body(record(startingPoint=TEXT), required=False))
REF_GONE: Final = Contract(DONE)

# discussions and pull requests
DISCUSSIONS: Final = Contract(
    told("discussions", "count", "start"),
    query={
        "status": choice("all", "open", "closed"),
        "type": choice("all", "discussion", "pull_request"),
        "author": TEXT,
        "p": NUMBER_OF_A_PAGE,
    },
)
DISCUSS: Final = Contract(
    told("num", "pullRequest", "url"), body=json_body(record({"title": _TITLE}, description=TEXT, pullRequest=FLAG))
)
DISCUSSION: Final = Contract(told("num", "title", "status", "events"), query={"diff": FLAG})
REMARK: Final = Contract(told("newMessage"), body=json_body(record({"comment": NOT_EMPTY})))
EDIT: Final = Contract(told("updatedComment"), (409,), body=json_body(record({"content": NOT_EMPTY})))
HIDE: Final = Contract(told("updatedComment"))
RETITLE: Final = Contract(told("newTitle"), body=json_body(record({"title": _TITLE})))
STATUS: Final = Contract(
    told("newStatus"), (409,), body=json_body(record({"status": choice("open", "closed")}, **_COMMENT))
)
MERGE: Final = Contract(told("commitOid"), (409,), body=json_body(record(**_COMMENT), required=False))

# large files
LFS_BATCH: Final = Contract(
    (Answer(200, "application/vnd.git-lfs+json", record({"transfer": TEXT, "objects": listed({})})),),
    body=json_body(
        record(
            {"operation": choice("upload"), "objects": listed(_OBJECT)},
            transfers=listed(choice("basic", "multipart")),
            hash_algo=choice("sha256"),
        )
    ),
)
LFS_VERIFY: Final = Contract(told("oid", "size"), body=json_body(_OBJECT))
LFS_OBJECT: Final = Contract(DONE, (403, 404), body=Body((BYTES,), {"type": "string", "format": "binary"}))
LFS_COMPLETE: Final = Contract(told("success"), (403, 404), body=json_body({}, required=False))
LARGE_FILES: Final = Contract(told_list("fileOid", "oid", "filename", "size"), query=_CURSOR)
DELETE_LARGE: Final = Contract(
    told("deleted"),
    (409,),
    body=json_body(record({"deletions": record({"sha": listed(SHA256)}, rewriteHistory=FLAG)})),
)
COPY_LARGE: Final = Contract(
    told("success", "failed"),
    (403,),
    body=json_body(
        record({"target": record({"name": TEXT}, type=_MODEL), "files": listed(record({"sha256": SHA256}))})
    ),
)
XET_TOKEN: Final = Contract(told("casUrl", "accessToken", "exp"), query={"create_pr": FLAG})
XET_SENT: Final = Contract(
    (Answer(200, JSON, {"type": "object"}),),
    (401, 403, 404),
    body=Body((BYTES,), {"type": "string", "format": "binary"}),
)
XET_TELEMETRY: Final = Contract(body=json_body({}, required=False))

# pages for people
HOME: Final = Contract(PAGE)
STATIC: Final = Contract(
    (Answer(200, "text/css"), Answer(200, "text/javascript"), Answer(200, "image/svg+xml")), (404,)
)
SEARCH_PAGE: Final = Contract(
    PAGE,
    query={"q": TEXT, "tag": TEXT, "base": TEXT, "sort": choice("lastModified", "downloads", "createdAt"), **_CURSOR},
)
LIST_PAGE: Final = Contract(PAGE, (404,), _CURSOR)
SIGN_IN_PAGE: Final = Contract((Answer(200, HTML), Answer(303)), query={"next": TEXT})
SIGN_IN: Final = Contract(SENT_ON, (401,), body=form_body({"name": TEXT, "password": TEXT}, next=TEXT))
SIGN_OUT: Final = Contract(SENT_ON, body=form_body())
PASSWORD: Final = Contract(PAGE, query={"done": choice("password", "tokens")})
RENEW_PASSWORD: Final = Contract(
    SENT_ON, body=form_body({"current": TEXT, "password": TEXT, "again": TEXT}, tokens=choice("revoke"))
)
TOKENS: Final = Contract(PAGE)
MAKE_TOKEN: Final = Contract(
    PAGE,
    body=form_body(
        {"name": NOT_EMPTY, "scope": choice("read", "write"), "days": choice("30", "90", "365", "0")}, limits=TEXT
    ),
)
REVOKE: Final = Contract(SENT_ON, (404,), body=form_body())
REPOSITORY_PAGE: Final = Contract((Answer(200, HTML), Answer(307)))
SUBPAGE: Final = Contract(PAGE)
DISCUSSIONS_PAGE: Final = Contract(PAGE, query={"status": choice("open", "closed"), **_START})
ASK_FORM: Final = Contract(SENT_ON, body=form_body())
DECIDE_FORM: Final = Contract(SENT_ON, body=form_body({"user": TEXT, "status": choice("accepted", "rejected")}))
DISCUSS_FORM: Final = Contract(
    SENT_ON, body=form_body({"title": _TITLE}, description=TEXT, kind=choice("discussion", "pull request"))
)
COMMENT_FORM: Final = Contract(SENT_ON, body=form_body({"comment": NOT_EMPTY}))
STATUS_FORM: Final = Contract(SENT_ON, (409,), body=form_body({"status": choice("open", "closed")}))
MERGE_FORM: Final = Contract(SENT_ON, (409,), body=form_body(comment=TEXT))
