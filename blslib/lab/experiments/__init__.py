"""What is measured: one file each, known by its name, and run by ``python -m blslib bench NAME`` if it is a bench.

An experiment has a frozen configuration and ``run(comm, config)``, which is collective and returns rows (``lab.rows``).
A bench has besides:

=============  ======================================================================================================
``plan``       from what was asked (``lab.options.Given``) to configurations
``COLUMNS``    those of the summary that are printed, as words in one string
``OPTIONS``    options of its own by name, as arguments of ``argparse``; ``ranks`` stands in the place of one number,
               by default 4
=============  ======================================================================================================

The first line of its docstring is its help. Whatever lists benches imports all of these files, so that heavy imports
(MPI, torch) stand inside the functions.
"""

from blslib.lab.found import also

__path__ += also("experiments")
