"""Figures: where charts go, as files and on the screen of a notebook."""

import io
from functools import lru_cache
from pathlib import Path

import altair as alt
import vl_convert
from PIL import Image

from blslib import files
from blslib.lab.rows import root

PPI = 180


def save(chart: alt.TopLevelMixin, stem: str, suffix: str = "") -> Path:
    """Write ``figures/stem + suffix`` as SVG and PNG; returns the path of the PNG."""
    folder = root() / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}{suffix}.png"
    files.write({path.with_suffix(".svg"): vl_convert.vegalite_to_svg(chart.to_dict()), path: _png(chart.to_json())})
    return path


def show(chart: alt.TopLevelMixin) -> None:
    """Show a chart in a notebook: a picture and its description, which survive without JavaScript or a network.

    JupyterLab knows older versions of Altair's own format only, and GitHub none.
    """
    from IPython.display import display

    png, said = _png(chart.to_json()), chart.to_dict()["description"]
    width = int.from_bytes(png[16:20], "big") * 72 // PPI  # in every PNG the picture's width stands there
    display({"image/png": png, "text/plain": said}, raw=True, metadata={"image/png": {"width": width, "alt": said}})


@lru_cache(maxsize=1)
def _png(spec: str) -> bytes:
    """A chart as PNG, packed again: the converter packs for speed, into three times the room.

    One that was saved is shown without being drawn again.
    """
    packed = io.BytesIO()
    Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec, ppi=PPI))).save(packed, "PNG", optimize=True)
    return packed.getvalue()
