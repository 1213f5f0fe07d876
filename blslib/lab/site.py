"""The site: notebooks as run, the documents, all figures, and a playground. ``./reproduce.sh site`` builds it.

Everything lies in one folder and opens from a disk as well as from GitHub Pages. Pictures are of the reference run but
for those in the notebooks' own pages; only these pages ask a network for something, scripts for formulas.
"""

import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

from blslib.charts import look, runs
from blslib.lab import controls, driver
from blslib.lab.rows import root
from blslib.theory.delays import delays
from blslib.theory.maxplus import ahead, times

LAWS = tuple(law for _, law in controls.LAWS)
DELAYS_MS, BOUNDS, RANKS = (0, 40, 80, 120, 160), tuple(range(9)), (2, 4, 8)
WORK_S, ITERATIONS = 25e-3, 12
LINES = (
    f"Ranks work {1000 * WORK_S:.0f} ms in each of {ITERATIONS} iterations, and a law delays them; all is computed.",
    "Move the controls: with which law does the lag of some ranks climb to the bound, and stay there?",
)
HOME = {"notebooks/README.html": "All pages", "playground.html": "Playground"}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body{{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}}
img{{max-width:100%}}table{{border-collapse:collapse}}td,th{{border:1px solid #ddd;padding:.2em .6em;text-align:left}}
pre{{background:#f6f6f6;padding:.6em;overflow:auto}}</style>{home}{body}</html>"""
NARROW = ("display: flex;", "overflow: auto;\n      display: flex;\n      flex-direction: column-reverse;")
"""In the playground's page: its controls above the charts, which keep their size and can be scrolled."""


def settings() -> pd.DataFrame:
    """Every iteration of every rank in every setting of the playground, by the max-plus law; times in ms."""
    found = []
    for law, delay_ms, ranks in itertools.product(LAWS, DELAYS_MS, RANKS):
        mean_s = controls.mean_s(law, delay_ms / 1000, ranks)
        late_s = delays(law, ranks, ITERATIONS, mean_s, seed=1)
        for bound in BOUNDS:
            entered_s, returned_s, *_ = times(WORK_S + late_s, bound)
            columns = {"began": entered_s - WORK_S - late_s, "worked": entered_s - late_s, "entered": entered_s}
            columns |= {"returned": returned_s}
            rank, iteration = np.divmod(np.arange(ranks * ITERATIONS), ITERATIONS)
            setting = {"law": law, "delay": delay_ms, "ranks": ranks, "bound": bound}
            setting |= {"rank": rank, "iteration": iteration, "ahead": ahead(entered_s, returned_s).ravel()}
            ms = {name: (1000 * seconds).round(6).ravel() for name, seconds in columns.items()}
            found.append(pd.DataFrame(setting | ms))
    return pd.concat(found, ignore_index=True)


def playground() -> alt.VConcatChart:
    """Two laws side by side, each as a timeline and as the lag of its ranks, and the time of a run against the bound.

    All of it is a choice among ``settings``, which the page carries along.
    """
    first, second = (
        alt.param(name=name, value=law, bind=alt.binding_select(options=list(LAWS), name=f"{name} law "))
        for name, law in (("left", "rotating"), ("right", "permanent"))
    )
    delay = alt.param(name="delay", value=80, bind=alt.binding_range(min=0, max=160, step=40, name="one delay (ms) "))
    bound = alt.param(name="k", value=4, bind=alt.binding_range(min=0, max=8, step=1, name="bound "))
    ranks = alt.param(name="size", value=4, bind=alt.binding_radio(options=list(RANKS), name="ranks "))
    asked = "datum.delay == delay && datum.ranks == size"
    time = alt.Scale(nice=False, zero=True)

    def column(law: str) -> alt.VConcatChart:
        chosen = alt.Chart(width=look.WIDTH // 2 - 20).transform_filter(
            f"datum.law == {law} && {asked} && datum.bound == k"
        )
        base = chosen.encode(y=alt.Y("rank:O", title="rank", axis=alt.Axis(**look.QUIET)))
        color = look.by(alt.Color, "phase", runs.PHASES, runs.PHASES.values())
        ends = zip(runs.PHASES, ("began", "worked", "entered"), ("worked", "entered", "returned"), strict=True)
        bars = [
            base.transform_calculate(phase=f"'{phase}'").mark_bar(stroke="white", strokeWidth=0.5).encode(
                x=alt.X(f"{start}:Q", title="time since the start (ms)", scale=time), x2=end, color=color
            )
            for phase, start, end in ends
        ]  # fmt: skip
        lines = chosen.mark_line(interpolate="step-after", point={"size": 20}).encode(
            x=alt.X("returned:Q", title="time since the start (ms)", scale=time),
            y=alt.Y("ahead:Q", title="lag (iterations)", scale=alt.Scale(domain=[0, 9])),
            color=alt.Color("rank:O", title="rank", scale=alt.Scale(scheme="browns")),
        )
        timeline = alt.layer(*bars, height=150, title=alt.Title(alt.expr(f"{law} + ': what each rank does'")))
        return alt.vconcat(timeline, lines.properties(height=110)).resolve_scale(color="independent", x="shared")

    curve = alt.Chart(width=look.WIDTH, height=150).transform_filter(
        f"(datum.law == left || datum.law == right) && {asked}"
    )
    curve = curve.transform_aggregate(done="max(returned)", groupby=["law", "bound"]).encode(x=look.BOUND_AXIS)
    line = curve.encode(
        y=alt.Y("done:Q", title="time of the run (ms)"),
        color=alt.Color("law:N", title=None, scale=alt.Scale(scheme="dark2")),
    )
    here = curve.transform_filter("datum.bound == k").mark_rule(color="#888888", strokeDash=[4, 3])
    whole = alt.vconcat(
        alt.hconcat(column("left"), column("right")).resolve_scale(color="shared", x="shared"),
        alt.layer(here, line.mark_line(), line.mark_point(), title="How long does it take?"),
        data=alt.InlineData(values=settings().to_csv(index=False), format=alt.CsvDataFormat(type="csv")),
        title=look.heading("Bounded lag, to play with", LINES),
    )
    whole.autosize = alt.AutoSizeParams(type="pad", resize=True)  # more ranks have a longer legend
    return whole.resolve_scale(color="independent").add_params(first, second, delay, bound, ranks)


def anchor(heading: str) -> str:
    """The name of a heading's place as GitHub has it, from that of nbconvert."""
    return re.sub(r"%\w\w|&\w+;|[^\w-]", "", heading).lower()


def build(out: Path) -> list[Path]:
    """Write the site into a folder, from the notebooks that a run has executed; returns its pages.

    Raises:
        FileNotFoundError: no run has executed any.
        ValueError: one cannot be read; the site at hand is as it was.
    """
    repository = driver.REPOSITORY
    run = sorted((root() / "notebooks").glob("[0-9][0-9]-*.ipynb"))
    if not run:
        raise FileNotFoundError(f"no executed notebooks in {root() / 'notebooks'}: ./reproduce.sh --quick makes them")
    played = playground().to_html(inline=True, embed_options={"actions": False}).replace(*NARROW, 1)
    pages, exporter = {Path("playground.html"): played}, HTMLExporter(template_name="classic")  # it keeps alt texts
    for path in run:
        try:
            pages[Path("notebooks", f"{path.stem}.html")] = exporter.from_filename(str(path))[0]
        except Exception as error:  # of whatever kind: it was cut short, or is none
            raise ValueError(f"{path} cannot be read, run it again: {str(error).splitlines()[0]}") from error
    for document in (*repository.glob("*.md"), *repository.glob("docs/*.md"), *repository.glob("[a-z]*/**/README.md")):
        where = document.relative_to(repository)
        body = markdown2html(document.read_text(encoding="utf-8"))
        home = "".join(f'<a href="{os.path.relpath(to, where.parent)}">{words}</a> ' for to, words in HOME.items())
        pages[where.with_suffix(".html")] = PAGE.format(title=where.stem, home=home, body=body)
    pages[Path("index.html")] = '<meta http-equiv="refresh" content="0; url=notebooks/README.html">'
    shutil.rmtree(out, ignore_errors=True)  # now that all pages are made
    for where, page in pages.items():
        (out / where).parent.mkdir(parents=True, exist_ok=True)
        shown = re.sub(r'(href="(?![a-z]+:)[^"#]*)\.(?:md|ipynb)\b', r"\1.html", page)
        shown = re.sub(r'(<h\d id="|href="(?![a-z]+:)[^"#]*#)([^"]*)', lambda at: at[1] + anchor(at[2]), shown)
        (out / where).write_text(shown, encoding="utf-8")
        for link in re.findall(r'(?:href|src)="(?![a-z]+:|#)([^"#]+)', shown):
            target = os.path.normpath(where.parent / link)  # pictures, and files of the repository, go along
            if (source := repository / target).is_file():
                (out / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, out / target)
    return [out / where for where in pages]


if __name__ == "__main__":
    try:
        made = build(root() / "site")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{len(made)} pages: open {root() / 'site' / 'index.html'}")
