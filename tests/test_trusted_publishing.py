"""Publishing from a CI job that has no secret: the job's identity is exchanged for a token."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skillhub import hub
from tests.support.commands import Shell
from tests.support.packs import make_pack
from tests.support.registry_process import RegistryProcess
from tests.support.trusted import REQUEST_TOKEN, TrustedHub, trusted_hub


@pytest.fixture
def service(registry: RegistryProcess) -> Iterator[TrustedHub]:
    with trusted_hub(registry.endpoint, registry.token, f"{registry.user}/ci-pack") as running:
        yield running


def publish(
    service: TrustedHub, folder: Path, name: str, variables: dict[str, str], *more: str
) -> subprocess.CompletedProcess[str]:
    """Publish in a job that has these variables and no token."""
    shell = Shell(folder, service.endpoint)
    command = [sys.executable, "-m", "skillhub", "publish", str(folder / "pack"), name, *more]
    return subprocess.run(
        command, env=shell.variables | variables, cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_github_job_publishes_without_a_secret(
    service: TrustedHub, registry: RegistryProcess, tmp_path: Path
) -> None:
    name = service.resource
    make_pack(tmp_path / "pack", "ci-pack", "1.0")
    done = publish(service, tmp_path, name, {**service.github, "HF_OIDC_RESOURCE": name})
    assert done.returncode == 0, done.stderr
    assert hub.read_releases(hub.Registry("hub", registry.endpoint), name) is not None
    assert service.audiences == [service.endpoint]
    assert [(one["resource"], one["subject_token"]) for one in service.exchanges] == [(name, service.id_token)]
    for secret in (REQUEST_TOKEN, service.id_token, registry.token):
        assert secret not in done.stdout + done.stderr


def test_another_service_hands_its_id_token_over(
    service: TrustedHub, registry: RegistryProcess, tmp_path: Path
) -> None:
    name = service.resource
    make_pack(tmp_path / "pack", "ci-pack", "1.1")
    variables = {"HF_OIDC_RESOURCE": name, "HF_OIDC_ID_TOKEN": service.id_token}
    done = publish(service, tmp_path, name, variables)
    assert done.returncode == 0, done.stderr
    assert service.audiences == [] and len(service.exchanges) == 1


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "id-token: write"),
        ({"GITHUB_ACTIONS": "true"}, "id-token: write"),
        ({"HF_OIDC_ID_TOKEN": "header.stranger.signature"}, "trusted publisher in the settings of"),
        ({"HF_OIDC_ID_TOKEN": "header.job.signature", "HF_OIDC_RESOURCE": "acme/other"}, "check HF_OIDC_RESOURCE"),
    ],
)
def test_a_job_that_is_not_trusted_is_told_what_to_do_and_gets_no_other_token(
    service: TrustedHub, registry: RegistryProcess, tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    make_pack(tmp_path / "pack", "ci-pack", "1.2")
    ambient = {"HF_OIDC_RESOURCE": service.resource, "HF_TOKEN": registry.token}
    done = publish(service, tmp_path, service.resource, ambient | variables, "--verbose")
    assert done.returncode == 9 and words in done.stderr and "Traceback" not in done.stderr
    assert "stranger" not in done.stderr and registry.token not in done.stderr


def test_the_token_of_a_job_reaches_no_other_registry(
    service: TrustedHub, registry: RegistryProcess, tmp_path: Path
) -> None:
    make_pack(tmp_path / "pack", "ci-pack", "1.3")
    variables = {"HF_OIDC_RESOURCE": service.resource, "HF_OIDC_ID_TOKEN": service.id_token}
    done = publish(service, tmp_path, service.resource, variables, "--registry", registry.endpoint)
    assert done.returncode == 9 and "no token" in done.stderr
    assert service.exchanges == []
