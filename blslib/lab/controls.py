"""Controls for notebooks: sliders and menus, and below them what follows from them, anew whenever one is let go."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from blslib.theory.delays import named

LAWS = [
    ("rotating: one rank in every iteration, in turn", "rotating"),
    ("exponential: every rank in every iteration, so long on average", "exponential"),
    ("bernoulli: every rank in one iteration of ten, at random", "bernoulli"),
    ("permanent: the last rank in every iteration", "permanent"),
]
"""For a menu of laws of delay, and whom a delay hits."""
WIDE: dict[str, Any] = {"style": {"description_width": "11em"}, "layout": {"width": "40em"}}


def panel(draw: Callable[..., None], **controls: Any) -> Any:
    """Controls, and what ``draw`` prints and shows for their values.

    Where something is wrong, such as ranks that are gone, its one sentence stands in the place of the picture. Where
    nobody is there to move a control, as in a run of all notebooks, the first picture is shown by itself.

    Args:
        draw: is called with the value of each control by its name.
        controls: of ``slider`` and ``menu``.

    Returns:
        A widget to display, or None.
    """

    def safely(**values: Any) -> None:
        try:
            draw(**values)
        except KeyboardInterrupt:
            print("interrupted: move a control to go on")
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            print(str(error).partition("\n")[0])

    if os.environ.get("IPP_NONINTERACTIVE") == "1":
        return draw(**{name: control.value for name, control in controls.items()})
    return widgets.interactive(safely, **controls)


def slider(description: str, value: int, least: int, most: int, step: int = 1) -> Any:
    """A slider for whole numbers."""
    return widgets.IntSlider(value, least, most, step, description=description, continuous_update=False, **WIDE)


def menu(description: str, options: Sequence[Any]) -> Any:
    """A menu of values, or of pairs of words and a value."""
    return widgets.Dropdown(options=options, description=description, **WIDE)


def mean_s(law: str, delay_s: float, ranks: int) -> float:
    """The mean over all ranks and iterations if one delay lasts so long; where all are delayed, so long on average."""
    return delay_s / getattr(named(law, 1.0, ranks), "delay_s", 1.0)
