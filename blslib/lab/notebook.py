"""What notebooks use, in one place, so that one begins with a few lines; ``cores`` are those of this machine.

All of it lives elsewhere, and programs import it from there.
"""
# ruff: noqa: F401  notebooks use what it imports

from os import cpu_count

from IPython.display import Markdown

from blslib.charts import colours, look
from blslib.diagnosis.diagnose import diagnose, text
from blslib.diagnosis.traces import Trace, read
from blslib.lab import controls, driver, figures
from blslib.lab.experiments import alltoallv, delayed, dlrm, limits, lookup, placed, serving, timeline, torch
from blslib.lab.ranks.cluster import engines, experiment
from blslib.lab.rows import summary, write
from blslib.placement import models
from blslib.theory import delays, maxplus

cores = cpu_count()
