"""What each rank does for ``netsim check``: run a method on known gradients and say what came of it.

A trial is a function of a :class:`~netsim_ddp.tools.trials.bench.Bench` that answers what it found; every rank runs it
in a fresh process. What only the link's counters can tell is judged by the command,
:mod:`netsim_ddp.tools.method_check`.
"""
