"""What the README shows is what a reader gets."""

import re
from pathlib import Path

import pytest

from blslib.lab import driver
from blslib.lab.claims import markdown
from blslib.lab.ranks.launch import run_ranks
from tests.conftest import LONG_S

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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


def test_claims_are_those_of_the_reference_run() -> None:
    table = markdown(driver.claims(ROOT, driver.choose(ROOT / "notebooks", [])), reasons=False)
    shown = README.partition("<!-- claims -->\n")[2].partition("\n<!-- /claims -->")[0]
    assert shown == table


def test_claims_go_between_their_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- claims -->\nold\n<!-- /claims -->\nb\n")
    driver.update_readme(readme, "new")
    assert readme.read_text() == "a\n<!-- claims -->\nnew\n<!-- /claims -->\nb\n"
    readme.write_text("a\n")
    with pytest.raises(driver.StopError, match="no place for the claims"):
        driver.update_readme(readme, "new")
