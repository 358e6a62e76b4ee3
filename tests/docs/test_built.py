"""The built pages: every local link leads somewhere, and everything is there without JavaScript and without a network.

``tox run -e docs`` builds them first and says where; without that they are built here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
# What the theme makes by itself. The search is the one page that needs JavaScript.
GENERATED = {"genindex.html", "py-modindex.html", "search.html"}
# Links to pages of other projects; only a reader's browser follows them.
LINK_SCHEMES = {"http", "https", "mailto"}


class Page(HTMLParser):
    """What a page links to, what in it can be linked to, what it loads, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self._silent = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = dict(attributes)
        self.anchors |= {value for key in ("id", "name") if (value := names.get(key))}
        self._silent += tag in {"script", "style"}
        if tag == "a" and (target := names.get("href")):
            self.links.append(target)
        elif tag in {"img", "script", "link", "source"} and (target := names.get("src") or names.get("href")):
            self.loaded.append(target)
        if tag == "img":
            self.images.append(names)

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in {"script", "style"}

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages by their paths."""
    built = os.environ.get("ATOMICIO_DOCS_HTML")
    if built is None:
        built = str(tmp_path_factory.mktemp("html"))
        subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", ROOT / "docs", built], check=True)
    return {path: Page(path) for path in sorted(Path(built).resolve().rglob("*.html"))}


def written(pages: dict[Path, Page]) -> dict[Path, Page]:
    return {path: page for path, page in pages.items() if path.name not in GENERATED}


def dangling(page: Page, target: str, pages: dict[Path, Page]) -> bool:
    """Whether *target* in *page* is a local link that leads nowhere."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return parts.scheme not in LINK_SCHEMES
    path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
    if not path.is_file():
        return True
    fragment = unquote(parts.fragment)
    return bool(fragment) and path in pages and fragment not in pages[path].anchors


def test_every_source_page_is_built(pages: dict[Path, Page]) -> None:
    sources = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.rst")}
    sources = {name for name in sources if not name.startswith("changelog/")}
    top = next(path.parent for path in pages if path.name == "genindex.html")
    assert {path.relative_to(top).with_suffix("").as_posix() for path in written(pages)} == sources


def test_local_links_lead_somewhere(pages: dict[Path, Page]) -> None:
    broken = [
        (page.path.name, target) for page in pages.values() for target in page.links if dangling(page, target, pages)
    ]
    assert broken == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_a_link_to_nowhere_would_be_found(pages: dict[Path, Page]) -> None:
    page = next(page for path, page in pages.items() if path.name == "tutorial.html")
    assert not dangling(page, "reference/api.html#atomicio.atomic_write", pages)
    assert dangling(page, "reference/api.html#atomicio.atomic_wrote", pages)
    assert dangling(page, "reference/apis.html", pages)
    assert dangling(page, "#nowhere", pages)


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    missing = [
        (page.path.name, target)
        for page in pages.values()
        for target in page.loaded
        if urlsplit(target).netloc or not (page.path.parent / unquote(urlsplit(target).path)).exists()
    ]
    assert missing == []


def test_pictures_say_what_they_show(pages: dict[Path, Page]) -> None:
    assert [
        (page.path.name, image["src"]) for page in pages.values() for image in page.images if not image.get("alt")
    ] == []


def test_pages_can_be_read_without_javascript(pages: dict[Path, Page]) -> None:
    """All text of the sources is in the HTML, and each page can be reached by links from the first."""
    for page in written(pages).values():
        assert len(page.text.split()) > 60, page.path
    first = next(
        path for path in pages if path.name == "index.html" and not (path.parent.parent / "genindex.html").exists()
    )
    reached, todo = set(), [first]
    while todo:
        path = todo.pop()
        if path in reached or path not in pages:
            continue
        reached.add(path)
        todo += [
            (path.parent / unquote(urlsplit(link).path)).resolve()
            for link in pages[path].links
            if not urlsplit(link).netloc
        ]
    assert set(written(pages)) <= reached


def test_no_page_names_a_machine(pages: dict[Path, Page]) -> None:
    """Paths of the machine that built them would show in tracebacks and generated tables."""
    assert [page.path.name for page in pages.values() if str(ROOT) in page.text] == []
