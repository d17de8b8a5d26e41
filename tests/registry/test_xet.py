"""Xorbs and shards: read as the format says, and refused without a crash when they are anything else."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Sequence

import lz4.frame
import numpy as np
import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import BadRequestError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillhub_registry import limits
from skillhub_registry.xet import XetError, Xorb, parse_shard, parse_xorb, rebuild_file, unpack_chunk
from tests.support.registry_process import RegistryProcess

XORB_HASH = bytes(range(32))


def to_hex(value: bytes) -> str:
    """Write a hash as Xet does: four little-endian 64-bit words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", value))


def pack_chunk(data: bytes, scheme: int) -> bytes:
    """Write a chunk by an independent way of grouping bytes."""
    packed = data
    if scheme == 2:
        packed = b"".join(np.frombuffer(data, np.uint8)[plane::4].tobytes() for plane in range(4))
    if scheme:
        packed = lz4.frame.compress(packed)
    return bytes([0]) + len(packed).to_bytes(3, "little") + bytes([scheme]) + len(data).to_bytes(3, "little") + packed


def make_shard(
    files: Sequence[tuple[bytes, Sequence[tuple[bytes, int, int, int]]]], *, flags: int = 1 << 30, version: int = 2
) -> bytes:
    """Write a shard of files, each a sha256 and terms (xorb, length, first, end)."""
    body = struct.pack("<32sQQ", b"tag", version, 0)
    for sha256, terms in files:
        body += struct.pack("<32sIIQ", b"f" * 32, flags, len(terms), 0)
        for xorb, length, first, end in terms:
            body += struct.pack("<32sIIII", xorb, 0, length, first, end)
        if flags & 1 << 31:
            body += bytes(48) * len(terms)
        if flags & 1 << 30:
            words = struct.unpack(">4Q", sha256)
            body += struct.pack("<4Q", *words) + bytes(16)
    return body + b"\xff" * 32 + bytes(16)


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.sampled_from([0, 1, 2])), min_size=1, max_size=5),
    st.booleans(),
)
def test_chunks_come_back(chunks: list[tuple[bytes, int]], footer: bool) -> None:
    data = b"".join(pack_chunk(*chunk) for chunk in chunks) + (b"XETBLOB\0rest" if footer else b"")
    xorb = Xorb(data, parse_xorb(data))
    assert [unpack_chunk(xorb, number) for number in range(len(xorb.chunks))] == [data for data, _ in chunks]


@pytest.mark.parametrize("flags", [1 << 30, 1 << 30 | 1 << 31])
def test_shard_is_read(flags: int) -> None:
    data = pack_chunk(b"hello ", 0) + pack_chunk(b"world", 1)
    sha256 = hashlib.sha256(b"world" + b"hello world").digest()
    shard = make_shard([(sha256, [(XORB_HASH, 5, 1, 2), (XORB_HASH, 11, 0, 2)]), (bytes(32), [])], flags=flags)
    files = parse_shard(shard)
    assert [file.sha256 for file in files] == [sha256.hex(), "0" * 64]
    assert files[0].terms[0].xorb == to_hex(XORB_HASH)
    assert files[0].size == 16
    xorb = Xorb(data, parse_xorb(data))
    assert b"".join(rebuild_file(files[0], lambda _: xorb)) == b"worldhello world"


@given(st.binary(max_size=400))
def test_any_bytes_are_a_xorb_or_an_error(data: bytes) -> None:
    try:
        xorb = Xorb(data, parse_xorb(data))
        for number in range(len(xorb.chunks)):
            unpack_chunk(xorb, number)
    except XetError:
        pass


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_shard_or_an_error(data: bytes, with_header: bool) -> None:
    with contextlib.suppress(XetError):
        parse_shard(struct.pack("<32sQQ", b"tag", 2, 0) + data if with_header else data)


def test_a_bomb_is_not_unpacked() -> None:
    """A chunk that says 10 bytes and would unpack to gigabytes costs 11."""
    packed = lz4.frame.compress(bytes(50_000_000))
    data = bytes([0]) + len(packed).to_bytes(3, "little") + bytes([1]) + (10).to_bytes(3, "little") + packed
    with pytest.raises(XetError, match="length"):
        unpack_chunk(Xorb(data, parse_xorb(data)), 0)
    with pytest.raises(XetError, match="impossible length"):
        parse_xorb(bytes([0, 1, 0, 0, 1]) + (limits.CHUNK + 1).to_bytes(3, "little") + b"x")


def test_terms_must_fit() -> None:
    data = pack_chunk(b"hello", 0)
    xorb = Xorb(data, parse_xorb(data))
    for term in [(XORB_HASH, 5, 0, 2), (XORB_HASH, 4, 0, 1), (XORB_HASH, 2**31, 0, 1)]:
        (file,) = parse_shard(make_shard([(bytes(32), [term])]))
        with pytest.raises(XetError):
            list(rebuild_file(file, lambda _: xorb))
    for term in [(XORB_HASH, 5, 1, 1), (XORB_HASH, 0, 0, 1)]:
        with pytest.raises(XetError):
            parse_shard(make_shard([(bytes(32), [term])]))
    with pytest.raises(XetError, match="sha256"):
        parse_shard(make_shard([(bytes(32), [])], flags=0))
    with pytest.raises(XetError, match="version 3"):
        parse_shard(make_shard([], version=3))
    with pytest.raises(XetError, match="more than"):
        parse_shard(make_shard([(bytes(32), [(XORB_HASH, 2**32 - 1, 0, 1)] * 50)]))


