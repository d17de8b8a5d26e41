"""What authors are told before a release is published, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from msgspec import structs

from skillhub import hub
from skillhub.announcements import Access
from skillhub.errors import TrustError, UsageError
from skillhub.lints import Finding, lint_release
from skillhub.manifest import Evaluation, Manifest, Skill
from skillhub.names import parse_version
from skillhub.packs import Pack, open_pack, write_manifest
from skillhub.publisher import draft_release, publish
from skillhub.releases import Release, ReleaseIndex, release_event
from skillhub.signing import generate_key, save_key
from tests.support.packs import OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess

pytestmark = pytest.mark.usefixtures("homes")


@pytest.fixture(scope="module")
def owner(registry: RegistryProcess) -> hub.Registry:
    found = hub.Registry("hub", registry.endpoint, registry.add_user("linter"))
    publish_base(found, "linter/free-base", "license: apache-2.0")
    publish_base(found, "linter/closed-base", "license: other\nlicense_name: cc-by-nc-4.0")
    return found


def publish_base(owner: hub.Registry, name: str, front: str) -> None:
    api = HfApi(endpoint=owner.endpoint, token=owner.token)
    api.create_repo(name)
    readme = f"---\n{front}\n---\n# A base\n".encode()
    api.upload_file(path_or_fileobj=readme, path_in_repo="README.md", repo_id=name)


def complete(pack: Pack, **changes: object) -> Pack:
    """Give a pack all that an author should give it."""
    score = Evaluation(task="maths", metric="exact", base=0.1, tuned=0.9, pack=0.9, rows=100)
    variants = [structs.replace(variant, evaluation=[score]) for variant in pack.manifest.variants]
    write_manifest(pack.folder, structs.replace(pack.manifest, **{"variants": variants, **changes}))
    return open_pack(pack.folder)


def findings(owner: hub.Registry, pack: Pack, index: ReleaseIndex | None = None) -> dict[str, Finding]:
    return {one.code: one for one in lint_release(owner, pack.manifest, index or ReleaseIndex())}


def index_of(*versions: str, yanked: str | None = None, deprecated: str | None = None) -> ReleaseIndex:
    found = []
    for version in versions:
        event = release_event(Manifest(schema=0, name="x", version=version), {})
        found.append(Release(parse_version(version), event, yanked))
    return ReleaseIndex(tuple(found), deprecated)


def test_a_complete_pack_has_no_findings(owner: hub.Registry, tmp_path: Path) -> None:
    assert findings(owner, complete(make_pack(tmp_path, repo="linter/free-base")), index_of("0.9")) == {}


def test_what_is_missing_is_named_with_what_to_write(owner: hub.Registry, tmp_path: Path) -> None:
    pack = make_pack(tmp_path, repo=None, license=None)
    bare = structs.replace(pack.manifest, summary=" ", skills=Skill())
    write_manifest(pack.folder, bare)
    found = findings(owner, open_pack(pack.folder))
    warned = {code for code, one in found.items() if one.level == "warning"}
    assert warned == {"no-summary", "no-license", "no-tags", "no-prompts", "no-evaluation"}
    assert set(found) - warned == {"no-base-repository", "base-license-unknown"}
    assert "`summary` in skillpack.toml" in str(found["no-summary"])
    assert "skillhub evaluate" in found["no-evaluation"].hint


def test_a_licence_that_the_bases_does_not_go_with(owner: hub.Registry, tmp_path: Path) -> None:
    pack = complete(make_pack(tmp_path, repo="linter/closed-base"))
    assert "forbids commercial use" in findings(owner, pack)["license"].message
    agreed = complete(pack, license="cc-by-nc-4.0")
    assert findings(owner, agreed) == {}
    unknown = complete(make_pack(tmp_path / "2", repo="linter/nothing-here"))
    assert findings(owner, unknown)["base-license-unknown"].level == "note"
    told = complete(unknown, provenance={"base_license": "gpl-3.0"})
    assert "the same licence" in findings(owner, told)["license"].message


def test_versions_that_surprise(owner: hub.Registry, tmp_path: Path) -> None:
    pack = complete(make_pack(tmp_path / "1", version="1.5", repo="linter/free-base"))
    assert list(findings(owner, pack, index_of("2.0"))) == ["older-version"]
    assert findings(owner, pack, index_of("2.0rc1")) == findings(owner, pack, index_of("2.0", yanked="x")) == {}
    assert list(findings(owner, pack, index_of("1.0", deprecated="use another"))) == ["deprecated"]
    early = complete(make_pack(tmp_path / "2", version="3.0rc1", repo="linter/free-base"))
    assert findings(owner, early, index_of("2.0"))["pre-release"].level == "note"


def test_requirements_that_nobody_can_meet(owner: hub.Registry, tmp_path: Path) -> None:
    publish(make_pack(tmp_path / "1", "needed", "1.2"), "linter/needed", registry=owner)

    def lint(*requires: str) -> list[str]:
        pack = make_pack(tmp_path / "2", "needing", repo="linter/free-base")
        return list(findings(owner, complete(pack, requires=list(requires))))

    assert lint("linter/needed>=1,<2") == []
    assert lint("linter/needed>=2") == ["unmet-requirement"]
    assert lint("linter/unheard-of") == ["unknown-requirement"]
    other = complete(make_pack(tmp_path / "3", "needing", fingerprints=[OTHER_BASE], repo="linter/free-base"))
    assert list(findings(owner, complete(other, requires=["linter/needed"]))) == ["requirement-without-base"]


@pytest.mark.parametrize(
    ("requires", "conflicts", "words"),
    [
        (["linter/Self-pack>=1"], [], "requires itself"),
        ([], ["linter/self-pack<1"], "conflicts with itself"),
        (["linter/other>=1"], ["Linter/other"], "requires Linter/other and conflicts with it"),
    ],
)
def test_a_pack_that_nobody_could_install_is_refused(
    owner: hub.Registry, tmp_path: Path, requires: list[str], conflicts: list[str], words: str
) -> None:
    pack = make_pack(tmp_path, "self-pack", requires=requires, conflicts=conflicts)
    with pytest.raises(UsageError, match=words) as caught:
        publish(pack, "linter/self-pack", registry=owner)
    assert caught.value.exit_code == 2
    assert hub.repository_head(owner, "linter/self-pack") is None


def test_conflicts_with_other_versions_of_what_is_required_are_fine(owner: hub.Registry, tmp_path: Path) -> None:
    pack = make_pack(tmp_path, "careful", requires=["linter/needed>=1"], conflicts=["linter/needed==1.1"])
    assert draft_release(pack, "linter/careful", Access(owner)).published is None


def use_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not path.exists():
        save_key(generate_key(), path)
    monkeypatch.setenv("SKILLHUB_SIGNING_KEY", str(path))


def test_signatures_go_on_as_they_began(owner: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = {version: make_pack(tmp_path / version, "kept-pack", version) for version in ("1.0", "1.1", "1.2", "1.3")}
    first = publish(packs["1.0"], "linter/kept-pack", registry=owner)
    assert first.signer is None
    use_key(tmp_path / "one.pem", monkeypatch)
    second = publish(packs["1.1"], "linter/kept-pack", registry=owner)
    assert second.signer is not None and second.release.event.signature is not None
    with pytest.raises(TrustError, match=r"1\.1 is signed, and 1\.2 would not be") as caught:
        publish(packs["1.2"], "linter/kept-pack", registry=owner, sign=False)
    assert "--allow-signer-change" in caught.value.hint and "trust forget linter/kept-pack" in caught.value.hint
    use_key(tmp_path / "two.pem", monkeypatch)
    with pytest.raises(TrustError, match="signed by another key than ed25519:"):
        publish(packs["1.2"], "linter/kept-pack", registry=owner)
    changed = publish(packs["1.2"], "linter/kept-pack", registry=owner, allow_signer_change=True)
    assert changed.signer not in (None, second.signer)
    unsigned = publish(packs["1.3"], "linter/kept-pack", registry=owner, sign=False, allow_signer_change=True)
    assert unsigned.signer is None


def test_the_same_pack_is_published_once_whether_or_not_it_is_signed(
    owner: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    plain, signed = (make_pack(tmp_path / name, name) for name in ("plain-pack", "signed-pack"))
    publish(plain, "linter/plain-pack", registry=owner)
    use_key(tmp_path / "key.pem", monkeypatch)
    publish(signed, "linter/signed-pack", registry=owner)
    again = publish(plain, "linter/plain-pack", registry=owner, notice=notes.append)
    assert (again.already_there, again.signer, again.release.event.signature) == (True, None, None)
    assert "not signed; what is published never changes" in notes[-1]
    assert publish(signed, "linter/signed-pack", registry=owner).signer is not None
    again = publish(signed, "linter/signed-pack", registry=owner, sign=False, notice=notes.append)
    assert again.already_there and again.release.event.signature is not None
    assert "and signed; what is published never changes" in notes[-1]


def test_a_pack_that_names_anothers_key_is_not_published_by_halves(
    owner: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skillhub.signing import signer_of

    pack = complete(make_pack(tmp_path / "pack", "taken-pack"), signer=signer_of(generate_key()))
    with pytest.raises(UsageError, match="whose key is not here"):
        publish(pack, "linter/taken-pack", registry=owner)
    assert publish(pack, "linter/taken-pack", registry=owner, sign=False).signer is None


def test_the_licence_in_the_bases_own_folder_is_noted_when_a_pack_is_built(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    import shutil

    from skillhub.authorfile import AuthorFile
    from skillhub.packer import pack

    base = shutil.copytree(models[0], tmp_path / "base")
    for number, (readme, noted) in enumerate(
        [
            ("---\nlicense: llama3.2\n---\n# A base", {"base_license": "llama3.2"}),
            ("---\nlicense: other\nlicense_name: acme-terms\n---\n", {"base_license": "acme-terms"}),
            ("---\n: [\n---\n", {}),
            ("No front matter.", {}),
        ]
    ):
        (base / "README.md").write_text(readme)
        built = pack(models[1], base, tmp_path / str(number), metadata=AuthorFile(name="x", version="1.0"))
        assert built.manifest.provenance.items() >= noted.items()
        assert len(built.manifest.provenance) == 1 + len(noted)


def test_a_pack_that_moved_is_published_under_its_new_name(owner: hub.Registry, tmp_path: Path) -> None:
    publish(make_pack(tmp_path / "1", "first-name", "1.0"), "linter/first-name", registry=owner)
    api = HfApi(endpoint=owner.endpoint, token=owner.token)
    api.move_repo("linter/first-name", "linter/second-name")
    with pytest.raises(UsageError, match="has moved to linter/second-name"):
        publish(make_pack(tmp_path / "2", "first-name", "1.1"), "linter/first-name", registry=owner)
    publish(make_pack(tmp_path / "3", "second-name", "1.1"), "linter/second-name", registry=owner)
