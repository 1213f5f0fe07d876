"""torch.distributed's all_to_all_single over the backend "bls", which is told the size of blocks."""

from functools import partial

from blslib.lab.compare.contenders import gloo

BOUNDED = True
build = partial(gloo.build, backend="bls")
