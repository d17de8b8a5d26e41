"""Pages of lists, each with a link to the next one. Where nothing better is there, the cursor is how many came before."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from skillhub_registry.calls import Call
from skillhub_registry.errors import bad_request


def read_start(call: Call) -> int:
    """Return how many entries the pages before this one had.

    Raises:
        HubError: 400.
    """
    cursor = call.request.query_params.get("cursor", "0")
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 9:
        raise bad_request("The cursor is malformed")
    return int(cursor)


def next_link(call: Call, cursor: int | str) -> dict[str, str]:
    """Return the header that leads to the page with a cursor."""
    kept = [(name, value) for name, value in call.request.query_params.multi_items() if name != "cursor"]
    path = quote(call.request.url.path, safe="/%")
    return {"Link": f'<{call.endpoint}{path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'}
