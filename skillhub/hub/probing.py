"""Whether a registry answers, and what its clock says: for diagnosis only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from skillhub import settings
from skillhub.hub.failures import hub_failures, offline_error
from skillhub.hub.registries import Registry

_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Answer:
    """What a registry answered to one anonymous request.

    Attributes:
        status: of HTTP.
        looks_right: the body is a list, as a Hub answers; also when it answers nobody without a token.
        ahead_seconds: how far this machine's clock is ahead of the registry's; None where it does not tell the time.
    """

    status: int
    looks_right: bool
    ahead_seconds: float | None


def probe(registry: Registry) -> Answer:
    """Ask a registry for one model, without a token, once and not for long.

    Raises:
        OfflineError: the network may not be used.
        NetworkError: it does not answer.
    """
    if settings.offline():
        raise offline_error(registry.address)
    from huggingface_hub import get_session

    with hub_failures(registry):
        before = datetime.now(UTC)
        answer = get_session().get(f"{registry.endpoint}/api/models", params={"limit": 1}, timeout=_TIMEOUT_SECONDS)
        middle = before + (datetime.now(UTC) - before) / 2
    is_list = answer.status_code == 200 and answer.content.lstrip().startswith(b"[")
    return Answer(
        answer.status_code,
        is_list or answer.status_code in (401, 403),
        _ahead(middle, answer.headers.get("Date")),
    )


def _ahead(here: datetime, told: str | None) -> float | None:
    from email.utils import parsedate_to_datetime

    try:
        there = parsedate_to_datetime(told or "")
    except ValueError:
        return None
    return (here - there.replace(tzinfo=there.tzinfo or UTC)).total_seconds()
