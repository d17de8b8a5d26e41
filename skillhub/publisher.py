"""Publish a built pack as a release: one commit that adds its folder and announces it in the index.

draft_release   check the pack, sign it, look at what is published: everything that can go wrong without writing
publish_draft   commit until the index holds the release (see ``announcements``), then tag it
publish         both
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from skillhub import hub
from skillhub.announcements import (
    Access,
    Announcement,
    Files,
    Place,
    State,
    announce,
    commit_files,
    commit_of,
    propose,
    sizes,
)
from skillhub.catalogs import declared_base_files
from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UsageError
from skillhub.frontpages import described_release, front_page, read_manifest
from skillhub.lints import Finding, lint_release, refuse_contradictions, refuse_other_signer
from skillhub.manifest import MANIFEST_FILE, Manifest
from skillhub.names import parse_version
from skillhub.packs import Pack, open_pack, verify_pack
from skillhub.progress import Notice, Progress, counting, silence
from skillhub.releases import Event, Release, ReleaseIndex, release_event, release_folder
from skillhub.signing import has_key, load_key, sign_digest, signer_of, signer_text


@dataclass(frozen=True)
class Publication:
    """What publishing came to.

    Attributes:
        release: the release as the index announces it (as it would, for a pull request).
        repository: full name of its repository.
        commit: the commit that holds it; None where that is not known any more, because others followed.
        pull_request: address of the pull request that proposes it, if one was asked for and made.
        already_there: whether the release was published before, with the same content.
        signer: key that signed it, ``ed25519:`` and base64; None for an unsigned release.
        findings: what its author should know of it.
    """

    release: Release
    repository: str
    commit: str | None
    pull_request: str | None = None
    already_there: bool = False
    signer: str | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Draft:
    """A release that is ready to be published.

    Attributes:
        place: its repository.
        pack: the pack's folder.
        manifest: as it is published: with the signer, where it is signed.
        event: the line that announces it.
        state: what was published when the draft was made.
        findings: what its author should know.
        published: the release, where it is published already with the same content.
    """

    place: Place
    pack: Pack
    manifest: Manifest
    event: Event
    state: State
    findings: tuple[Finding, ...] = ()
    published: Release | None = None

    @property
    def signer(self) -> str | None:
        """The key that signs the release, or None."""
        return signer_text(self.manifest.signer) if self.manifest.signer else None

    def announcement(self, progress: Progress | None, notice: Notice) -> Announcement:
        """Return what is to be announced."""

        def is_done(state: State, appended: bytes) -> bool:
            return find_published(self.place, state, self.manifest) is not None

        def files(state: State, index: ReleaseIndex) -> Files:
            return _release_files(self, state, index, notice)

        return Announcement(self.event, f"Release {self.manifest.version}", files, is_done, progress, notice)

    def file_sizes(self, notice: Notice) -> dict[str, int]:
        """Return what a commit would add or renew: path in the repository → bytes."""
        return sizes(commit_files(self.announcement(None, notice), self.state))


def publish(
    pack: Pack | Path | str,
    repo_id: str,
    *,
    registry: hub.Registry | str | None = None,
    token: str | None = None,
    create_pr: bool = False,
    sign: bool | None = None,
    allow_signer_change: bool = False,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Publication:
    """Publish a pack folder as a release of a repository, which is created if need be.

    A release that is there already, byte for byte, is a success. Afterwards its commit is tagged ``v<version>``, for
    people only; a tag that cannot be made is told and does no harm.

    Args:
        pack: the pack, or its folder.
        repo_id: ``owner/name``, or the name alone for one's own account; the name must be the pack's.
        registry: a registry, its configured name or its address; None means the one that the pack is pinned to, else the
            configured one.
        token: for that registry; None means the saved one.
        create_pr: propose the release as a pull request instead.
        sign: whether to sign it; None signs when there is a key.
        allow_signer_change: publish although earlier releases were signed by another key, or this one is not signed.
        progress: told what of the pack has been read through, then what has been sent: what, bytes done, bytes in all.
        notice: told sentences for the user, among them what the author should know of the pack.

    Returns:
        The release, and where it is.

    Raises:
        IntegrityError: the pack's files are not what its manifest says, or the version is published with other content.
        AuthError: there is no token, or it may not write there.
        TrustError: earlier releases were signed by another key, or this one is not signed and they were.
        UsageError: the repository's name is not the pack's, or the pack could never be installed.
        NotFoundError: it is to be signed and there is no key, or it is proposed to a repository that is not there.
        NetworkError: the registry cannot be reached or went on failing; nothing is visible then, or all of it.
    """
    access = Access(registry, token, (), progress, notice or silence)
    draft = draft_release(pack, repo_id, access, sign=sign, allow_signer_change=allow_signer_change)
    for finding in draft.findings:
        access.notice(str(finding))
    return publish_draft(draft, access, create_pr=create_pr)


def draft_release(
    pack: Pack | Path | str,
    repo_id: str,
    access: Access,
    *,
    sign: bool | None = None,
    allow_signer_change: bool = False,
    dry_run: bool = False,
) -> Draft:
    """Do everything for a release that writes nothing: check the pack, sign it, compare it with what is published.

    Args:
        pack: as for :func:`publish`, and so are the errors.
        repo_id: likewise.
        access: where it is to be published, and as whom.
        sign: whether to sign it; None signs when there is a key.
        allow_signer_change: go on although users of the earlier releases will refuse this one's signer.
        dry_run: go on without a token, which a mere look may not need.
    """
    opened = pack if isinstance(pack, Pack) else open_pack(Path(pack))
    place = access.find_place(repo_id)
    if not dry_run:
        hub.require_token(place.registry)
    _check_name(opened, place)
    _check_whole(opened, access.progress)
    manifest, event = _signed(opened.manifest, sign)
    refuse_contradictions(manifest, place.name)
    state = place.read_state()
    found = find_published(place, state, manifest)
    if found is not None:
        return Draft(place, opened, manifest, event, state, published=found)
    if not allow_signer_change:
        refuse_other_signer(manifest, event, state.index, place.name)
    findings = lint_release(place.registry, manifest, state.index, access.elsewhere)
    return Draft(place, opened, manifest, event, state, tuple(findings))


def publish_draft(draft: Draft, access: Access, *, create_pr: bool = False) -> Publication:
    """Publish a release, or propose it; errors are those of :func:`publish`."""
    place, notice = draft.place, access.notice
    hub.require_token(place.registry)
    announcement = draft.announcement(access.progress, notice)
    if draft.published is not None:
        return _already_there(draft, announcement, draft.published, notice)
    if create_pr:
        refuse_proposal_to_nowhere(draft)
        result = propose(place, announcement, draft.state)
        release = Release(parse_version(draft.manifest.version), draft.event)
        return Publication(
            release, str(place.name), result.commit, result.pull_request, False, draft.signer, draft.findings
        )
    state = draft.state if draft.state.head is not None else place.read_or_create()
    found = find_published(place, state, draft.manifest)  # somebody else may have made the repository meanwhile
    if found is not None:
        return _already_there(draft, announcement, found, notice)
    state, commit = announce(place, announcement, state)
    _tag(draft, commit, notice)
    published = find_published(place, state, draft.manifest)
    assert published is not None  # the announcement is done only then
    return Publication(published, str(place.name), commit, signer=draft.signer, findings=draft.findings)


def refuse_proposal_to_nowhere(draft: Draft) -> None:
    """Refuse to propose a release to a repository that is not there.

    Raises:
        NotFoundError: it is not.
    """
    if draft.state.head is None:
        place = draft.place
        raise NotFoundError(
            f"There is no repository {place.name} at {place.registry.address}.", hint="Publish without --create-pr."
        )


def _already_there(draft: Draft, announcement: Announcement, found: Release, notice: Notice) -> Publication:
    place, same = draft.place, found.manifest_digest == draft.manifest.digest
    told = f"{place.name} {found.version} is published already, with the same content"
    if same:
        notice(f"{told}.")
    else:
        signed = "signed by another key" if found.event.signature else "not signed"
        notice(f"{told}, {signed if draft.signer else 'and signed'}; what is published never changes.")
    if found.yanked is not None:
        notice(f"It is yanked: {found.yanked}. To have it chosen again: skillhub unyank {place.name}=={found.version}.")
    commit = commit_of(announcement, draft.state) if same else None
    _tag(draft, commit, notice)
    signer = draft.signer if same else None
    return Publication(found, str(place.name), commit, already_there=True, signer=signer)


def find_published(place: Place, state: State, manifest: Manifest) -> Release | None:
    """Return the release that has a manifest's content, whether or not it is signed as ours; None where there is none.

    Raises:
        IntegrityError: its version is published with other content.
        SkillhubError: as :func:`skillhub.frontpages.read_manifest`.
    """
    found = state.index.find(parse_version(manifest.version))
    if found is None or found.manifest_digest == manifest.digest:
        return found
    there = read_manifest(place, state, found)
    if structs.replace(there, signer=None) == structs.replace(manifest, signer=None):
        return found
    raise IntegrityError(
        f"{place.name} {found.version} is published already, with other content.",
        hint="A published version never changes: give this pack a new version and build it again.",
        expected=found.manifest_digest,
        found=manifest.digest,
    )


def _check_name(pack: Pack, place: Place) -> None:
    name = place.name
    if name.name.lower() != pack.manifest.name.lower():
        raise UsageError(
            f"The pack is called {pack.manifest.name}, and its repository would be {name}.",
            hint=f"Publish it as {name.owner}/{pack.manifest.name}, or build it under the other name.",
        )


def _check_whole(pack: Pack, progress: Progress | None) -> None:
    """Read the whole pack; what is published can never be corrected."""
    total = sum(variant.size for variant in pack.manifest.variants)
    if not pack.manifest.variants:
        raise UsageError(f"{pack} has no variant: it is for no base.", hint="Build it with `skillhub pack`.")
    findings = verify_pack(pack, progress=counting(f"Checking {pack}", total, progress))
    if findings:
        more = f" ({len(findings) - 1} more files are wrong as well)" if len(findings) > 1 else ""
        raise IntegrityError(
            f"{findings[0].message}{more}", hint="Build the pack again with `skillhub pack`.", path=str(pack.folder)
        )


def _signed(manifest: Manifest, sign: bool | None) -> tuple[Manifest, Event]:
    """Return the manifest as it is published, and its event: with signer and signature, or without both."""
    if sign is None and manifest.signer is not None and not has_key():
        raise UsageError(
            f"The pack's manifest names the signer {signer_text(manifest.signer)}, whose key is not here.",
            hint="Name the key's file in SKILLHUB_SIGNING_KEY, or publish without a signature: --no-sign.",
        )
    if sign is False or (sign is None and not has_key()):
        unsigned = structs.replace(manifest, signer=None)
        return unsigned, release_event(unsigned, declared_base_files(unsigned))
    key = load_key()
    signed = structs.replace(manifest, signer=signer_of(key))
    return signed, release_event(signed, declared_base_files(signed), signature=sign_digest(key, signed.digest))


def _release_files(draft: Draft, state: State, index: ReleaseIndex, notice: Notice) -> Files:
    """Return everything but the index that the release's commit adds or renews."""
    manifest, folder = draft.manifest, release_folder(draft.manifest.version)
    files: dict[str, bytes | Path] = {
        f"{folder}/{entry.path}": draft.pack.path_of(entry) for variant in manifest.variants for entry in variant.files
    }
    files[f"{folder}/{MANIFEST_FILE}"] = manifest.to_bytes()
    described = described_release(index)
    if described is not None and described.manifest_digest == manifest.digest:
        files |= front_page(draft.place, state, index, manifest, notice)
    return files


def _tag(draft: Draft, commit: str | None, notice: Notice) -> None:
    """Tag the release's commit; where that is not known, no tag is better than a wrong one."""
    if commit is None:
        return
    tag = f"v{draft.manifest.version}"
    try:
        hub.create_tag(draft.place.registry, str(draft.place.name), tag, revision=commit)
    except SkillhubError as error:
        notice(f"The release is published, but its tag {tag} could not be made: {error.message}")
