"""Does every program on the site run as it stands there, and does every link have a target?"""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
RUN = [page for page in PAGES if BLOCK.search(page.read_text())]


def name(page):
    return page.name


def test_there_are_pages_with_programs():
    assert len(RUN) >= 10


@pytest.mark.scripts
@pytest.mark.parametrize("page", RUN, ids=name)
def test_the_programs_of_a_page_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, namespace = page.read_text(), {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        # On its own lines of the file, so that a traceback names the page's line.
        lines = "\n" * text[: block.start(1)].count("\n")
        exec(compile(lines + block[1], str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [*PAGES, *DOCS.glob("api/*.md")], ids=name)
def test_what_a_page_links_to_and_shows_exists(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [t for t in targets if not t.startswith(("http://", "https://"))]
    missing = [t for t in local if not (page.parent / t).exists()]
    assert not missing, f"{page.name} points to what is not there: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_files_that_a_page_names_exist(page):
    named = re.findall(r"(?:examples|docs|tests)/[\w./]+\.(?:py|md|png|json)", page.read_text())
    missing = [name for name in named if not (DOCS.parent / name).exists()]
    assert not missing, f"{page.name} names what is not there: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_page_is_in_the_table_of_contents(page):
    if page.name != "index.md":
        assert re.search(rf"^{page.stem}$", (DOCS / "index.md").read_text(), re.MULTILINE)
