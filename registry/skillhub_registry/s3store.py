"""Blobs in a bucket of S3 or a store that speaks its protocol: ``prefix/blobs/ab/cdef…``, parts of uploads in ``prefix/parts/``.

What arrives is received into local scratch space and verified before it is sent on, so nothing unverified is ever under
a digest's name; S3 shows an object whole or not at all. Credentials come from where the AWS tools find theirs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from skillhub import redaction
from skillhub.errors import AuthError, NetworkError, NotFoundError, SkillhubError, UsageError
from skillhub_registry.blobs import PIECE, BlobStore, BlobWriter, write_blob
from skillhub_registry.errors import busy, missing_parts

logger = logging.getLogger("skillhub_registry")

_LINK_SECONDS: Final = 300
"""How long a link to an object is good for; a download that has begun goes on."""

_CONNECTIONS: Final = 50


@dataclass(frozen=True)
class Bucket:
    """What ``s3://bucket/prefix?endpoint=…&region=…`` names; ``prefix`` is empty or ends in ``/``."""

    name: str
    prefix: str
    endpoint: str | None
    region: str | None


def parse_bucket(url: str) -> Bucket:
    """Return what an address names.

    Raises:
        UsageError: it is malformed, or has credentials in it.
    """
    hint = "Write s3://bucket/prefix, with ?endpoint=https://… for a store that is not AWS."
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
    except ValueError:
        raise UsageError("The storage's address is malformed.", hint=hint) from None
    if "@" in parts.netloc:
        raise UsageError(
            "The storage's address has credentials in it.",
            hint="Leave them out; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use what AWS tools use.",
        )
    if parts.scheme != "s3" or not parts.netloc or parts.fragment or query.keys() - {"endpoint", "region"}:
        raise UsageError("The storage's address is malformed.", hint=hint)
    prefix = parts.path.strip("/")
    endpoint, region = (query.get(name, [None])[-1] for name in ("endpoint", "region"))
    return Bucket(parts.netloc, f"{prefix}/" if prefix else "", endpoint, region)


