"""Pages for people: what they tell, that texts on them do no harm, and how they look in a browser."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from skillhub_registry.pages.markup import render_card, render_comment
from skillhub_registry.pages.moduleclasses import classify
from skillhub_registry.pages.rendering import PAGE_HEADERS
from skillhub_registry.sessions import COOKIE
from tests.registry.sites import HARM, Forms, Site, find_site
from tests.support.browser import Browser, running_browser
from tests.support.packs import BASE
from tests.support.registry_process import RegistryProcess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

PICTURES = os.environ.get("SKILLHUB_PICTURES")
"""A folder for pictures of all pages, to look at."""

PATHS = [
    "/",
    "/models",
    "/models?q=pages&tag=maths&base=acme/base-model&sort=downloads",
    "/models?q=%3Cscript%3Ealert(1)%3C/script%3E",
    f"/bases/{BASE}",
    "/login",
    "/pages",
    "/pages-owner",
    "/pages/math-pack",
    "/pages/gated-pack",
    "/pages/a-model",
    "/pages/math-pack/tree/main",
    "/pages/math-pack/tree/main/releases/1.1",
    "/pages/math-pack/blob/main/README.md",
    "/pages/math-pack/commits/main",
    "/pages/math-pack/commit/main",
    "/pages/a-model/commits/main",
    "/pages/a-model/discussions",
    "/pages/a-model/discussions/1",
]

SIGNED_IN_PATHS = [
    "/",
    "/settings/tokens",
    "/settings/password",
    "/settings/password?done=tokens",
    "/pages/secret-pack",
    "/pages/gated-pack/access-requests",
    "/pages/a-model/discussions",
    "/pages/a-model/discussions/1",
    "/pages/nothing-here",
    "/models?sort=odd",
]


@pytest.fixture(scope="module")
def site(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return find_site(registry, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        assert not os.environ.get("SKILLHUB_REQUIRE_CHROMIUM"), "there is no Chromium on this machine"
        pytest.skip("there is no Chromium on this machine")
    with running_browser(CHROMIUM, tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.mark.parametrize("path", PATHS)
def test_pages_are_whole_and_do_no_harm(site: Site, path: str) -> None:
    with site.open() as client:
        answer = client.get(path)
    assert answer.status_code == 200
    for name, value in PAGE_HEADERS.items():
        assert answer.headers[name] == value
    page = Forms(answer.text)
    assert "{{" not in answer.text.replace(str(escape(HARM)), "").replace("{{7*7}}", "")
    assert [tag for tag, _ in page.elements].count("h1") == 1
    for tag, values in page.elements:
        assert not [name for name in values if name.startswith("on") or name == "style"], values
        assert tag not in ("iframe", "object", "embed", "base", "style"), values
        assert tag != "script" or (values["src"] or "").startswith("/static/copy.js?")
        if tag == "img":
            assert "alt" in values or "/resolve/" in (values.get("src") or "")  # of a card's, its author decides
            assert (values.get("src") or "/").startswith("/")
        if "href" in values:
            assert re.match(r"[/#]|https?://|mailto:", values["href"] or ""), values
    labelled = {values.get("for") for tag, values in page.elements if tag == "label"}
    for tag, values in page.elements:
        if tag in ("input", "textarea", "select") and values.get("type") not in ("hidden", "radio"):
            assert values["id"] in labelled


def test_a_packs_page_tells_what_there_is_to_know(site: Site) -> None:
    with site.open() as client:
        text = client.get(f"/{site.pack}").text
        base = client.get(f"/bases/{BASE}").text
    assert f"skillhub install {site.pack}" in text
    assert text.count(str(escape(HARM))) >= 4  # summary, task, metric, and why 1.0 was withdrawn
    assert "pages/other-pack&gt;=1</code>" in text
    assert "not in this registry, or private" in text
    assert f'href="/{site.gated}"' in text
    assert site.private not in text
    assert [f"releases/1.{number}" in text for number in range(11)] == [True] * 11
    for kind in ("attention", "feed-forward", "embeddings", "other"):
        assert f'<th scope="row">{kind}</th>' in text
    assert f'href="/bases/{BASE}"' in text
    assert site.pack in base
    assert "acme/base-model" in base
    assert "<h2>Notes</h2>" in text
    assert "<td>1</td>" in text


def test_packs_are_found_by_name_skill_and_base(site: Site) -> None:
    with site.open() as client:

        def found(**query: str) -> bool:
            return f'href="/{site.pack}"' in client.get("/models", params=query).text

        assert found(q="pages/math")
        assert found(q="math-pack", tag="maths")
        assert not found(tag="math")
        assert found(q="pages math", base=BASE)
        assert found(q="pages math", base=BASE[:20])
        assert found(q="pages math", base="acme/base-model") == found(q="pages math", tag="base_model:acme/base-model")
        assert not found(base="skb1:" + "0" * 64)
        assert not found(q="no such thing")
        assert client.get("/models", params={"sort": "odd"}).status_code == 400
        assert client.get("/models", params={"cursor": "odd"}).status_code == 400


def test_gates_are_told_and_keep_files_from_pages(site: Site) -> None:
    with site.open() as client:
        page = client.get(f"/{site.gated}")
        assert "Access has to be asked for" in page.text
        assert "Size by kind of module" not in page.text
        refused = client.get(f"/{site.gated}/blob/main/releases.jsonl")
    assert refused.status_code == 401
    assert refused.headers["X-Error-Code"] == "GatedRepo"
    assert f'href="/{site.gated}"' in refused.text


def test_errors_are_pages_for_browsers_and_json_for_clients(site: Site) -> None:
    with site.open() as client:
        missing = client.get("/pages/nothing-here")
        private = client.get(f"/{site.private}")
        assert missing.status_code == private.status_code == 404
        same = missing.text.replace("nothing-here", "secret-pack")
        assert same == private.text
        own = ("date", "content-length", "x-request-id")
        told = [{name: one.headers[name] for name in one.headers if name not in own} for one in (missing, private)]
        assert told[0] == told[1]
        assert missing.headers["X-Error-Code"] == "RepoNotFound"
        for path, status in (
            ("/settings/tokens", 401),
            ("/nobody-at-all", 404),
            ("/api/odd", 404),
            ("/static/no", 404),
        ):
            answer = client.get(path)
            assert answer.status_code == status
            Forms(answer.text)
            plain = client.get(path, headers={"Accept": "*/*"})
            assert (plain.status_code, plain.headers["content-type"]) == (status, "application/json")


def test_error_pages_know_who_has_signed_in_and_tell_no_more_for_it(site: Site) -> None:
    with site.sign_in("pages-guest") as client:
        missing = client.get("/pages/nothing-here")
        private = client.get(f"/{site.private}")
        refused = client.get(f"/{site.gated}/access-requests")
        odd = client.get("/models?sort=odd")
    answers = (missing, private, refused, odd)
    assert [answer.status_code for answer in answers] == [404, 404, 403, 400]
    assert missing.text == private.text
    for answer in answers:
        assert ">pages-guest</a>" in answer.text
        assert "Sign in" not in answer.text
        assert 'action="/logout"' in answer.text
        Forms(answer.text)


def test_files_that_hold_programs_are_never_shown(site: Site, registry: RegistryProcess) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    expected = {
        "a.html": "attachment",
        "a.xhtml": "attachment",
        "a.svg": "attachment",
        "a.xml": "attachment",
        "a.js": "attachment",
        "a.pdf": "attachment",
        "a.png": "inline",
        "a.txt": "inline",
        "a.json": "inline",
    }
    for name, disposition in expected.items():
        api.upload_file(path_or_fileobj=HARM.encode(), path_in_repo=name, repo_id=site.model)
        with site.open() as client:
            answer = client.get(f"/{site.model}/resolve/main/{name}")
        assert answer.headers["Content-Disposition"].partition(";")[0] == disposition, name
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "html" not in answer.headers["Content-Type"]


def test_a_moved_repository_leads_on(site: Site, registry: RegistryProcess) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    api.create_repo("pages/before")
    api.move_repo("pages/before", "pages/after")
    with site.open() as client:
        answer = client.get("/pages/before")
    assert (answer.status_code, answer.headers["location"]) == (307, "/pages/after")


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# Title", "<h2>Title</h2>"),
        ("[a](docs/b.md)", '<a href="/o/n/blob/main/docs/b.md" rel="noopener noreferrer nofollow">a</a>'),
        ("[a](../../../settings/tokens)", '<a rel="noopener noreferrer nofollow">a</a>'),
        ("[a](javascript:alert(1))", "[a](javascript:alert(1))"),
        ("![p](p.png)", '<img src="/o/n/resolve/main/p.png" alt="p">'),
        ("![p](https://example.com/p.png)", '<a href="https://example.com/p.png"'),
        ("> [!NOTE]\n> Careful", "<strong>Note: </strong>"),
        ("<b onclick=x style='color:red' id=content>x</b>", "<b>x</b>"),
        ("a <!-- hidden --> b", "a  b"),
        ("<a href='//evil.example/x'>x</a>", '<a href="//evil.example/x"'),
        ("<a href='data:text/html,x'>x</a>", "<a rel="),
        ("<img src='//evil.example/x' alt=x>", '<img alt="x">'),
    ],
)
def test_cards_are_made_harmless(markdown: str, expected: str) -> None:
    assert expected in render_card(f"---\ntags: [x]\n---\n{markdown}", "o/n")


def test_comments_show_elements_as_they_were_typed() -> None:
    assert "&lt;b&gt;x&lt;/b&gt; <strong>y</strong>" in render_comment("<b>x</b> **y**", "o/n")


PIECES = st.sampled_from(
    [
        "<",
        ">",
        "script",
        "img",
        "svg",
        " src=",
        " onerror=",
        "javascript:",
        "'",
        '"',
        "&#",
        "x;",
        "`",
        "\n",
        "[",
        "](",
        ")",
    ]
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_no_text_becomes_a_program(text: str) -> None:
    for html in (render_card(text, "o/n"), render_comment(text, "o/n")):
        for tag, values in Forms(html.replace("<hr>", "")).elements:
            assert tag not in ("script", "svg")
            assert not [name for name in values if name.startswith("on")]
            for name in ("href", "src"):
                assert not (values.get(name) or "").lower().strip().startswith("javascript")


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("layers.3.self_attn.q_proj.weight", "attention"),
        ("layers.3.input_layernorm.weight", "norms"),
        ("h.0.ln_1.weight", "norms"),
        ("h.0.attn.c_attn.weight", "attention"),
        ("h.0.mlp.c_fc.weight", "feed-forward"),
        ("encoder.layer.0.attention.output.dense.weight", "attention"),
        ("encoder.layer.0.intermediate.dense.weight", "feed-forward"),
        ("embeddings.word_embeddings.weight", "embeddings"),
        ("layers.0.block_sparse_moe.experts.0.w1.weight", "experts"),
        ("lm_head.weight", "head"),
        ("wte.weight", "embeddings"),
        ("something", "other"),
    ],
)
def test_tensors_have_a_kind(tensor: str, expected: str) -> None:
    assert classify(tensor) == expected


CONTRASTS = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const read = text => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
                         return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
                          .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => { for (let e = element; e; e = e.parentElement) { const c = read(getComputedStyle(e).backgroundColor);
                              if (c[3] === 255) return c; } return read("Canvas"); };
  const bad = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!text || !element.checkVisibility() || element.closest("svg, option, .unseen")) continue;
    const one = light(read(getComputedStyle(element).color)), other = light(behind(element));
    const ratio = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
    if (ratio < 4.5) bad.push([element.outerHTML.slice(0, 80), ratio]);
  }
  return bad;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_look_well(site: Site, browser: Browser, width: int, dark: bool) -> None:
    for path in PATHS:
        look_at(site, browser, path, width, dark)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_of_somebody_who_has_signed_in_look_well(site: Site, browser: Browser, width: int, dark: bool) -> None:
    with site.sign_in("pages-owner") as client:
        browser.take_cookie(site.registry.endpoint, COOKIE, client.cookies[COOKIE])
    try:
        for path in SIGNED_IN_PATHS:
            look_at(site, browser, path, width, dark)
            assert browser.evaluate("document.querySelector('.account').textContent.includes('pages-owner')"), path
    finally:
        browser.take_cookie(site.registry.endpoint, COOKIE, None)


def look_at(site: Site, browser: Browser, path: str, width: int, dark: bool) -> None:
    """Check that a page fits its window, can be read, and loads nothing from elsewhere."""
    browser.show(site.registry.endpoint + path, width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, path
    assert browser.evaluate(CONTRASTS) == [], path
    assert browser.evaluate("document.styleSheets.length") == 1
    origins = browser.evaluate("performance.getEntriesByType('resource').map(e => new URL(e.name).origin)")
    assert set(origins) == {site.registry.endpoint}, path
    if PICTURES:
        name = re.sub(r"\W+", "-", path)[:60]
        browser.take_picture(Path(PICTURES) / f"{name}-{width}-{'dark' if dark else 'light'}.png")


def test_commands_get_a_button_that_copies_and_need_none(site: Site, browser: Browser) -> None:
    address = f"{site.registry.endpoint}/{site.pack}"
    browser.show(address, width=1280)
    assert browser.evaluate("document.querySelector('pre.command + button.copy').textContent") == "Copy"
    browser.show(address, width=1280, scripts=False)
    assert browser.evaluate("document.querySelector('.copy')") is None
    assert browser.evaluate("document.querySelector('pre.command').textContent") == f"skillhub install {site.pack}"
