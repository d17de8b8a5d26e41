"""A store that speaks S3's protocol, as a process: moto's server, which keeps everything in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.registry_process import ROOT

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def make_client(endpoint: str) -> Any:
    """Return a client of the store."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


@contextmanager
def running_s3() -> Iterator[str]:
    """Start a store on any free port, yield its address, and stop it at the end."""
    command = [sys.executable, "-m", "tests.support.s3_server"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        endpoint = process.stdout.readline().strip()  # comes when it listens
        assert endpoint, "the S3 server did not start"
        yield endpoint
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def main() -> None:
    """Serve until the process is ended."""
    from moto.server import ThreadedMotoServer

    os.environ.update(CREDENTIALS)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    server._thread.join()


if __name__ == "__main__":
    main()
