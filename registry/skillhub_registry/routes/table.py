"""Every route of the registry, with what it asks of its caller, takes and answers with. Nothing else is served."""

from __future__ import annotations

from typing import Final

from skillhub_registry.calls import Endpoint, Handler, Permission
from skillhub_registry.contracts import Contract
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
    shapes,
    signin,
    trees,
    xet,
)

ANYONE, GRANT, ACCOUNT, OPERATE, SESSION, READ, ASK, DOWNLOAD, PROPOSE, WRITE, ADMINISTER = Permission
_MODEL: Final = "/api/models/{namespace}/{name}"

_REPOSITORY: Final = "/{namespace}/{name}"


def _page(method: str, path: str, permission: Permission, handler: Handler, contract: Contract) -> Endpoint:
    return Endpoint(method, path, permission, handler, contract, sessions=True)


ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    # the registry's operation
    Endpoint("GET", "/healthz", ANYONE, pages.healthy, shapes.WORD),
    Endpoint("GET", "/readyz", ANYONE, operation.check_readiness, shapes.WORD),
    Endpoint("GET", "/openapi.json", ANYONE, operation.describe_routes, shapes.DESCRIPTION),
    Endpoint("GET", "/metrics", OPERATE, operation.show_metrics, shapes.METRICS),
    # accounts
    Endpoint("GET", "/api/whoami-v2", ACCOUNT, accounts.whoami, shapes.WHO_AM_I),
    Endpoint("GET", "/api/settings/repositories", ACCOUNT, accounts.list_own_repositories, shapes.OWN_REPOSITORIES),
    Endpoint(
        "GET",
        "/api/organizations/{organization}/settings/repositories",
        ACCOUNT,
        accounts.list_repositories,
        shapes.REPOSITORIES,
    ),
    Endpoint("GET", "/api/users/{user}/overview", ANYONE, accounts.show_user, shapes.USER),
    Endpoint(
        "GET", "/api/organizations/{organization}/overview", ANYONE, accounts.show_organization, shapes.ORGANIZATION
    ),
    Endpoint(
        "GET", "/api/organizations/{organization}/members", ANYONE, accounts.list_organization_members, shapes.MEMBERS
    ),
    # repositories; create, delete and move name theirs in the body and check it there
    Endpoint("POST", "/api/repos/create", ACCOUNT, repositories.create, shapes.CREATE),
    Endpoint("DELETE", "/api/repos/delete", ACCOUNT, repositories.delete, shapes.DELETE),
    Endpoint("POST", "/api/repos/move", ACCOUNT, repositories.move, shapes.MOVE),
    Endpoint("POST", "/api/validate-yaml", ANYONE, repositories.validate_card, shapes.CARD),
    Endpoint("GET", "/api/models", ANYONE, models.list_all, shapes.SEARCH),
    Endpoint("GET", "/api/models/{name}", ANYONE, repositories.refuse_other, shapes.NOTHING),
    Endpoint("GET", "/api/datasets/{rest:path}", ANYONE, repositories.refuse_other, shapes.NOTHING),
    Endpoint("GET", "/api/spaces/{rest:path}", ANYONE, repositories.refuse_other, shapes.NOTHING),
    Endpoint("GET", _MODEL, READ, models.show, shapes.MODEL),
    Endpoint("GET", _MODEL + "/revision/{revision}", READ, models.show, shapes.MODEL),
    Endpoint("PUT", _MODEL + "/settings", ADMINISTER, repositories.change_settings, shapes.SETTINGS),
    Endpoint("GET", _MODEL + "/auth-check", DOWNLOAD, repositories.check_access, shapes.ACCESS),
    Endpoint("GET", _MODEL + "/auth-check/write", WRITE, repositories.check_access, shapes.ACCESS),
    # access to gated repositories
    Endpoint("POST", "/{namespace}/{name}/ask-access", ASK, gates.ask, shapes.ASK_ACCESS),
    Endpoint("GET", _MODEL + "/user-access-request/{status}", WRITE, gates.list_all, shapes.ACCESS_REQUESTS),
    Endpoint("POST", _MODEL + "/user-access-request/handle", WRITE, gates.handle, shapes.HANDLE_ACCESS),
    Endpoint("POST", _MODEL + "/user-access-request/grant", WRITE, gates.grant, shapes.GRANT_ACCESS),
    Endpoint("GET", _MODEL + "/safetensors-metadata/{path:path}", DOWNLOAD, models.show_tensors, shapes.TENSORS),
    # packs
    Endpoint("GET", _MODEL + "/releases", READ, packs.list_releases, shapes.RELEASES),
    Endpoint("GET", _MODEL + "/dependencies", READ, packs.list_dependencies, shapes.DEPENDENCIES),
    Endpoint("GET", _MODEL + "/dependents", READ, packs.list_all_dependents, shapes.DEPENDENTS),
    # files
    Endpoint("GET", _MODEL + "/tree/{revision}", READ, trees.list_tree, shapes.TREE),
    Endpoint("GET", _MODEL + "/tree/{revision}/{path:path}", READ, trees.list_tree, shapes.TREE),
    Endpoint("POST", _MODEL + "/paths-info/{revision}", READ, trees.list_paths, shapes.PATHS),
    _page("GET", _REPOSITORY + "/resolve/{revision}/{path:path}", DOWNLOAD, downloads.resolve, shapes.FILE),
    Endpoint("GET", "/{name}/resolve/{revision}/{path:path}", ANYONE, repositories.refuse_other, shapes.NOTHING),
    # commits and refs; whoever is no member may commit to pull requests of its own, which the handlers check
    Endpoint("POST", _MODEL + "/preupload/{revision}", PROPOSE, commits.preupload, shapes.PREUPLOAD),
    Endpoint("POST", _MODEL + "/commit/{revision}", PROPOSE, commits.commit, shapes.COMMIT),
    Endpoint("GET", _MODEL + "/commits/{revision}", READ, commits.list_commits, shapes.COMMITS),
    Endpoint("POST", _MODEL + "/super-squash/{revision}", WRITE, commits.squash, shapes.SQUASH),
    Endpoint("GET", _MODEL + "/refs", READ, refs.list_all, shapes.REFS),
    Endpoint("POST", _MODEL + "/tag/{revision}", WRITE, refs.create_tag, shapes.TAG),
    Endpoint("DELETE", _MODEL + "/tag/{revision}", WRITE, refs.delete_tag, shapes.REF_GONE),
    Endpoint("POST", _MODEL + "/branch/{branch}", WRITE, refs.create_branch, shapes.BRANCH),
    Endpoint("DELETE", _MODEL + "/branch/{branch}", WRITE, refs.delete_branch, shapes.REF_GONE),
    # discussions and pull requests; who may change which, the handlers check
    Endpoint("GET", _MODEL + "/discussions", READ, discussions.list_all, shapes.DISCUSSIONS),
    Endpoint("POST", _MODEL + "/discussions", PROPOSE, discussions.create, shapes.DISCUSS),
    Endpoint("GET", _MODEL + "/discussions/{number}", READ, discussions.show, shapes.DISCUSSION),
    Endpoint("POST", _MODEL + "/discussions/{number}/comment", PROPOSE, discussions.comment, shapes.REMARK),
    Endpoint("POST", _MODEL + "/discussions/{number}/comment/{comment}/edit", PROPOSE, discussions.edit, shapes.EDIT),
    Endpoint("POST", _MODEL + "/discussions/{number}/comment/{comment}/hide", PROPOSE, discussions.hide, shapes.HIDE),
    Endpoint("POST", _MODEL + "/discussions/{number}/title", PROPOSE, discussions.retitle, shapes.RETITLE),
    Endpoint("POST", _MODEL + "/discussions/{number}/status", PROPOSE, discussions.set_status, shapes.STATUS),
    Endpoint("POST", _MODEL + "/discussions/{number}/merge", WRITE, discussions.merge, shapes.MERGE),
    # large files: LFS
    Endpoint("POST", "/{namespace}/{name}.git/info/lfs/objects/batch", PROPOSE, lfs.batch, shapes.LFS_BATCH),
    Endpoint("POST", "/{namespace}/{name}.git/info/lfs/objects/verify", PROPOSE, lfs.verify, shapes.LFS_VERIFY),
    Endpoint("PUT", "/lfs/object/{grant}", GRANT, lfs.receive_object, shapes.LFS_OBJECT),
    Endpoint("PUT", "/lfs/part/{grant}", GRANT, lfs.receive_part, shapes.LFS_OBJECT),
    Endpoint("POST", "/lfs/complete/{grant}", GRANT, lfs.complete_parts, shapes.LFS_COMPLETE),
    # large files: administration; copying needs to read the target as well, which the handler checks
    Endpoint("GET", _MODEL + "/lfs-files", WRITE, largefiles.list_all, shapes.LARGE_FILES),
    Endpoint("POST", _MODEL + "/lfs-files/batch", ADMINISTER, largefiles.delete, shapes.DELETE_LARGE),
    Endpoint("POST", _MODEL + "/lfs-files/duplicate", DOWNLOAD, largefiles.duplicate, shapes.COPY_LARGE),
    Endpoint("POST", _MODEL + "/duplicate", DOWNLOAD, repositories.duplicate, shapes.DUPLICATE),
    # large files: Xet
    Endpoint("GET", _MODEL + "/xet-write-token/{revision}", PROPOSE, xet.grant_writing, shapes.XET_TOKEN),
    Endpoint("GET", "/xet/v1/chunks/{prefix}/{hash}", GRANT, xet.find_chunk, shapes.NOTHING),
    Endpoint("POST", "/xet/v1/xorb-grants/{prefix}/{hash}", GRANT, xet.refuse_presigning, shapes.NOTHING),
    Endpoint("POST", "/xet/v1/xorbs/{prefix}/{hash}", GRANT, xet.receive_xorb, shapes.XET_SENT),
    Endpoint("POST", "/xet/v1/shards", GRANT, xet.receive_shard, shapes.XET_SENT),
    Endpoint("POST", "/xet/v1/telemetry", GRANT, xet.ignore_telemetry, shapes.XET_TELEMETRY),
    Endpoint("GET", "/api/{rest:path}", ANYONE, repositories.refuse_unknown, shapes.NOTHING),
    # pages for people; last, as the names of accounts and repositories can be almost anything
    _page("GET", "/", ANYONE, pages.home, shapes.HOME),
    Endpoint("GET", "/static/{file}", ANYONE, serve_static, shapes.STATIC),
    _page("GET", "/models", ANYONE, pages.search, shapes.SEARCH_PAGE),
    _page("GET", "/bases/{fingerprint}", ANYONE, pages.show_base, shapes.LIST_PAGE),
    _page("GET", "/login", ANYONE, signin.show_sign_in, shapes.SIGN_IN_PAGE),
    _page("POST", "/login", ANYONE, signin.enter, shapes.SIGN_IN),
    _page("POST", "/logout", ANYONE, signin.leave, shapes.SIGN_OUT),
    _page("GET", "/settings/password", SESSION, signin.show_password, shapes.PASSWORD),
    _page("POST", "/settings/password", SESSION, signin.renew_password, shapes.RENEW_PASSWORD),
    _page("GET", "/settings/tokens", SESSION, signin.show_tokens, shapes.TOKENS),
    _page("POST", "/settings/tokens", SESSION, signin.make_token, shapes.MAKE_TOKEN),
    _page("POST", "/settings/tokens/{number}/revoke", SESSION, signin.revoke, shapes.REVOKE),
    _page("GET", "/{account}", ANYONE, pages.show_account, shapes.LIST_PAGE),
    _page("GET", _REPOSITORY, READ, repositorypages.show, shapes.REPOSITORY_PAGE),
    _page("GET", _REPOSITORY + "/tree/{revision}", READ, repositorypages.show_tree, shapes.SUBPAGE),
    _page("GET", _REPOSITORY + "/tree/{revision}/{path:path}", READ, repositorypages.show_tree, shapes.SUBPAGE),
    _page("GET", _REPOSITORY + "/blob/{revision}/{path:path}", DOWNLOAD, repositorypages.show_file, shapes.SUBPAGE),
    _page("GET", _REPOSITORY + "/commits/{revision}", READ, repositorypages.list_commits, shapes.SUBPAGE),
    _page("GET", _REPOSITORY + "/commit/{revision}", READ, repositorypages.show_commit, shapes.SUBPAGE),
    _page("POST", _REPOSITORY + "/access", ASK, repositorypages.ask, shapes.ASK_FORM),
    _page("GET", _REPOSITORY + "/access-requests", WRITE, repositorypages.list_access_requests, shapes.SUBPAGE),
    _page("POST", _REPOSITORY + "/access-requests", WRITE, repositorypages.decide_access, shapes.DECIDE_FORM),
    _page("GET", _REPOSITORY + "/discussions", READ, discussionpages.list_all, shapes.DISCUSSIONS_PAGE),
    _page("POST", _REPOSITORY + "/discussions", PROPOSE, discussionpages.create, shapes.DISCUSS_FORM),
    _page("GET", _REPOSITORY + "/discussions/{number}", READ, discussionpages.show, shapes.SUBPAGE),
    _page("POST", _REPOSITORY + "/discussions/{number}/comment", PROPOSE, discussionpages.comment, shapes.COMMENT_FORM),
    _page(
        "POST", _REPOSITORY + "/discussions/{number}/status", PROPOSE, discussionpages.change_status, shapes.STATUS_FORM
    ),
    _page("POST", _REPOSITORY + "/discussions/{number}/merge", WRITE, discussionpages.merge, shapes.MERGE_FORM),
)
