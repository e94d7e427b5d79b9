"""What launchers and log collectors put before every line of a program's output, taken off again.

mpirun and mpiexec (``--tag-output``, ``-l``), srun ``-l``, kubectl and docker compose, the timestamps of Kubernetes and
of a workflow's log, and a terminal's colours. No line of JSON and no row of a table begins like any of them.
"""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_PREFIXES = re.compile(
    r"""(?:\s*(?:
        \[[^\[\]\s]*\d+,\s?\d+\](?:<std\w+>):\ ?                                    # [1,0]<stdout>:
      | \[\d+\]\ (?=\s*[{}\[\]"#\d])                                            # [0]
      | \[[\w.-]+(?:/[\w.-]+)+\]\ ?                                             # [pod/worker-0/nccl]
      | \d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)\ ?(?:std(?:out|err)\ [FP]\ )?
      | \d{1,5}:\ ?(?=[\s{}\[\]"#\d]|$)                                         # 0:
      | [A-Za-z][\w.-]*\s*\|\ ?                                                 # worker-0  |
      | [A-Za-z][\w.-]*:\ (?=\s*[{}\[\]"#\d])                                   # host0:
    ))+""",
    re.VERBOSE,
)


def without_prefixes(text: str) -> str:
    """``text`` with what a launcher put before its lines taken off; its lines keep their numbers."""
    lines = _COLOUR.sub("", text).split("\n")
    return "\n".join(line[match.end() :] if (match := _PREFIXES.match(line)) else line for line in lines)
