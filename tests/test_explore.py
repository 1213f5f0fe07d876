"""The protocol's core under every schedule there is, within small spaces; and mistakes that have to be found there."""

import re
from collections.abc import Callable

import pytest

from blslib.collective.protocol import BoundedLag
from tests.conftest import ROOT
from tests.explore import Script, Space, compose_post_and_drain, post_and_drain, search
from tests.mutants import COMPOSING, MUTANTS, OneSlotFewer

PROMISES = (ROOT / "docs" / "promises.md").read_text()


def space(
    size: int, bound: int, core: type[BoundedLag] = BoundedLag, script: Callable[[int], Script] = post_and_drain
) -> Space:
    """A slot too few needs iteration 2 bound + 1 to show, reads that outlast a fence need one more."""
    return Space(size, bound, script(2 * bound + 3), core)


@pytest.mark.parametrize(("size", "bound"), [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 1)])
def test_every_interleaving_keeps_every_promise(size, bound, capsys):
    found = search(space(size, bound))
    row = f"| {size} | {bound} | {2 * bound + 3} | {found.states:,} | {found.steps:,} |"
    with capsys.disabled():
        print(f"\nP = {size}, bound {bound}: {found.states:,} states explored, {found.steps:,} steps")
    assert found.fault is None, "\n".join(found.schedule)
    assert row in PROMISES


@pytest.mark.parametrize(("size", "bound"), [(2, 0), (2, 1), (2, 2), (3, 0), (3, 1)])
@pytest.mark.parametrize(("core", "text"), MUTANTS.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_every_mistake_is_found_at_every_bound(core, text, size, bound):
    found = search(space(size, bound, core))
    print("\n".join(found.schedule))
    assert found.fault is not None and re.search(text, found.fault), found


@pytest.mark.parametrize(("size", "bound"), [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0)])
def test_every_interleaving_keeps_every_promise_to_those_who_compose(size, bound, capsys):
    found = search(space(size, bound, script=compose_post_and_drain))
    row = f"| {size} | {bound} | {2 * bound + 3}, composed | {found.states:,} | {found.steps:,} |"
    with capsys.disabled():
        print(f"\n{row}")
    assert found.fault is None, "\n".join(found.schedule)
    assert row in PROMISES


@pytest.mark.parametrize(("size", "bound"), [(2, 0), (2, 1), (2, 2), (3, 0)])
@pytest.mark.parametrize(("core", "text"), (MUTANTS | COMPOSING).items(), ids=lambda v: getattr(v, "__name__", ""))
def test_every_mistake_with_composed_blocks_is_found(core, text, size, bound):
    if core.__name__ == "SendsTheWrongBlocks":
        pytest.skip("what is composed is posted as it is")
    found = search(space(size, bound, core, compose_post_and_drain))
    print("\n".join(found.schedule))
    assert found.fault is not None and re.search(text, found.fault), found


@pytest.mark.parametrize("bound", range(4))
def test_a_slot_too_few_shows_in_iteration_two_bound_plus_one(bound):
    assert search(Space(2, bound, post_and_drain(2 * bound + 1), OneSlotFewer)).fault is None
    found = search(Space(2, bound, post_and_drain(2 * bound + 2), OneSlotFewer))
    assert f"overwrites iteration 0 with {2 * bound + 1} at" in str(found.fault)


def test_the_schedule_in_the_docs_is_the_one_found():
    found = search(space(2, 0, OneSlotFewer))
    assert "\n".join(found.schedule) in PROMISES


def test_every_promise_names_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PROMISES)
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"
