"""The playground: what it carries along is what the theory says, and nothing of it comes from a network."""

import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from blslib.lab import controls, site
from blslib.theory.delays import delays
from blslib.theory.maxplus import makespan, times
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of notebooks that nobody has run, but for a picture as ``figures.show`` puts it there."""
    out = tmp_path_factory.mktemp("site")
    (out / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4)
        code = next(cell for cell in cells.cells if cell.cell_type == "code")
        metadata = {"image/png": {"alt": "What is to be seen", "width": 1}}
        code.outputs = [nbformat.v4.new_output("display_data", {"image/png": "iVBORw0K"}, metadata=metadata)]
        nbformat.write(cells, out / "notebooks" / path.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLS_OUT", str(out))
        site.build(out / "site")
    return out / "site"


@pytest.fixture(scope="module")
def page(built: Path) -> str:
    return (built / "playground.html").read_text()


class Reader(HTMLParser):
    """What a page links to, its places, and its pictures with their words."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.pictures: list[tuple[str, str]] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.places.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img":
            self.pictures.append((found.get("src", ""), found.get("alt", "")))


def missing(folder: Path) -> list[str]:
    """Links, places in pages, pictures and words that a reader of the site would miss, page by page."""
    pages = {page: Reader(page) for page in folder.rglob("*.html")}
    found = []
    for page, read in pages.items():
        for link in [link for link in read.links if not re.match("[a-z]+:", link)]:
            name, _, place = link.partition("#")
            target = Path(os.path.normpath(page.parent / name)) if name else page
            if not target.exists() or (place and (target not in pages or place not in pages[target].places)):
                found.append(f"{page.relative_to(folder)} links to {link}")
        for source, words in read.pictures:
            if not source.startswith("data:") and not (page.parent / source).is_file():
                found.append(f"{page.relative_to(folder)} shows {source}")
            if len(words) < 10 or words.startswith("No description"):
                found.append(f"{page.relative_to(folder)} has no words for {source[:60]}")
    return found


def test_nothing_is_missing_on_any_page(built: Path) -> None:
    assert len(list(built.rglob("*.html"))) > 20
    assert missing(built) == []
    assert 'alt="What is to be seen"' in (built / "notebooks" / "06-limits.html").read_text()


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="here">x</h1><a href="#here">1</a><a href="#there">2</a><a href="b.html#x">3</a><a href="c.html">4</a>'
        '<a href="https://x.y/z">5</a><img src="p.png" alt="A picture of it"><img src="data:x" alt="">'
    )
    (tmp_path / "b.html").write_text('<h2 id="y">y</h2><a href="a.html#here">a</a>')
    assert missing(tmp_path) == [
        "a.html links to #there",
        "a.html links to b.html#x",
        "a.html links to c.html",
        "a.html shows p.png",
        "a.html has no words for data:x",
    ]


def test_it_opens_from_a_stick(page: str) -> None:
    """Without a network, and small."""
    assert len(page.encode()) < 3e6
    plain = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in plain and not re.findall(r"<script[^>]*src", page)
    for name in ("left law", "right law", "one delay (ms)", "bound", "ranks"):
        assert f'"name": "{name} "' in page or f'"name":"{name} "' in page


def test_its_numbers_are_those_of_the_theory(page: str) -> None:
    """At 100 settings that are drawn, to a nanosecond: each call of each rank, its lag, and the end of the run."""
    carried = re.search(r'"law,delay,[^"]*"', page)
    assert carried
    table = pd.read_csv(io.StringIO(json.loads(carried[0])))
    assert len(table) == len(site.LAWS) * len(site.DELAYS_MS) * len(site.BOUNDS) * sum(site.RANKS) * site.ITERATIONS
    groups = dict(iter(table.groupby(["law", "delay", "ranks", "bound"])))
    rng = np.random.default_rng(1)
    for nth in rng.choice(len(groups), 100, replace=False):
        (law, delay_ms, ranks, bound), here = list(groups.items())[nth]
        late_s = delays(law, ranks, site.ITERATIONS, controls.mean_s(law, delay_ms / 1000, ranks), seed=1)
        run = times(site.WORK_S + late_s, bound)
        for name, seconds in (("entered", run.entered_s), ("returned", run.returned_s)):
            assert np.abs(here[name].to_numpy() / 1000 - seconds.ravel()).max() < 1e-9
        assert here["worked"].to_numpy() - here["began"].to_numpy() == pytest.approx(1000 * site.WORK_S)
        assert here["ahead"].min() >= 0 and here["ahead"].max() <= bound
        assert here["returned"].max() / 1000 == pytest.approx(makespan(site.WORK_S + late_s, bound), abs=1e-9)


def test_what_the_playground_is_to_show() -> None:
    """A permanent straggler: the others' lag climbs to the bound and stays there; one that moves: it comes back."""
    table = site.settings().query("delay == 80 and ranks == 4 and bound == 4")
    for law, stays in (("permanent", True), ("rotating", False)):
        lag = table[(table["law"] == law) & (table["rank"] == 0)]["ahead"].tolist()
        assert (lag[4:] == [4] * 8) == stays
        assert (max(lag) == 4) or not stays