class S3Store(BlobStore):
    """The blobs of a bucket.

    Args:
        bucket: where they are.
        scratch: on this machine, with room for the largest file.
        links: whether clients fetch large files from the bucket; otherwise all goes through here.
    """

    def __init__(self, bucket: Bucket, scratch: Path, *, links: bool) -> None:
        super().__init__(scratch)
        self._bucket = bucket
        self._links = links
        self._client: Any = _make_client(bucket)

    def has(self, sha256: str) -> bool:
        """See :meth:`BlobStore.has`."""
        with _answering_errors():
            try:
                self._client.head_object(Bucket=self._bucket.name, Key=self._key(sha256))
            except ClientError as error:
                if _is_missing(error):
                    return False
                raise
        return True

    def read_pieces(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See :meth:`BlobStore.read_pieces`."""
        if length != 0:  # there is no range for nothing
            yield from self._read_object(self._key(sha256), start, length)

    @contextmanager
    def open_file(self, sha256: str) -> Iterator[Path]:
        """See :meth:`BlobStore.open_file`: a copy in the scratch folder."""
        with write_blob(self, limit=2**63) as writer:
            for piece in self.read_pieces(sha256):
                writer.write(piece)
            writer.flush()
            yield writer.path

    def take(self, writer: BlobWriter) -> None:
        """See :meth:`BlobStore.take`."""
        self._send(writer, self._key(writer.sha256))

    def make_link(self, sha256: str, headers: Mapping[str, str]) -> str | None:
        """See :meth:`BlobStore.make_link`."""
        if not self._links:
            return None
        wanted = {
            "Bucket": self._bucket.name,
            "Key": self._key(sha256),
            "ResponseContentType": headers["Content-Type"],
            "ResponseContentDisposition": headers["Content-Disposition"],
        }
        with _answering_errors():
            link: str = self._client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=_LINK_SECONDS)
        return link

    def list_blobs(self) -> Iterator[tuple[str, int]]:
        """See :meth:`BlobStore.list_blobs`."""
        prefix = f"{self._bucket.prefix}blobs/"
        with _answering_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket.name, Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    yield item["Key"].removeprefix(prefix).replace("/", ""), item["Size"]

    def remove(self, sha256: str) -> None:
        """See :meth:`BlobStore.remove`."""
        with _answering_errors():
            self._client.delete_object(Bucket=self._bucket.name, Key=self._key(sha256))

    def keep_part(self, upload: str, number: int, writer: BlobWriter) -> None:
        """See :meth:`BlobStore.keep_part`."""
        self._send(writer, f"{self._parts(upload)}{number}")

    def read_parts(self, upload: str, count: int) -> Iterator[bytes]:
        """See :meth:`BlobStore.read_parts`."""
        for number in range(1, count + 1):
            try:
                yield from self._read_object(f"{self._parts(upload)}{number}", 0, None)
            except FileNotFoundError as error:
                raise missing_parts() from error

    def drop_parts(self, upload: str) -> None:
        """See :meth:`BlobStore.drop_parts`."""
        self._delete(self._parts(upload), before=None)

    def sweep_parts(self, age: float) -> None:
        """See :meth:`BlobStore.sweep_parts`."""
        self._delete(self._parts(), before=time.time() - age)

    def _key(self, sha256: str) -> str:
        return f"{self._bucket.prefix}blobs/{sha256[:2]}/{sha256[2:]}"

    def _parts(self, upload: str = "") -> str:
        return f"{self._bucket.prefix}parts/{upload}/" if upload else f"{self._bucket.prefix}parts/"

    def _send(self, writer: BlobWriter, key: str) -> None:
        writer.finish(durable=False)
        with _answering_errors():
            self._client.upload_file(str(writer.path), self._bucket.name, key)

    def _read_object(self, key: str, start: int, length: int | None) -> Iterator[bytes]:
        wanted = {"Bucket": self._bucket.name, "Key": key}
        if start or length is not None:
            wanted["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        with _answering_errors():
            try:
                body = self._client.get_object(**wanted)["Body"]
            except ClientError as error:
                if _is_missing(error):
                    raise FileNotFoundError(f"{key} is not in the bucket") from error
                raise
            try:
                yield from body.iter_chunks(PIECE)  # raises where the connection ends early
            finally:
                body.close()

    def _delete(self, prefix: str, before: float | None) -> None:
        """Remove the objects whose keys begin so, or those of them that are older than a time."""
        with _answering_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket.name, Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    if before is None or item["LastModified"].timestamp() < before:
                        self._client.delete_object(Bucket=self._bucket.name, Key=item["Key"])


def open_s3(url: str, scratch: Path, *, links: bool) -> S3Store:
    """Open a bucket given as ``s3://bucket/prefix``.

    Raises:
        UsageError: the address is malformed.
        NotFoundError: there is no such bucket.
        AuthError: without credentials, or with ones that are not allowed in.
        NetworkError: no store answers.
    """
    bucket = parse_bucket(url)
    try:
        store = S3Store(bucket, scratch, links=links)
        store._client.head_bucket(Bucket=bucket.name)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise _explain(error, bucket) from error
    return store


def _make_client(bucket: Bucket) -> Any:
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": 4},
        max_pool_connections=_CONNECTIONS,
        signature_version="s3v4",
        # Stores other than AWS have no names for each bucket, and not all know the newer checksums.
        s3={"addressing_style": "path" if bucket.endpoint else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    region = bucket.region or session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=bucket.endpoint, region_name=region, config=config)


def _is_missing(error: ClientError) -> bool:
    return bool(error.response["ResponseMetadata"]["HTTPStatusCode"] == 404)


def _explain(error: Exception, bucket: Bucket) -> SkillhubError:
    where = f"the bucket {bucket.name}" + (f" at {bucket.endpoint}" if bucket.endpoint else "")
    message = f"Cannot use {where}: {redaction.presentable(str(error)).rstrip('.')}."
    if isinstance(error, ClientError) and _is_missing(error):
        return NotFoundError(f"There is no bucket {bucket.name}.", hint="Make it, or check ?endpoint= and ?region=.")
    if isinstance(error, ClientError | NoCredentialsError):
        hint = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; they must allow to list, get, put and delete."
        return AuthError(message, hint=hint)
    return NetworkError(message, hint="Check the address, and that the store runs and can be reached from here.")


@contextmanager
def _answering_errors() -> Iterator[None]:
    """Turn what is not the program's fault into answers."""
    try:
        yield
    except (BotoCoreError, ClientError, S3UploadFailedError) as error:
        logger.error("the storage: %s", redaction.presentable(str(error)))
        raise busy() from error
