"""The home page, and a sign of life."""

from __future__ import annotations

from html import escape

from starlette.responses import HTMLResponse, PlainTextResponse, Response

from skillhub_registry.calls import Call
from skillhub_registry.repositories import Search, search_repositories

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>skillhub registry</title>
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}</style>
<h1>skillhub registry</h1>
<p>{count}</p>
<p>It speaks the Hugging Face Hub's protocol. Point a client at it:</p>
<pre>export HF_ENDPOINT={endpoint}
export HF_TOKEN=hf_…   # from `skillhub-registry token create USER`</pre>
</html>
"""


def home(call: Call) -> Response:
    """Answer ``GET /``."""
    with call.registry.database.read() as connection:
        found, _ = search_repositories(connection, Search(limit=1000))
    count = f"{len(found)} public repositor{'y' if len(found) == 1 else 'ies'}"
    page = _PAGE.format(count=count, endpoint=escape(call.endpoint))
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


def healthy(call: Call) -> Response:
    """Answer ``GET /healthz``: the process runs and its database answers."""
    with call.registry.database.read() as connection:
        connection.execute("SELECT 1 FROM accounts LIMIT 1").fetchone()
    return PlainTextResponse("ok")
