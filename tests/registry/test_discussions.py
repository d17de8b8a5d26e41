"""Discussions without commits, and comments that are edited and hidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.community import DiscussionComment, DiscussionWithDetails
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from tests.support.registry_process import RegistryProcess


@pytest.fixture(scope="module")
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


@pytest.fixture
def repository(api: HfApi, registry: RegistryProcess, request: pytest.FixtureRequest) -> str:
    name = f"{registry.user}/talk-{abs(hash(request.node.name)) % 10**9}"
    return api.create_repo(name).repo_id


def comments(details: DiscussionWithDetails) -> list[tuple[str, str, bool, bool]]:
    return [
        (event.author, event.content, event.edited, event.hidden)
        for event in details.events
        if isinstance(event, DiscussionComment)
    ]


def status(act: Callable[[], Any]) -> int:
    with pytest.raises(HfHubHTTPError) as caught:
        act()
    return int(caught.value.response.status_code)


def test_a_discussion_is_a_conversation_alone(
    api: HfApi, guest: HfApi, registry: RegistryProcess, repository: str
) -> None:
    opened = guest.create_discussion(repository, "How is it done?", description="I wonder.")
    assert (opened.num, opened.status, opened.is_pull_request, opened.author) == (1, "open", False, "guest")
    proposal = guest.create_commit(
        repository, [CommitOperationAdd("a.txt", b"1")], commit_message="Propose", create_pr=True
    )
    assert proposal.pr_num == 2

    def numbers(**options: Any) -> list[int]:
        return [one.num for one in guest.get_repo_discussions(repository, **options)]

    assert numbers() == [2, 1]
    assert numbers(discussion_type="discussion") == [1]
    assert numbers(discussion_type="pull_request") == [2]
    api.comment_discussion(repository, 1, "Like <this>.")
    api.change_discussion_status(repository, 1, "closed", comment="Done.")
    assert numbers(discussion_status="open") == [2]
    guest.change_discussion_status(repository, 1, "open")
    guest.rename_discussion(repository, 1, "How was it done?")
    details = guest.get_discussion_details(repository, 1)
    assert (details.title, details.status, details.diff) == ("How was it done?", "open", None)
    assert [text for _, text, _, _ in comments(details)] == ["I wonder.", "Like <this>.", "Done."]
    assert [event.type for event in details.events][-2:] == ["status-change", "title-change"]
    assert details.url == f"{registry.endpoint}/{repository}/discussions/1"
    page = requests.get(details.url)
    assert page.status_code == 200
    assert "Like &lt;this&gt;." in page.text
    assert "merge" not in page.text

    # it has no commits, takes none and cannot be merged
    assert [ref.ref for ref in guest.list_repo_refs(repository, include_pull_requests=True).pull_requests or []] == [
        "refs/pr/2"
    ]
    with pytest.raises(RevisionNotFoundError):
        guest.list_repo_files(repository, revision="refs/pr/1")
    assert status(lambda: api.merge_pull_request(repository, 1)) == 404
    commit = [CommitOperationAdd("b.txt", b"1")]
    assert status(lambda: api.create_commit(repository, commit, commit_message="x", revision="refs/pr/1")) == 404


def test_comments_are_edited_by_who_wrote_them(api: HfApi, guest: HfApi, repository: str) -> None:
    guest.create_discussion(repository, "A question", description="Frist")
    (comment,) = guest.get_discussion_details(repository, 1).events
    edited = guest.edit_discussion_comment(repository, 1, comment.id, "First")
    assert (edited.id, edited.content, edited.edited) == (comment.id, "First", True)
    assert comments(guest.get_discussion_details(repository, 1)) == [("guest", "First", True, False)]
    assert status(lambda: api.edit_discussion_comment(repository, 1, comment.id, "Last")) == 403
    assert status(lambda: guest.edit_discussion_comment(repository, 1, comment.id, " ")) == 400
    assert status(lambda: guest.edit_discussion_comment(repository, 1, "f" * 24, "x")) == 404
    assert status(lambda: guest.edit_discussion_comment(repository, 2, comment.id, "x")) == 404
    assert status(lambda: guest.edit_discussion_comment(repository, 1, "nothing", "x")) == 404


@pytest.mark.filterwarnings("ignore:Hidden comments' content:UserWarning")  # the client's, that it is for good
def test_hidden_comments_are_gone(api: HfApi, guest: HfApi, registry: RegistryProcess, repository: str) -> None:
    other = HfApi(endpoint=registry.endpoint, token=registry.add_user("hider"))
    guest.create_discussion(repository, "A question", description="Buy this!")
    guest.comment_discussion(repository, 1, "Nothing to see")
    first, second = guest.get_discussion_details(repository, 1).events
    assert status(lambda: other.hide_discussion_comment(repository, 1, first.id)) == 403
    api.hide_discussion_comment(repository, 1, first.id)  # a member
    hidden = guest.hide_discussion_comment(repository, 1, second.id)  # its author
    assert (hidden.hidden, "see" in hidden.content) == (True, False)
    details = guest.get_discussion_details(repository, 1)
    assert [(is_hidden, text) for _, text, _, is_hidden in comments(details)] == [
        (True, "This comment has been hidden"),
        (True, "This comment has been hidden"),
    ]
    assert status(lambda: guest.edit_discussion_comment(repository, 1, second.id, "Back")) == 409
    page = requests.get(f"{registry.endpoint}/{repository}/discussions/1").text
    assert "Buy this!" not in page
    assert "This comment has been hidden" in page
