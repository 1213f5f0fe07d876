"""Bounded lag with messages to all peers, as if each were on a host of its own."""

from functools import partial

from blslib.lab.compare.contenders import bls

BOUNDED = True
build = partial(bls.build, channel="messages")
