"""What the README shows is what a reader gets."""

import re
from pathlib import Path

import pytest

from blslib.lab import driver
from blslib.lab.claims import headlines, markdown
from blslib.lab.ranks.launch import run_ranks
from tests.conftest import LONG_S

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REPRODUCING = (ROOT / "REPRODUCING.md").read_text()


def block(marker: str, language: str) -> str:
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no {language} block after <!-- {marker} -->"
    return found[1]


def test_example_prints_what_the_readme_shows(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(block("example: example.py", "python"))
    done = run_ranks(3, [str(script)], timeout_s=LONG_S)
    assert done.returncode == 0, done.stdout
    assert done.stdout == block("output: example.py", "text")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists(), f"README links {link}, which is not there"


def between(page: str, mark: str) -> str:
    """What the driver has put between its marks."""
    (found,) = re.findall(rf"<!-- {mark} -->(.*?)<!-- /{mark} -->", page, re.DOTALL)
    return str(found).strip()


def test_claims_and_rates_are_those_of_the_reference_run() -> None:
    found = driver.claims(ROOT, driver.choose(ROOT / "notebooks", []))
    assert between(README, "claims") == markdown(headlines(found), reasons=False)
    assert len(headlines(found)) <= 8
    assert between(REPRODUCING, "claims") == markdown(found)
    assert between(README, "rates") == driver.highest_rates(ROOT / "data" / "05-serving" / "highest-rates.csv")


@pytest.mark.parametrize("path", driver.choose(ROOT / "notebooks", []), ids=lambda path: path.stem)
def test_each_notebook_has_a_place_for_its_minutes(path: Path) -> None:
    assert float(between(REPRODUCING, f"minutes {path.stem}")) > 0


def test_rates_are_shown_for_each_contender_and_bound(tmp_path: Path) -> None:
    path = tmp_path / "highest-rates.csv"
    head = "contender,bound,idle,ranks,limit_s,rate_per_s,rate_per_s_low,rate_per_s_high,predicted_per_s\n"
    path.write_text(head + "mpi,0,polls,2,0.1,83.9,81.4,102.4,92.8\nbls,4,polls,2,0.1,120.2,118,122,121.7\n")
    assert driver.highest_rates(path).splitlines()[2:] == [
        "| `MPI_Alltoallv` | 84 (81 to 102) | 93 |",
        "| bounded lag, bound 4 | 120 (118 to 122) | 122 |",
    ]


def test_what_was_found_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- claims -->\nold\n<!-- /claims -->\nb <!-- minutes 01-a -->1<!-- /minutes 01-a -->\n")
    driver.fill(page, "claims", "\nnew \\1\n")
    driver.fill(page, "minutes 01-a", "2.0")
    wanted = "a\n<!-- claims -->\nnew \\1\n<!-- /claims -->\nb <!-- minutes 01-a -->2.0<!-- /minutes 01-a -->\n"
    assert page.read_text() == wanted
    with pytest.raises(driver.StopError, match="has 0 places for rates: it needs <!-- rates --> and <!-- /rates -->"):
        driver.fill(page, "rates", "new")
    page.write_text(wanted * 2)
    with pytest.raises(driver.StopError, match="has 2 places for claims"):
        driver.fill(page, "claims", "new")
