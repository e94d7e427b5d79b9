"""With this folder on PYTHONPATH, every ``netsim run`` below a test has its fork server forked (tests/forking.py): for
commands that another one starts, as ``netsim regress`` does."""

import os
import sys

if "run" in sys.orig_argv and any("netsim_ddp" in word for word in sys.orig_argv):
    from tests.forking import ADDRESS, forking

    kept = forking(os.environ[ADDRESS])  # which would end where nobody held it
    kept.__enter__()