class Sink:
    """The Xet routes of a repository, called by hand."""

    def __init__(self, registry: RegistryProcess, token: str, repository: str) -> None:
        bearer = {"Authorization": f"Bearer {token}"}
        answer = requests.get(f"{registry.endpoint}/api/models/{repository}/xet-write-token/main", headers=bearer)
        answer.raise_for_status()
        self.url = answer.json()["casUrl"]
        self.headers = {"Authorization": f"Bearer {answer.json()['accessToken']}"}
        assert answer.headers["X-Xet-Access-Token"] == answer.json()["accessToken"]

    def send_xorb(self, data: bytes, xorb_hash: str = to_hex(XORB_HASH)) -> requests.Response:
        return requests.post(f"{self.url}/v1/xorbs/default/{xorb_hash}", data=data, headers=self.headers)

    def send_shard(self, data: bytes) -> requests.Response:
        return requests.post(f"{self.url}/v1/shards", data=data, headers=self.headers)


@pytest.fixture(scope="module")
def sink(registry: RegistryProcess) -> Sink:
    repository = f"{registry.user}/xet-by-hand"
    HfApi(endpoint=registry.endpoint, token=registry.token).create_repo(repository)
    return Sink(registry, registry.token, repository)


def test_a_file_by_hand(sink: Sink) -> None:
    data = b"hello" * 100
    sha256 = hashlib.sha256(data).digest()
    assert sink.send_xorb(pack_chunk(data, 2)).json() == {"was_inserted": True}
    shard = make_shard([(sha256, [(XORB_HASH, 500, 0, 1)])])
    assert sink.send_shard(shard).json() == {"result": 1}
    wrong = sink.send_shard(make_shard([(bytes(32), [(XORB_HASH, 500, 0, 1)])]))
    assert wrong.status_code == 400
    assert "sha256" in wrong.json()["error"]
    unknown = sink.send_shard(make_shard([(sha256, [(b"?" * 32, 500, 0, 1)])]))
    assert unknown.status_code == 400
    assert unknown.headers["X-Error-Code"] == "InvalidXet"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_uploads_are_refused_politely(sink: Sink, data: st.DataObject) -> None:
    """Cut or changed anywhere, a shard or xorb gets an answer that is not the server's fault."""
    content = b"hello" * 20
    xorb = pack_chunk(content, data.draw(st.sampled_from([0, 1, 2])))
    shard = make_shard([(hashlib.sha256(content).digest(), [(XORB_HASH, 100, 0, 1)])], flags=1 << 30 | 1 << 31)
    body = bytearray(data.draw(st.sampled_from([xorb, shard])))
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(body[: data.draw(st.integers(0, len(body)))])
    assert sink.send_xorb(cut, to_hex(b"damaged!" * 4)).status_code in (200, 400)
    assert sink.send_shard(cut).status_code in (200, 400)


def test_grants_are_for_one_thing(registry: RegistryProcess, sink: Sink) -> None:
    url = f"{sink.url}/v1/xorbs/default/{to_hex(XORB_HASH)}"
    body, mac = sink.headers["Authorization"].removeprefix("Bearer ").split(".")
    for secret in [registry.token, f"{body}.{'A' * len(mac)}", body, f"{body[:-2]}.{mac}", "x.", "é"]:
        headers = {"Authorization": f"Bearer {secret}".encode()}
        assert requests.post(url, data=b"x", headers=headers).status_code == 403
        assert requests.put(f"{registry.endpoint}/lfs/object/{secret}", data=b"x").status_code == 403
    assert requests.put(f"{registry.endpoint}/lfs/object/{body}.{mac}", data=b"x").status_code == 403
    assert requests.post(url, data=b"x").status_code == 401


def test_nobody_replaces_anothers_xorb(registry: RegistryProcess, sink: Sink) -> None:
    """A xorb under a false hash spoils the uploads of nobody but its sender."""
    token = registry.add_user("spoiler")
    HfApi(endpoint=registry.endpoint, token=token).create_repo("spoiler/own")
    content, xorb_hash = b"the real content", b"contested-hash!!" * 2
    assert Sink(registry, token, "spoiler/own").send_xorb(pack_chunk(b"something false!", 0), to_hex(xorb_hash)).ok
    assert sink.send_xorb(pack_chunk(content, 0), to_hex(xorb_hash)).ok
    assert Sink(registry, token, "spoiler/own").send_xorb(pack_chunk(b"something false!", 0), to_hex(xorb_hash)).ok
    shard = make_shard([(hashlib.sha256(content).digest(), [(xorb_hash, len(content), 0, 1)])])
    assert sink.send_shard(shard).ok


def test_a_digest_gives_no_access(registry: RegistryProcess) -> None:
    """Knowing the sha256 of a private file is not enough to put it into a repository of one's own."""
    token = registry.add_user("curious")
    owner, curious = (HfApi(endpoint=registry.endpoint, token=token) for token in (registry.token, token))
    secret = b"the secret weights" * 50
    private = f"{registry.user}/hidden-weights"
    owner.create_repo(private, private=True)
    owner.upload_file(path_or_fileobj=secret, path_in_repo="w.safetensors", repo_id=private)
    sha256, size = hashlib.sha256(secret).hexdigest(), len(secret)
    curious.create_repo("curious/copy")

    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    with pytest.raises(BadRequestError, match="pointer"):
        curious.create_commit("curious/copy", [CommitOperationAdd("w.txt", pointer)], commit_message="guess")
    lines = b'{"key": "header", "value": {"summary": "guess"}}\n'
    lines += f'{{"key": "lfsFile", "value": {{"path": "w.safetensors", "oid": "{sha256}", "size": {size}}}}}\n'.encode()
    answer = requests.post(
        f"{registry.endpoint}/api/models/curious/copy/commit/main",
        data=lines,
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 400
    batch = requests.post(
        f"{registry.endpoint}/curious/copy.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": sha256, "size": size}]},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert "upload" in batch.json()["objects"][0]["actions"]
