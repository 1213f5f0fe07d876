"""The dictionary of colours: one colour, one meaning, in whichever chart it stands."""

import altair as alt
import pandas as pd

from blslib.charts import diagnosis, look, placement, runs


def dictionary() -> alt.FacetChart:
    """A column for each kind of meaning: what is drawn in this colour, and if it is a point, with this shape."""
    times = {name: (color, "square") for name, color in (runs.PHASES | diagnosis.COLORS).items()}
    bounds = {f"bound {bound}": look.bound_look(bound) for bound in (0, *(2**nth for nth in range(8)))}
    kinds = {"exchanges, model": look.LOOKS, "bounded lag": bounds, "time": times, "placed": placement.STRATEGIES}
    rows = [(kind, name, *which) for kind, looks in kinds.items() for name, which in looks.items()]
    table = pd.DataFrame(rows, columns=["kind", "name", "color", "shape"])
    axis = alt.Axis(orient="right", labelLimit=240, **look.QUIET)
    raw = [alt.Color("color:N", scale=None), alt.Stroke("color:N", scale=None), alt.Shape("shape:N", scale=None)]
    y = alt.Y("name:N", sort=None, title=None, axis=axis)
    chart = alt.Chart(table, width=12).mark_point(size=90, strokeWidth=1).encode(y, *raw)
    facet = alt.Facet("kind:N", sort=list(kinds), header=alt.Header(labelAnchor="start"))
    said = "; ".join(f"{kind}: {', '.join(looks)}" for kind, looks in kinds.items())
    drawn = chart.facet(facet, columns=len(kinds)).resolve_scale(y="independent")
    return drawn.properties(title="One colour, one meaning", description=f"What each colour stands for. {said}.")
