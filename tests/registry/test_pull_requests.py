"""Pull requests by the unmodified client: proposed by anyone who may read, merged by members, checked like any commit."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.community import DiscussionComment, DiscussionCommit, DiscussionStatusChange, DiscussionTitleChange
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.registry.releases import line, manifest
from tests.support.registry_process import RegistryProcess


@pytest.fixture
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


@pytest.fixture
def repository(api: HfApi, registry: RegistryProcess, request: pytest.FixtureRequest) -> str:
    name = api.create_repo(f"{registry.user}/{re.sub('[^a-z]+', '-', request.node.name)[5:60].strip('-')}").repo_id
    api.create_commit(name, [add("a.txt", b"first"), add("b.txt", b"first")], commit_message="Begin")
    return name


def add(path: str, content: bytes = b"x") -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def read(api: HfApi, repository: str, path: str, tmp_path: Path, revision: str = "main") -> bytes:
    folder = tmp_path / hashlib.sha256(f"{repository} {path} {revision}".encode()).hexdigest()
    return Path(api.hf_hub_download(repository, path, revision=revision, local_dir=folder)).read_bytes()


def refused(error: pytest.ExceptionInfo[HfHubHTTPError]) -> tuple[int, str]:
    return error.value.response.status_code, error.value.response.headers["X-Error-Code"]


def test_a_guest_proposes_and_a_member_merges(
    api: HfApi, guest: HfApi, repository: str, registry: RegistryProcess, tmp_path: Path
) -> None:
    head = api.model_info(repository).sha
    proposal = guest.create_commit(
        repository,
        [add("a.txt", b"better"), add("c.txt")],
        commit_message="Improve a",
        commit_description="It was not good.",
        create_pr=True,
    )
    assert (proposal.pr_num, proposal.pr_revision) == (1, "refs/pr/1")
    assert proposal.pr_url == f"{registry.endpoint}/{repository}/discussions/1"
    assert proposal.repo_url.repo_id == repository
    assert api.model_info(repository).sha == head

    # Its commits can be read, and nothing of main has changed.
    assert read(guest, repository, "a.txt", tmp_path, "refs/pr/1") == b"better"
    assert read(guest, repository, "a.txt", tmp_path) == b"first"
    assert api.model_info(repository, revision="refs/pr/1").sha == proposal.oid
    assert "c.txt" in api.list_repo_files(repository, revision="refs/pr/1")
    assert [commit.title for commit in api.list_repo_commits(repository, revision="refs/pr/1")][:2] == [
        "Improve a",
        "Begin",
    ]
    (ref,) = api.list_repo_refs(repository, include_pull_requests=True).pull_requests or []
    assert (ref.ref, ref.target_commit) == ("refs/pr/1", proposal.oid)

    second = guest.create_commit(repository, [add("c.txt", b"y")], commit_message="More", revision="refs/pr/1")
    assert second.pr_num is None
    api.comment_discussion(repository, 1, "Thank <you>")
    api.merge_pull_request(repository, 1, comment="Good.")

    details = guest.get_discussion_details(repository, 1)
    merged = api.model_info(repository).sha
    assert (details.title, details.status, details.author) == ("Improve a", "merged", "guest")
    assert (details.target_branch, details.merge_commit_oid) == ("refs/heads/main", merged)
    assert (details.conflicting_files, details.is_pull_request) == ([], True)
    told: list[Any] = [
        event.content
        if isinstance(event, DiscussionComment)
        else event.oid
        if isinstance(event, DiscussionCommit)
        else event.new_status
        if isinstance(event, DiscussionStatusChange)
        else event
        for event in details.events
    ]
    assert told == ["It was not good.", proposal.oid, second.oid, "Thank <you>", "Good.", "merged"]
    assert isinstance(details.events[3], DiscussionComment)
    assert details.events[3].rendered == "<p>Thank &lt;you&gt;</p>"
    assert read(api, repository, "a.txt", tmp_path) == b"better"
    assert [commit.title for commit in api.list_repo_commits(repository)][:2] == ["Improve a (#1)", "Begin"]
    with pytest.raises(HfHubHTTPError, match="is merged") as again:
        api.merge_pull_request(repository, 1)
    assert refused(again) == (409, "Conflict")
    with pytest.raises(HfHubHTTPError, match="is merged: open another"):
        guest.create_commit(repository, [add("d.txt")], commit_message="Late", revision="refs/pr/1")


def test_a_guest_changes_nothing_but_its_own_pull_requests(
    api: HfApi, guest: HfApi, repository: str, registry: RegistryProcess
) -> None:
    other = HfApi(endpoint=registry.endpoint, token=registry.add_user("other-guest"))
    guest.create_commit(repository, [add("c.txt")], commit_message="Mine", create_pr=True)
    for attempt in (
        lambda: other.create_commit(repository, [add("d.txt")], commit_message="Not mine", revision="refs/pr/1"),
        lambda: other.change_discussion_status(repository, 1, "closed"),
        lambda: other.rename_discussion(repository, 1, "Not mine"),
        lambda: other.merge_pull_request(repository, 1),
        lambda: guest.merge_pull_request(repository, 1),
        lambda: guest.create_commit(repository, [add("d.txt")], commit_message="On main"),
        lambda: guest.create_tag(repository, tag="v1", revision="refs/pr/1"),
        lambda: guest.super_squash_history(repository),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            attempt()
        assert refused(caught) == (403, "Forbidden")
    reading = HfApi(endpoint=registry.endpoint, token=registry.create_token("other-guest", scope="read"))
    with pytest.raises(HfHubHTTPError, match="for reading only"):
        reading.create_commit(repository, [add("d.txt")], commit_message="Read only", create_pr=True)
    # Members may do all of it.
    api.create_commit(repository, [add("d.txt")], commit_message="Help", revision="refs/pr/1")
    api.merge_pull_request(repository, 1)
    assert {"c.txt", "d.txt"} <= set(api.list_repo_files(repository))


def test_pull_requests_of_private_repositories_do_not_exist_for_others(
    api: HfApi, guest: HfApi, repository: str
) -> None:
    api.create_commit(repository, [add("c.txt")], commit_message="Secret", create_pr=True)
    api.update_repo_settings(repository, private=True)
    for attempt in (
        lambda: guest.get_discussion_details(repository, 1),
        lambda: list(guest.get_repo_discussions(repository)),
        lambda: guest.create_pull_request(repository, "Let me in"),
        lambda: guest.comment_discussion(repository, 1, "Hello?"),
        lambda: guest.merge_pull_request(repository, 1),
        lambda: guest.create_commit(repository, [add("d.txt")], commit_message="In", create_pr=True),
        lambda: guest.model_info(repository, revision="refs/pr/1"),
    ):
        with pytest.raises(RepositoryNotFoundError):
            attempt()
    assert api.get_discussion_details(repository, 1).title == "Secret"


def test_a_draft_is_opened_listed_renamed_closed_and_opened_again(api: HfApi, guest: HfApi, repository: str) -> None:
    draft = guest.create_pull_request(repository, "  A draft  ", description="Soon.")
    assert (draft.num, draft.status, draft.title, draft.git_reference) == (1, "draft", "A draft", "refs/pr/1")
    guest.create_commit(repository, [add("c.txt")], commit_message="Work", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="is a draft: open it first"):
        api.merge_pull_request(repository, 1)
    opened = guest.change_discussion_status(repository, 1, "open", comment="Ready.")
    assert opened.new_status == "open"
    renamed = guest.rename_discussion(repository, 1, "A better title")
    assert isinstance(renamed, DiscussionTitleChange)
    assert (renamed.old_title, renamed.new_title) == ("A draft", "A better title")

    api.create_commit(repository, [add("d.txt")], commit_message="Another", create_pr=True)
    api.change_discussion_status(repository, 2, "closed")
    with pytest.raises(HfHubHTTPError, match="is closed"):
        api.create_commit(repository, [add("e.txt")], commit_message="Late", revision="refs/pr/2")

    def numbers(**options: Any) -> list[int]:
        return [one.num for one in guest.get_repo_discussions(repository, **options)]

    assert numbers() == [2, 1]
    assert numbers(discussion_status="open") == [1]
    assert numbers(discussion_status="closed", discussion_type="pull_request") == [2]
    assert numbers(discussion_type="discussion") == []
    assert numbers(author="GUEST") == [1]
    api.change_discussion_status(repository, 2, "open")
    for number in (1, 2):
        api.merge_pull_request(repository, number)
    with pytest.raises(HfHubHTTPError, match="is merged"):
        guest.change_discussion_status(repository, 1, "closed")
    with pytest.raises(EntryNotFoundError):
        guest.get_discussion_details(repository, 3)


def test_many_pull_requests_come_in_pages(api: HfApi, repository: str) -> None:
    for number in range(53):
        api.create_pull_request(repository, f"number {number + 1}")
    assert [one.num for one in api.get_repo_discussions(repository)] == list(range(53, 0, -1))


def test_what_both_sides_changed_cannot_be_merged(api: HfApi, guest: HfApi, repository: str, tmp_path: Path) -> None:
    guest.create_commit(
        repository, [add("a.txt", b"theirs"), CommitOperationDelete("b.txt")], commit_message="Theirs", create_pr=True
    )
    guest.create_commit(repository, [add("c.txt", b"theirs")], commit_message="Elsewhere", create_pr=True)
    api.create_commit(repository, [add("a.txt", b"ours"), add("d.txt")], commit_message="Ours")
    head = api.model_info(repository).sha
    assert guest.get_discussion_details(repository, 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match=r"changed the same files since: a\.txt") as caught:
        api.merge_pull_request(repository, 1, comment="This is not kept")
    assert refused(caught) == (409, "MergeConflict")
    assert api.model_info(repository).sha == head
    assert [event.type for event in api.get_discussion_details(repository, 1).events] == ["commit"]
    api.merge_pull_request(repository, 2)
    assert read(api, repository, "a.txt", tmp_path) == b"ours"
    assert {"b.txt", "c.txt", "d.txt"} <= set(api.list_repo_files(repository))
    # What was changed the same way on both sides is no contradiction.
    api.create_commit(repository, [add("a.txt", b"theirs")], commit_message="Give in")
    api.merge_pull_request(repository, 1)
    assert "b.txt" not in api.list_repo_files(repository)


def test_a_squashed_branch_is_merged_into_all_the_same(api: HfApi, guest: HfApi, repository: str) -> None:
    old = api.model_info(repository).sha
    guest.create_commit(repository, [add("c.txt")], commit_message="Proposed before", create_pr=True)
    api.super_squash_history(repository)
    api.merge_pull_request(repository, 1)
    assert [commit.title for commit in api.list_repo_commits(repository)][:1] == ["Proposed before (#1)"]
    assert {"a.txt", "c.txt"} <= set(api.list_repo_files(repository))
    with pytest.raises(HfHubHTTPError, match="412"):
        guest.create_commit(repository, [add("d.txt")], commit_message="x", parent_commit=old, create_pr=True)


def test_a_pull_request_begins_at_the_commit_and_branch_asked_for(
    api: HfApi, guest: HfApi, repository: str, tmp_path: Path
) -> None:
    first = api.model_info(repository).sha
    api.create_commit(repository, [add("a.txt", b"second")], commit_message="Second")
    proposal = guest.create_commit(
        repository, [add("c.txt")], commit_message="On the first", parent_commit=first, create_pr=True
    )
    assert read(guest, repository, "a.txt", tmp_path, proposal.oid) == b"first"
    api.merge_pull_request(repository, 1)
    assert read(api, repository, "a.txt", tmp_path) == b"second"

    api.create_branch(repository, branch="side")
    main = api.model_info(repository).sha
    guest.create_commit(repository, [add("s.txt")], commit_message="Aside", revision="side", create_pr=True)
    api.merge_pull_request(repository, 2)
    assert "s.txt" in api.list_repo_files(repository, revision="side")
    assert api.model_info(repository).sha == main
    with pytest.raises(RevisionNotFoundError):
        guest.create_commit(repository, [add("x.txt")], commit_message="x", revision="nowhere", create_pr=True)
    guest.create_commit(repository, [add("t.txt")], commit_message="Gone", revision="side", create_pr=True)
    api.delete_branch(repository, branch="side")
    with pytest.raises(RevisionNotFoundError):
        api.merge_pull_request(repository, 3)
    assert api.get_discussion_details(repository, 3).conflicting_files == []


def test_releases_are_proposed_and_merged_like_published(api: HfApi, guest: HfApi, repository: str) -> None:
    index, path = "releases.jsonl", "releases/1.0/skillpack.json"
    api.create_commit(repository, [add(index, line("1.0")), add(path, manifest("1.0"))], commit_message="Release 1.0")
    for operations in (
        [add(index, line("2.0"))],
        [CommitOperationDelete(index)],
        [add(path, b"another"), add(index, line("1.0") + line("1.1"))],
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            guest.create_commit(repository, operations, commit_message="Rewrite", create_pr=True)
        assert refused(caught) == (409, "ReleasesRewritten")
    assert list(api.get_repo_discussions(repository)) == []

    def propose(version: str) -> int:
        files = [add(index, line("1.0") + line(version)), add(f"releases/{version}/skillpack.json", manifest(version))]
        number = guest.create_commit(repository, files, commit_message=f"Release {version}", create_pr=True).pr_num
        assert number is not None
        return number

    first, second = propose("1.1"), propose("1.2")
    # What a proposal releases stays as well: it may have been tried out already.
    with pytest.raises(HfHubHTTPError, match="never changes"):
        guest.create_commit(
            repository, [add("releases/1.1/skillpack.json", b"!")], commit_message="x", revision=f"refs/pr/{first}"
        )
    api.merge_pull_request(repository, first)
    head = api.model_info(repository).sha
    assert api.get_discussion_details(repository, second).conflicting_files == [index]
    with pytest.raises(HfHubHTTPError, match=r"main has other releases since, .* does not extend main's") as caught:
        api.merge_pull_request(repository, second)
    assert refused(caught) == (409, "MergeConflict")
    assert api.model_info(repository).sha == head
    (entry,) = api.get_paths_info(repository, "releases/1.1", expand=True)
    assert entry.last_commit is not None
    assert entry.last_commit.oid == head  # published when it was merged, not when it was proposed


def test_merging_renews_the_card(api: HfApi, guest: HfApi, repository: str) -> None:
    card = b"---\ntags: [skillpack, proposed-tag]\n---\n"
    guest.create_commit(repository, [add("README.md", card)], commit_message="A card", create_pr=True)
    assert list(api.list_models(filter="proposed-tag")) == []
    api.merge_pull_request(repository, 1)
    assert [model.id for model in api.list_models(filter="proposed-tag")] == [repository]


def test_pull_requests_go_with_their_repository(api: HfApi, guest: HfApi, repository: str) -> None:
    guest.create_commit(repository, [add("c.txt")], commit_message="Proposed", create_pr=True)
    api.move_repo(repository, f"{repository}-moved")
    assert guest.get_discussion_details(f"{repository}-moved", 1).repo_id == f"{repository}-moved"
    api.merge_pull_request(f"{repository}-moved", 1)
    api.delete_repo(f"{repository}-moved")
    api.create_repo(repository)
    assert list(api.get_repo_discussions(repository)) == []
    assert api.create_pull_request(repository, "From one again").num == 1
