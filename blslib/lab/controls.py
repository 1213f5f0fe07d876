"""Controls for notebooks: sliders that run the ranks again."""

from typing import Any

from blslib.lab.experiments import timeline
from blslib.theory.delays import named

LAWS = [
    ("rotating: one rank in every iteration, in turn", "rotating"),
    ("exponential: every rank in every iteration, so long on average", "exponential"),
    ("bernoulli: every rank in one iteration of ten, at random", "bernoulli"),
    ("permanent: the last rank in every iteration", "permanent"),
]
"""Those of the control, and whom a delay hits."""


def delays_and_bound(ranks: Any, *, cores: int) -> Any:
    """Sliders for bound and delay, and the timeline of a new run on live ranks whenever one of them is let go.

    The delay is that of one rank in one iteration, as it is drawn, and not the mean over all of them. Where the ranks
    are gone, a sentence stands in the place of the picture.

    Args:
        ranks: of ``cluster.engines``.
        cores: of the machine, for the caption.

    Returns:
        A widget to display.
    """
    import ipywidgets as widgets

    from blslib.charts import runs as charts
    from blslib.lab import figures
    from blslib.lab.ranks.cluster import GoneError, experiment

    def redraw(bound: int, delay_ms: int, law: str) -> None:
        # Where the mean of a law is 1, a delay lasts this long; where all are delayed, 1 on average.
        of_mean = getattr(named(law, 1.0, ranks.size), "delay_s", 1.0)
        bounds = (0, bound) if bound else (0,)
        try:
            rows = experiment(ranks, timeline.run, timeline.Config(bounds, law, delay_ms / 1000 / of_mean))
        except GoneError as gone:
            print(str(gone).partition("\n")[0])
        else:
            figures.show(charts.timeline(rows, cores=cores))

    wide: Any = {"style": {"description_width": "9em"}, "layout": {"width": "38em"}}
    return widgets.interactive(
        redraw,
        bound=widgets.IntSlider(2, 0, 8, description="bound", continuous_update=False, **wide),
        delay_ms=widgets.IntSlider(48, 0, 160, 4, description="one delay (ms)", continuous_update=False, **wide),
        law=widgets.Dropdown(options=LAWS, description="law", **wide),
    )
