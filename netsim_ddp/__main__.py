"""``python -m netsim_ddp``: the same command as ``netsim``."""

from netsim_ddp.cli import main

main()
