"""Links that are made and probed, and interpreters that have imported torch, kept for the runs that follow.

A run of its own makes one link and one fork server. A sweep says beforehand which links it will need: all tc links are
then held by one helper, so that a fork server, started when they stand, can enter the namespaces of each. Importing
torch takes longer than everything else that a run waits for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from netsim_ddp.errors import NetsimError
from netsim_ddp.link.base import Link
from netsim_ddp.link.mechanisms import HostLink, choose
from netsim_ddp.link.probe.probe import ProbeReport, prove
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.link import TcLink
from netsim_ddp.ranks.launcher import Launcher
from netsim_ddp.scenario import Settings

_log = logging.getLogger(__name__)
Tell = Callable[[str], None]
Wanted = tuple[LinkSpec, str]
"""A link, and how it shall be made: tc, bucket, none or auto."""
ServerKey = tuple[object, ...]


@dataclass
class _Made:
    """A link that stands, or the reason why it does not; what its probe found and said."""

    link: Link | None = None
    error: NetsimError | None = None
    measured: ProbeReport | None = None
    proven: bool = False
    warnings: list[str] = field(default_factory=list)


class Pool(AbstractContextManager["Pool"]):
    """Links and fork servers; leaving it takes all of them away.

    Args:
        wanted: every link that will be asked for. One that is not among them is made when it is, with fork servers
            of its own.
    """

    def __init__(self, wanted: Sequence[Wanted] = ()) -> None:
        self._wanted = list(dict.fromkeys(wanted))
        self._links: dict[Wanted, _Made] = {}
        self._launchers: dict[ServerKey, Launcher] = {}
        self._first_tc: TcLink | None = None
        self._stack = ExitStack()
        self.spent_s = 0.0
        """How long making and probing have taken so far."""

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take links and fork servers away; the next request makes new ones. After a failure nobody knows what still
        stands, so whoever goes on calls this first."""
        self._links.clear()
        self._launchers.clear()
        self._first_tc = None
        self._stack.close()

    def link(self, spec: LinkSpec, how: str, note: Tell, warn: Tell) -> tuple[Link, ProbeReport | None]:
        """The link, entered and probed; the report is None on one that the workers probe themselves.

        Raises:
            LinkUnavailable: it cannot be made here.
            LinkOffTarget: it was made and measured, and is not what was asked for.
        """
        key = (spec, how)
        with self._timed():
            if key not in self._links:
                wanted = self._wanted if key in self._wanted else [key]
                for each in wanted:
                    self._links[each] = self._make(each, note, alone=len(wanted) == 1)
            made = self._links[key]
            if made.error is not None:
                raise made.error
            assert made.link is not None
            if not made.proven and made.link.mechanism == "tc":
                note("probing the link")
                made.measured = prove(made.link, made.warnings.append)
            made.proven = True
            for warning in made.warnings:
                warn(warning)
            return made.link, made.measured

    def _make(self, wanted: Wanted, note: Tell, *, alone: bool) -> _Made:
        try:
            link = choose(*wanted, note, beside=None if alone else self._first_tc)
            self._stack.enter_context(link)
            _log.info("made a %s link: %s", link.description, link.spec.describe())
        except NetsimError as error:
            return _Made(error=error)
        if isinstance(link, TcLink) and not alone and self._first_tc is None:
            self._first_tc = link
        return _Made(link)

    def launcher(self, link: Link, settings: Settings, note: Tell) -> Launcher:
        """A fork server that can start ranks in ``link``, of :meth:`link`, for the resolved ``settings``."""
        # A fork server's recorded gradients, and their moments, are kept with it for the repeats that follow.
        emulated = any(getattr(settings, key, None) is not None for key in ("compute_s", "recording"))
        recorded = (
            (settings.seed, settings.batch_size, settings.device, settings.loss_function) if emulated else ()
        )
        key = (
            id(link.helper) if isinstance(link, TcLink) else "host",
            settings.model,
            settings.dataset,
            settings.data_dir,
            settings.text,
            settings.threads,
            settings.timeout_s,
            *recorded,
        )
        if key not in self._launchers:
            note("importing torch once for all workers")
            with self._timed():
                if not isinstance(link, TcLink):
                    # Processes outside of namespaces serve every link without them.
                    link = self._stack.enter_context(HostLink(LinkSpec(workers=1, rate_bps=1), "none"))
                self._launchers[key] = self._stack.enter_context(Launcher(link, settings))
        return self._launchers[key]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.spent_s += time.monotonic() - began
