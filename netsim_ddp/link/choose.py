"""Which mechanism makes a link: the one that was asked for, or with ``auto`` the most real one that works here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from netsim_ddp.errors import LinkUnavailable, UsageError
from netsim_ddp.link.base import HostLink, Link
from netsim_ddp.link.spec import LinkSpec
from netsim_ddp.link.tc.link import TcLink


def choose(spec: LinkSpec, how: str, note: Callable[[str], None], *, beside: TcLink | None = None) -> Link:
    """The link for ``how`` (tc, bucket, none or auto), not entered yet; ``note`` hears why ``auto`` took it.

    Args:
        beside: a tc link whose helper shall hold this one too, if this is one.
    """
    if how == "tc":
        return TcLink(spec, beside)
    if how == "host":
        raise UsageError(
            "--link host needs ranks that were started on their hosts",
            hint="start netsim with torchrun or srun",
        )
    if how == "auto" and spec.tcp != "linux":
        note(f"link: bucket, because only it has --tcp {spec.tcp}")
        return HostLink(spec, "bucket")
    if how in ("bucket", "none"):
        return HostLink(spec, "bucket" if how == "bucket" else "none")
    try:
        with TcLink(replace(spec, workers=1)):
            note("link: tc, because namespaces and tbf work here")
            return TcLink(spec, beside)
    except LinkUnavailable as error:
        link = HostLink(spec, "bucket")
        if beyond := link.beyond():
            without = ", or leave it away: --loss 0" if spec.loss else ""
            message = f"{error.message}, and the bucket link has no {beyond[0]}"
            raise LinkUnavailable(message, hint=f"{error.hint}{without}") from None
        note(f"link: bucket, because {error.message}")
        return link
