"""Who can take part in a comparison: one file each, known by its name.

A contender has ``build(comm, bound, *, send_counts, recv_counts, slot_bytes)``, which returns an exchange of float32
blocks and is collective, and says in ``BOUNDED`` whether it has bounds or is synchronous.
"""

from blslib.lab.found import also

__path__ += also("contenders")

BARE = ("floor", "raw")
"""Those that are loops rather than exchanges: for benches that time whole loops, and name them."""
