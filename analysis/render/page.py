"""One self-contained HTML page of sections: it asks the network for nothing.

Styles, script and pictures stand in it, and its Content-Security-Policy forbids the rest. Texts of corpora are
untrusted: the template escapes all of them, and the policy lets no script run but the page's own, known by its hash.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from markupsafe import Markup

from neurotally.analysis.render.html import Section, environment


def page(title: str, tiles: Sequence[tuple[str, str]], summary: str, sections: Sequence[Section]) -> str:
    """The page; `tiles`: the names and numbers that it begins with, `summary`: a paragraph below them."""
    templates = environment()
    assert templates.loader is not None
    style, script = (templates.loader.get_source(templates, name)[0] for name in ("page.css", "page.js"))
    return templates.get_template("page.html").render(
        title=title,
        tiles=tiles,
        summary=summary,
        sections=sections,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        made_by=f"neurotally {_version()}",
    )


def _version() -> str:
    try:
        return version("neurotally")
    except PackageNotFoundError:
        return ""
