"""The environment variables that bind a program's sockets to its rank's interface."""

from __future__ import annotations

from netsim_ddp.link.base import Endpoint


def host_name(rank: int) -> str:
    """What the host of ``rank`` is called on a link with a network for each rank."""
    return f"netsim-{rank}"


def bound_to(endpoint: Endpoint) -> dict[str, str]:
    """For Gloo, TensorPipe and NCCL. Unset, Gloo resolves the hostname and may end up on the loopback, and NCCL passes
    data between ranks of one machine through memory, both past the link."""
    return {
        "GLOO_SOCKET_IFNAME": endpoint.interface,
        "TP_SOCKET_IFNAME": endpoint.interface,
        "NCCL_SOCKET_IFNAME": f"={endpoint.interface}",
        "NCCL_NET": "Socket",
        "NCCL_IB_DISABLE": "1",
        "NCCL_P2P_DISABLE": "1",
        "NCCL_SHM_DISABLE": "1",
        "NCCL_HOSTID": host_name(endpoint.rank),
    }
