"""Markdown of cards and comments, made into HTML that can do no harm.

What the renderer makes passes a sanitiser that knows a short list of elements and attributes and drops everything else:
no scripts, no styles, no forms, no ids that the page's own could be mistaken for. Pictures come from the repository
only, so that looking at a card tells nobody else who looks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

from skillhub.frontmatter import split_readme

_ELEMENTS: Final = frozenset(
    [
        *("a", "abbr", "b", "blockquote", "br", "caption", "code", "dd", "del", "details", "div", "dl", "dt", "em"),
        *("h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s"),
        *("samp", "small", "span", "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead"),
        *("tr", "u", "ul", "var"),
    ]
)
_ATTRIBUTES: Final = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title", "width", "height"},
    "ol": {"start"},
    "td": {"colspan", "rowspan", "align"},
    "th": {"colspan", "rowspan", "align", "scope"},
    "details": {"open"},
    "abbr": {"title"},
}
_WITH_CONTENT: Final = frozenset(
    [
        *("script", "style", "iframe", "object", "embed", "template", "noscript", "svg", "math", "form", "textarea"),
        "title",
    ]
)
_REMEMBERED: Final = 32 * 1024
"""Characters of a text whose HTML is kept in memory."""

_ALERT: Final = re.compile(r"\[!(NOTE|TIP|IMPORTANT|WARNING|CAUTION)\]\s*")
_GENERATED: Final = re.compile(r"^<!-- skillhub:begin\b.*?^<!-- skillhub:end -->$", re.MULTILINE | re.DOTALL)


def render_card(readme: str, full_name: str, *, without_generated: bool = False) -> Markup:
    """Return a README.md as HTML.

    Args:
        readme: the file's text; its metadata is left out.
        full_name: of the repository, where its relative links and pictures lead to.
        without_generated: leave out what publishing writes between its two marks, as a pack's page tells all of that.
    """
    body = split_readme(readme)[1]
    return _render(_GENERATED.sub("", body) if without_generated else body, full_name, with_html=True)


def render_comment(text: str, full_name: str) -> Markup:
    """Return a comment as HTML; elements in it are shown as they were typed."""
    return _render(text, full_name, with_html=False)


def _render(text: str, full_name: str, *, with_html: bool) -> Markup:
    if len(text) > _REMEMBERED:
        return _make_html(text, full_name, with_html)
    return _remembered_html(text, full_name, with_html)


def _make_html(text: str, full_name: str, with_html: bool) -> Markup:
    html = (_CARDS if with_html else _COMMENTS).render(text)
    safe = nh3.clean(
        html,
        tags=set(_ELEMENTS),
        clean_content_tags=set(_WITH_CONTENT),
        attributes={name: set(values) for name, values in _ATTRIBUTES.items()},
        attribute_filter=_make_filter(full_name),
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return Markup(safe)


_remembered_html = lru_cache(maxsize=256)(_make_html)


def _make_filter(full_name: str) -> Callable[[str, str, str], str | None]:
    """Return what decides on each attribute: relative addresses lead into the repository."""

    def decide(element: str, attribute: str, value: str) -> str | None:
        if (element, attribute) == ("a", "href"):
            return value if _is_absolute(value) or value.startswith(("#", "/")) else _resolve(full_name, "blob", value)
        if (element, attribute) == ("img", "src"):
            return None if _is_absolute(value) else _resolve(full_name, "resolve", value)
        if attribute in ("width", "height", "colspan", "rowspan", "start"):
            return value if value.isascii() and value.isdigit() and len(value) <= 4 else None
        return value

    return decide


def _is_absolute(address: str) -> bool:
    try:
        parts = urlsplit(address.strip())
    except ValueError:
        return True  # a browser may make something of it, so it is nothing of ours
    return bool(parts.scheme or parts.netloc) or address.strip().startswith(("//", "\\", "/\\"))


def _resolve(full_name: str, kind: str, address: str) -> str | None:
    """Return the address of a file on main; None for one that leaves the repository."""
    folder = f"/{quote(full_name)}/{kind}/main/"
    resolved = urljoin(folder, address.strip())
    return resolved if resolved.startswith(folder) else None


def _make_renderer(*, with_html: bool) -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": with_html, "maxNesting": 20}).enable(["table", "strikethrough"])
    markdown.core.ruler.push("lower_headings", lambda state: _lower_headings(state.tokens))
    markdown.core.ruler.push("name_alerts", lambda state: _name_alerts(state.tokens))
    markdown.add_render_rule("image", _render_image)
    return markdown


def _lower_headings(tokens: Sequence[Token]) -> None:
    """A page has one heading of the first level, and that is not the card's."""
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"


def _name_alerts(tokens: Sequence[Token]) -> None:
    """Let a quotation that begins with ``[!WARNING]`` begin with that word instead."""
    for quotation, paragraph, inline in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if (quotation.type, paragraph.type, inline.type) != ("blockquote_open", "paragraph_open", "inline"):
            continue
        first = next(iter(inline.children or ()), None)
        match = _ALERT.fullmatch(first.content) if first is not None and first.type == "text" else None
        if match is not None and inline.children is not None:
            word = Token("text", "", 0, content=f"{match[1].capitalize()}: ")
            inline.children[:1] = [Token("strong_open", "strong", 1), word, Token("strong_close", "strong", -1)]


def _render_image(
    renderer: Any, tokens: Sequence[Token], position: int, options: OptionsDict, environment: EnvType
) -> str:
    """Show a picture of the repository; lead to one of elsewhere."""
    token = tokens[position]
    source = str(token.attrs.get("src", ""))
    if not _is_absolute(source):
        return str(renderer.image(tokens, position, options, environment))
    text = renderer.renderInlineAsText(token.children, options, environment) or source
    return f'<a href="{_escape(source)}">{_escape(text)}</a>'


def _escape(text: str) -> str:
    return str(Markup.escape(text))


_CARDS: Final = _make_renderer(with_html=True)
_COMMENTS: Final = _make_renderer(with_html=False)
