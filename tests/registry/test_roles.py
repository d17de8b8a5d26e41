"""Organisations: what the members' roles allow, and what others learn of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from tests.support.registry_process import RegistryProcess

ORGANIZATION = "Guild"
ROLES = ("read", "contributor", "write", "admin")


@pytest.fixture(scope="module")
def members(registry: RegistryProcess) -> dict[str, HfApi]:
    """The client of a member of each role."""
    registry.add_organization(ORGANIZATION)
    made = {}
    for role in ROLES:
        made[role] = HfApi(endpoint=registry.endpoint, token=registry.add_user(f"{role}-member"))
        registry.run("org", "join", ORGANIZATION, f"{role}-member", "--role", role)
    return made


def is_allowed(act: Callable[[], object]) -> bool:
    """Say whether something is allowed; what is not must end in a 403."""
    try:
        act()
    except HfHubHTTPError as error:
        assert error.response.status_code == 403
        return False
    return True


def test_roles_allow_what_they_do_on_the_hub(members: dict[str, HfApi]) -> None:
    found: dict[str, list[bool]] = {}
    for role, api in members.items():
        shared = members["admin"].create_repo(f"{ORGANIZATION}/shared-{role}", private=True).repo_id
        own = f"{ORGANIZATION}/own-{role}"

        def push(name: str, api: HfApi = api) -> object:
            return api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=name)

        found[role] = [
            is_allowed(lambda api=api, name=shared: api.model_info(name)),  # type: ignore[misc]
            is_allowed(lambda api=api, name=own: api.create_repo(name, private=True)),  # type: ignore[misc]
            is_allowed(lambda name=own: push(name)) if role != "read" else False,  # type: ignore[misc]
            is_allowed(lambda name=shared: push(name)),  # type: ignore[misc]
            is_allowed(lambda api=api, name=shared: api.update_repo_settings(name, private=True)),  # type: ignore[misc]
            is_allowed(lambda api=api, name=shared: api.move_repo(name, f"{name}-moved")),  # type: ignore[misc]
            is_allowed(lambda api=api, name=shared: api.delete_repo(name)),  # type: ignore[misc]
            is_allowed(lambda api=api, name=own: api.delete_repo(name)) if role != "read" else False,  # type: ignore[misc]
        ]
    assert found == {
        "read": [True, False, False, False, False, False, False, False],
        "contributor": [True, True, True, False, False, False, False, True],
        "write": [True, True, True, True, False, False, False, True],
        "admin": [True, True, True, True, True, True, True, True],
    }


def test_who_left_has_no_rights_in_what_it_made(registry: RegistryProcess, members: dict[str, HfApi]) -> None:
    leaver = HfApi(endpoint=registry.endpoint, token=registry.add_user("leaver"))
    registry.run("org", "join", ORGANIZATION, "leaver", "--role", "contributor")
    name = leaver.create_repo(f"{ORGANIZATION}/left-behind").repo_id
    registry.run("org", "join", ORGANIZATION, "leaver", "--role", "read")
    assert not is_allowed(lambda: leaver.delete_repo(name))
    registry.run("org", "leave", ORGANIZATION, "leaver")
    assert not is_allowed(lambda: leaver.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=name))


def test_a_token_for_reading_only_makes_a_reader_of_an_admin(
    registry: RegistryProcess, members: dict[str, HfApi]
) -> None:
    name = members["admin"].create_repo(f"{ORGANIZATION}/by-reading-token", private=True).repo_id
    api = HfApi(endpoint=registry.endpoint, token=registry.create_token("admin-member", scope="read"))
    assert api.model_info(name).private
    assert not is_allowed(lambda: api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=name))
    assert not is_allowed(lambda: api.update_repo_settings(name, private=False))


def test_organisations_and_users_can_be_looked_at(
    registry: RegistryProcess, members: dict[str, HfApi], guest: HfApi
) -> None:
    assert {one["name"]: one["roleInOrg"] for one in members["contributor"].whoami()["orgs"]} == {
        ORGANIZATION: "contributor"
    }
    names = [user.username for user in guest.list_organization_members(ORGANIZATION)]
    assert names == sorted(names, key=str.lower)
    assert {f"{role}-member" for role in ROLES} <= set(names)
    assert not any(hasattr(user, "role") for user in guest.list_organization_members(ORGANIZATION))
    roles = {user.username: user.role for user in members["read"].list_organization_members(ORGANIZATION)}  # type: ignore[attr-defined]
    assert roles["write-member"] == "write"

    members["admin"].create_repo(f"{ORGANIZATION}/counted", private=True)
    overview = guest.get_organization_overview(ORGANIZATION.lower())
    assert (overview.name, overview.num_users) == (ORGANIZATION, len(names))
    assert members["read"].get_organization_overview(ORGANIZATION).num_models == (overview.num_models or 0) + sum(
        model.private for model in members["read"].list_models(author=ORGANIZATION)
    )
    user = guest.get_user_overview("write-member")
    assert (user.username, [one.name for one in user.orgs]) == ("write-member", [ORGANIZATION])
    for look in (guest.get_user_overview, guest.get_organization_overview):
        with pytest.raises(HfHubHTTPError, match="404"):
            look("nobody-at-all")
    with pytest.raises(HfHubHTTPError, match="404"):
        list(guest.list_organization_members("write-member"))
