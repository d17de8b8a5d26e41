"""Every route of the registry, with what it asks of its caller. Nothing is served that is not listed here."""

from __future__ import annotations

from typing import Final

from skillhub_registry.calls import Endpoint, Handler, Permission
from skillhub_registry.pages.rendering import serve_static
from skillhub_registry.routes import (
    accounts,
    commits,
    discussionpages,
    discussions,
    downloads,
    gates,
    largefiles,
    lfs,
    models,
    operation,
    packs,
    pages,
    refs,
    repositories,
    repositorypages,
    signin,
    trees,
    xet,
)

ANYONE, GRANT, ACCOUNT, OPERATE, SESSION, READ, ASK, DOWNLOAD, PROPOSE, WRITE, ADMINISTER = Permission
_MODEL: Final = "/api/models/{namespace}/{name}"

_REPOSITORY: Final = "/{namespace}/{name}"


def _page(method: str, path: str, permission: Permission, handler: Handler) -> Endpoint:
    return Endpoint(method, path, permission, handler, sessions=True)


ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    # the registry's operation
    Endpoint("GET", "/healthz", ANYONE, pages.healthy),
    Endpoint("GET", "/readyz", ANYONE, operation.check_readiness),
    Endpoint("GET", "/openapi.json", ANYONE, operation.describe_routes),
    Endpoint("GET", "/metrics", OPERATE, operation.show_metrics),
    # accounts
    Endpoint("GET", "/api/whoami-v2", ACCOUNT, accounts.whoami),
    Endpoint("GET", "/api/settings/repositories", ACCOUNT, accounts.list_own_repositories),
    Endpoint("GET", "/api/organizations/{organization}/settings/repositories", ACCOUNT, accounts.list_repositories),
    Endpoint("GET", "/api/users/{user}/overview", ANYONE, accounts.show_user),
    Endpoint("GET", "/api/organizations/{organization}/overview", ANYONE, accounts.show_organization),
    Endpoint("GET", "/api/organizations/{organization}/members", ANYONE, accounts.list_organization_members),
    # repositories; create, delete and move name theirs in the body and check it there
    Endpoint("POST", "/api/repos/create", ACCOUNT, repositories.create),
    Endpoint("DELETE", "/api/repos/delete", ACCOUNT, repositories.delete),
    Endpoint("POST", "/api/repos/move", ACCOUNT, repositories.move),
    Endpoint("POST", "/api/validate-yaml", ANYONE, repositories.validate_card),
    Endpoint("GET", "/api/models", ANYONE, models.list_all),
    Endpoint("GET", "/api/models/{name}", ANYONE, repositories.refuse_other),
    Endpoint("GET", "/api/datasets/{rest:path}", ANYONE, repositories.refuse_other),
    Endpoint("GET", "/api/spaces/{rest:path}", ANYONE, repositories.refuse_other),
    Endpoint("GET", _MODEL, READ, models.show),
    Endpoint("GET", _MODEL + "/revision/{revision}", READ, models.show),
    Endpoint("PUT", _MODEL + "/settings", ADMINISTER, repositories.change_settings),
    Endpoint("GET", _MODEL + "/auth-check", DOWNLOAD, repositories.check_access),
    Endpoint("GET", _MODEL + "/auth-check/write", WRITE, repositories.check_access),
    # access to gated repositories
    Endpoint("POST", "/{namespace}/{name}/ask-access", ASK, gates.ask),
    Endpoint("GET", _MODEL + "/user-access-request/{status}", WRITE, gates.list_all),
    Endpoint("POST", _MODEL + "/user-access-request/handle", WRITE, gates.handle),
    Endpoint("POST", _MODEL + "/user-access-request/grant", WRITE, gates.grant),
    Endpoint("GET", _MODEL + "/safetensors-metadata/{path:path}", DOWNLOAD, models.show_tensors),
    # packs
    Endpoint("GET", _MODEL + "/releases", READ, packs.list_releases),
    Endpoint("GET", _MODEL + "/dependencies", READ, packs.list_dependencies),
    Endpoint("GET", _MODEL + "/dependents", READ, packs.list_all_dependents),
    # files
    Endpoint("GET", _MODEL + "/tree/{revision}", READ, trees.list_tree),
    Endpoint("GET", _MODEL + "/tree/{revision}/{path:path}", READ, trees.list_tree),
    Endpoint("POST", _MODEL + "/paths-info/{revision}", READ, trees.list_paths),
    _page("GET", _REPOSITORY + "/resolve/{revision}/{path:path}", DOWNLOAD, downloads.resolve),
    Endpoint("GET", "/{name}/resolve/{revision}/{path:path}", ANYONE, repositories.refuse_other),
    # commits and refs; whoever is no member may commit to pull requests of its own, which the handlers check
    Endpoint("POST", _MODEL + "/preupload/{revision}", PROPOSE, commits.preupload),
    Endpoint("POST", _MODEL + "/commit/{revision}", PROPOSE, commits.commit),
    Endpoint("GET", _MODEL + "/commits/{revision}", READ, commits.list_commits),
    Endpoint("POST", _MODEL + "/super-squash/{revision}", WRITE, commits.squash),
    Endpoint("GET", _MODEL + "/refs", READ, refs.list_all),
    Endpoint("POST", _MODEL + "/tag/{revision}", WRITE, refs.create_tag),
    Endpoint("DELETE", _MODEL + "/tag/{revision}", WRITE, refs.delete_tag),
    Endpoint("POST", _MODEL + "/branch/{branch}", WRITE, refs.create_branch),
    Endpoint("DELETE", _MODEL + "/branch/{branch}", WRITE, refs.delete_branch),
    # discussions and pull requests; who may change which, the handlers check
    Endpoint("GET", _MODEL + "/discussions", READ, discussions.list_all),
    Endpoint("POST", _MODEL + "/discussions", PROPOSE, discussions.create),
    Endpoint("GET", _MODEL + "/discussions/{number}", READ, discussions.show),
    Endpoint("POST", _MODEL + "/discussions/{number}/comment", PROPOSE, discussions.comment),
    Endpoint("POST", _MODEL + "/discussions/{number}/comment/{comment}/edit", PROPOSE, discussions.edit),
    Endpoint("POST", _MODEL + "/discussions/{number}/comment/{comment}/hide", PROPOSE, discussions.hide),
    Endpoint("POST", _MODEL + "/discussions/{number}/title", PROPOSE, discussions.retitle),
    Endpoint("POST", _MODEL + "/discussions/{number}/status", PROPOSE, discussions.set_status),
    Endpoint("POST", _MODEL + "/discussions/{number}/merge", WRITE, discussions.merge),
    # large files: LFS
    Endpoint("POST", "/{namespace}/{name}.git/info/lfs/objects/batch", PROPOSE, lfs.batch),
    Endpoint("POST", "/{namespace}/{name}.git/info/lfs/objects/verify", PROPOSE, lfs.verify),
    Endpoint("PUT", "/lfs/object/{grant}", GRANT, lfs.receive_object),
    Endpoint("PUT", "/lfs/part/{grant}", GRANT, lfs.receive_part),
    Endpoint("POST", "/lfs/complete/{grant}", GRANT, lfs.complete_parts),
    # large files: administration; copying needs to read the target as well, which the handler checks
    Endpoint("GET", _MODEL + "/lfs-files", WRITE, largefiles.list_all),
    Endpoint("POST", _MODEL + "/lfs-files/batch", ADMINISTER, largefiles.delete),
    Endpoint("POST", _MODEL + "/lfs-files/duplicate", DOWNLOAD, largefiles.duplicate),
    Endpoint("POST", _MODEL + "/duplicate", DOWNLOAD, repositories.duplicate),
    # large files: Xet
    Endpoint("GET", _MODEL + "/xet-write-token/{revision}", PROPOSE, xet.grant_writing),
    Endpoint("GET", "/xet/v1/chunks/{prefix}/{hash}", GRANT, xet.find_chunk),
    Endpoint("POST", "/xet/v1/xorb-grants/{prefix}/{hash}", GRANT, xet.refuse_presigning),
    Endpoint("POST", "/xet/v1/xorbs/{prefix}/{hash}", GRANT, xet.receive_xorb),
    Endpoint("POST", "/xet/v1/shards", GRANT, xet.receive_shard),
    Endpoint("POST", "/xet/v1/telemetry", GRANT, xet.ignore_telemetry),
    Endpoint("GET", "/api/{rest:path}", ANYONE, repositories.refuse_unknown),
    # pages for people; last, as the names of accounts and repositories can be almost anything
    _page("GET", "/", ANYONE, pages.home),
    Endpoint("GET", "/static/{file}", ANYONE, serve_static),
    _page("GET", "/models", ANYONE, pages.search),
    _page("GET", "/bases/{fingerprint}", ANYONE, pages.show_base),
    _page("GET", "/login", ANYONE, signin.show_sign_in),
    _page("POST", "/login", ANYONE, signin.enter),
    _page("POST", "/logout", ANYONE, signin.leave),
    _page("GET", "/settings/password", SESSION, signin.show_password),
    _page("POST", "/settings/password", SESSION, signin.renew_password),
    _page("GET", "/settings/tokens", SESSION, signin.show_tokens),
    _page("POST", "/settings/tokens", SESSION, signin.make_token),
    _page("POST", "/settings/tokens/{number}/revoke", SESSION, signin.revoke),
    _page("GET", "/{account}", ANYONE, pages.show_account),
    _page("GET", _REPOSITORY, READ, repositorypages.show),
    _page("GET", _REPOSITORY + "/tree/{revision}", READ, repositorypages.show_tree),
    _page("GET", _REPOSITORY + "/tree/{revision}/{path:path}", READ, repositorypages.show_tree),
    _page("GET", _REPOSITORY + "/blob/{revision}/{path:path}", DOWNLOAD, repositorypages.show_file),
    _page("GET", _REPOSITORY + "/commits/{revision}", READ, repositorypages.list_commits),
    _page("GET", _REPOSITORY + "/commit/{revision}", READ, repositorypages.show_commit),
    _page("POST", _REPOSITORY + "/access", ASK, repositorypages.ask),
    _page("GET", _REPOSITORY + "/access-requests", WRITE, repositorypages.list_access_requests),
    _page("POST", _REPOSITORY + "/access-requests", WRITE, repositorypages.decide_access),
    _page("GET", _REPOSITORY + "/discussions", READ, discussionpages.list_all),
    _page("POST", _REPOSITORY + "/discussions", PROPOSE, discussionpages.create),
    _page("GET", _REPOSITORY + "/discussions/{number}", READ, discussionpages.show),
    _page("POST", _REPOSITORY + "/discussions/{number}/comment", PROPOSE, discussionpages.comment),
    _page("POST", _REPOSITORY + "/discussions/{number}/status", PROPOSE, discussionpages.change_status),
    _page("POST", _REPOSITORY + "/discussions/{number}/merge", WRITE, discussionpages.merge),
)
