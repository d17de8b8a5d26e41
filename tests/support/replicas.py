"""A registry as it grows: two replicas behind one address, on a real PostgreSQL server and a store that speaks S3's protocol."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.support.balancer import running_balancer
from tests.support.postgresql_server import PostgreSQLServer
from tests.support.registry_process import RegistryProcess, running_registry
from tests.support.s3_server import CREDENTIALS, make_client

REPLICAS = 2


@dataclass(frozen=True)
class ReplicatedRegistry(RegistryProcess):
    """Replicas behind one address; ``process`` is the first one's, ``members`` are all of them."""

    members: tuple[RegistryProcess, ...] = ()
    s3: Any = None
    bucket: str = ""

    def arriving(self) -> list[str]:
        """See :meth:`RegistryProcess.arriving`."""
        listed = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="in/it/parts/").get("Contents", ())
        return [name for member in self.members for name in member.arriving()] + [item["Key"] for item in listed]

    def read_blob(self, sha256: str) -> bytes | None:
        """See :meth:`RegistryProcess.read_blob`."""
        try:
            answer = self.s3.get_object(Bucket=self.bucket, Key=f"in/it/blobs/{sha256[:2]}/{sha256[2:]}")
        except ClientError:
            return None
        return bytes(answer["Body"].read())


@contextmanager
def running_replicas(
    folder: Path, server: PostgreSQLServer, store: str, name: str, options: Sequence[str] = ()
) -> Iterator[ReplicatedRegistry]:
    """Start replicas on an empty database and bucket of that name, yield them once they listen, and stop them at the end."""
    os.environ.update(CREDENTIALS)
    s3 = make_client(store)
    s3.create_bucket(Bucket=name)
    place = ("--database", server.create_database(name))
    options = [*options, "--storage", f"s3://{name}/in/it?endpoint={store}&region=us-east-1"]
    with ExitStack() as stack:
        members = [
            stack.enter_context(running_registry(folder / f"replica-{number}", options, place=place))
            for number in range(1, REPLICAS + 1)
        ]
        endpoint = stack.enter_context(running_balancer([member.endpoint for member in members]))
        first = {one.name: getattr(members[0], one.name) for one in fields(RegistryProcess)}
        yield ReplicatedRegistry(**{**first, "endpoint": endpoint}, members=tuple(members), s3=s3, bucket=name)
