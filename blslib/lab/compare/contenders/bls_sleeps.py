"""Bounded lag whose ranks sleep from the first look on while they wait, and leave their cores to others."""

import time
from functools import partial

from blslib.collective.waiting import FIRST_SLEEP_S
from blslib.lab.compare.contenders import bls

BOUNDED = True
build = partial(bls.build, waiting=lambda _: time.sleep(FIRST_SLEEP_S))
