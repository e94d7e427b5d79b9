"""The schema of the result file; :mod:`netsim_ddp.results.files` reads and writes it.

Version 1 had neither training nor sweeps; version 2 did not say of what commits it was, nor in a training's cells which
collective ran, and its times to an accuracy were compared the other way round; version 3 took buckets to become full
in proportion to their bytes under an emulated compute, and its bucket link delayed messages without TCP's window.

SI units stand in the key names. Every raw step sample is kept; ``summary`` holds what the tables show and can
be computed again from the samples (``netsim_ddp.results.summary``). Times are seconds, sizes bytes, rates
bit/s.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from netsim_ddp.results.fields import Count, Finite, Positive, Rate, Seconds, Strict, Tool
from netsim_ddp.results.predicted_record import PredictionError
from netsim_ddp.results.ready import ReadyTimes
from netsim_ddp.results.training_record import EpochRecord, Recipe, TrainingSummary

SCHEMA_VERSION: Literal[4] = 4

Bound = Literal["", ">=", "<=", "none"]
Mechanism = Literal["tc", "bucket", "host", "none", "model"]
"""``model``: there is no link, its clock alone (``netsim predict``)."""
Execution = Literal["concurrent", "replayed", "predicted"]
Status = Literal["complete", "partial", "failed"]


class CodeRecord(Strict):
    """Of what code a result is: of netsim, or of the package that a method or model of the user's is from.

    ``commit`` is None where no repository holds it (a wheel), ``dirty`` says whether the files differed from it.
    """

    name: str
    version: str | None
    commit: str | None
    dirty: bool | None = None


class TcpRecord(Strict):
    """What the bucket's model of TCP was made for: the host's kernel and settings, and the model's congestion control.
    ``wmem_bytes``: least, first and largest send buffer of a socket (``tcp_wmem``)."""

    kernel: str
    congestion: Literal["cubic"] = "cubic"
    wmem_bytes: tuple[Count, Count, Count]
    slow_start_after_idle: bool


class LinkRecord(Strict):
    """What the link was asked for, configured to and measured at; ``ceiling`` is rate x 1448/1514 for TCP.

    The rates are those of the slowest side of the slowest rank, which sets a collective's pace; ``shape`` says in
    words what every rank has, and where the link ``varies`` they are its first ones. ``credit_bytes`` is what an
    idle interface lets through at once, ``queue_s`` the longest that a packet may wait in a full queue, ``delay_by``
    who delays and loses the packets of a tc link: the kernel's netem or a forwarder with TUN devices. ``tcp`` is what
    the bucket charges for TCP's window: ``linux`` or ``ideal``, nothing; None on other links and where there is no
    delay. ``tcp_host`` is what the former rests on.
    """

    mechanism: Mechanism
    requested_bps: Rate | None
    configured_bps: Rate | None
    measured_bps: Positive | None
    together_bps: Positive | None = None
    """What the probe measured with all ranks sending at once: the slowest one's, scaled to the slowest rank's rate."""
    ceiling_bps: Annotated[Positive, Field(gt=0)] | None
    drops: Count = 0
    retransmits: Count = 0
    congestion: str | None = None
    tcp: Literal["linux", "ideal"] | None = None
    tcp_host: TcpRecord | None = None
    shape: str | None = None
    credit_bytes: Count | None = None
    queue_s: Finite | None = None
    delay_s: Finite = 0.0
    delay_by: Literal["netem", "tun"] | None = None
    varies: bool = False
    host_limited: bool = False
    """Whether this host and not the link set the cell's pace (:mod:`netsim_ddp.results.limits`)."""

    @property
    def how(self) -> str:
        """How it was made, in a word: ``tc``, ``tc/tbf+tun``, ``bucket``."""
        return f"{self.mechanism}/tbf+{self.delay_by}" if self.delay_by else self.mechanism


class Phases(Strict):
    """The seven phases of a step, seconds."""

    compute_s: Seconds
    compress_s: Seconds
    communicate_s: Seconds
    wait_s: Seconds
    decompress_s: Seconds
    optimizer_s: Seconds
    other_s: Seconds


class _Clocks(Strict):
    wall_s: Annotated[Seconds, Field(ge=0)]
    elapsed_s: Seconds


# In a file, fields stand in the order of the bases from the last to the first.
class StepRecord(Phases, _Clocks):
    """One rank's step. The seven phases add up to ``wall_s``; ``hidden_s`` stands beside them.

    ``elapsed_s`` is the clock of a replayed step's real execution and equals ``wall_s`` when concurrent.
    """

    hidden_s: Seconds = 0.0
    loss: float | None = None
    exchange_s: Seconds | None = None
    """From the last rank's start of the step's first exchange to the end of the last one on the slowest rank; the same
    on every rank. None where the link has no model to hold it against."""
    model_s: Seconds | None = None
    """How long that takes by the link's own model, for the same local work (:mod:`netsim_ddp.results.limits`)."""
    line_s: Seconds | None = None
    """The same without the host's cost of messages: the least that the line allows."""


class LayerRecord(Strict):
    """What a selection sent and kept back: of a step, or of a layer in the mean over the measured steps.

    ``energy_kept`` is ||sent||^2 / ||gradient + residual||^2 and ``residual_norm`` the residual's afterwards; None
    without error feedback.
    """

    entries: Finite
    ratio: Finite
    energy_kept: float | None
    residual_norm: float | None


class SelectedStep(LayerRecord):
    """The totals of a step, and the payload that they made."""

    payload_bytes: Count


class SelectionRecord(Strict):
    """``--statistics``: every measured step, and with ``--statistics layers`` the mean of each parameter."""

    steps: list[SelectedStep]
    layers: dict[str, LayerRecord] = Field(default_factory=dict)


class RankRecord(Strict):
    """One rank of one repeat. ``tx_bytes``/``rx_bytes`` cover the measured steps only.

    ``predicted_tx_bytes`` is what the method's formula says for the same steps, headers included.
    ``parameters_sha256`` is the digest of the rank's parameters after the last step.
    """

    rank: Count
    tx_bytes: Count
    rx_bytes: Count
    payload_bytes: Count
    predicted_tx_bytes: Finite | None = None
    peak_memory_bytes: Count
    residual_bytes: Count = 0
    host_late_s: Seconds = 0.0
    """On the bucket: seconds by which messages' data moved later than their deadlines, in the measured steps."""
    host_late_count: Count = 0
    """How many they were."""
    parameters_sha256: str | None = None
    selection: SelectionRecord | None = None
    steps: list[StepRecord]


class RepeatRecord(Strict):
    """One fresh set of processes. A training run is one repeat with a ``seed`` of its own; its ranks keep no steps."""

    ranks: list[RankRecord]
    message_s: dict[str, Seconds] = Field(default_factory=dict)
    """What one message costs this host beside the link, by the kind of exchange, measured with all ranks."""
    took_s: Seconds | None = None
    """Of a sweep: how long this took, its processes started and ended, but neither link nor imports."""
    seed: Count | None = None
    epochs: list[EpochRecord] = Field(default_factory=list)
    stolen_share: Positive | None = None
    """Of a virtual machine's processors, what its host gave to others meanwhile."""
    tries: Count = 1
    """How often it was run, because the host took more than is allowed: the one that it took least from is kept."""


class Interval(Strict):
    """A median over repeats with its bootstrap 95% interval."""

    median: Seconds
    ci_low: Seconds
    ci_high: Seconds


class _StepTime(Strict):
    step_s: Interval


class Summary(Phases, _StepTime):
    """What the table shows of one cell.

    Phases are seconds: those of the slowest rank in the median step (in the mean of the two in the middle, where there
    are two), so they add up to it. Speedups are a dense step over this one: 16-bit dense overlapped with backward
    (``speedup_vs_dense16``), fp32 dense overlapped, and fp32 dense (``speedup``). Sizes are the largest rank's.
    """

    hidden_s: Seconds
    efficiency: Finite
    speedup_vs_dense16: Finite | None = None
    speedup_vs_dense16_bound: Bound | None = None
    speedup: Finite | None = None
    speedup_bound: Bound | None = None
    """What the speedup is: exact (""), at least ">=" or at most "<=" that; "none" where the host limits both steps and
    none is given. See :mod:`netsim_ddp.results.limits`."""
    speedup_vs_overlapped: Finite | None = None
    speedup_vs_overlapped_bound: Bound | None = None
    tx_bytes_per_step: Finite
    payload_bytes_per_step: Finite
    wire_reduction: Finite | None = None
    residual_bytes: Count = 0
    peak_memory_bytes: Count = 0
    first_loss: float | None = None
    last_loss: float | None = None


class ReplayRecord(Strict):
    """How the local work of a replayed cell was measured and played.

    ``at_once`` ranks measured at a time, as many as the host has cores for; ``busy`` says whether ranks then kept their
    cores busy while they played it, or slept. A slowdown is what the same work takes with ``at_once`` ranks at a time
    over what it takes alone on the host, the median over ranks, one value each time a repeat ran: of forward and
    backward, and of adding one buffer of the gradient's size to another, which only memory and caches limit. Empty
    where one rank measures at a time, or where compute is emulated.
    """

    at_once: Count
    busy: bool
    compute_slowdown: list[Finite] = Field(default_factory=list)
    memory_slowdown: list[Finite] = Field(default_factory=list)


class Cell(Strict):
    """One configuration: its identity, its link, its repeats, its summary."""

    id: str
    method: str
    params: dict[str, object] = Field(default_factory=dict)
    model: str | None = None
    """None in files of version 1, whose ``scenario`` names the one model of all cells."""
    dataset: str | None = None
    axes: dict[str, object] = Field(default_factory=dict)
    """Where in a sweep's matrix the cell stands, as its file writes it: ``{"bandwidth": "100mbps", "workers": 4}``."""
    workers: Count
    bandwidth_bps: Rate | None
    execution: Execution = "concurrent"
    overlap: bool = False
    threads: Count
    device: str = "cpu"
    backend: str = "gloo"
    ready: list[str] = Field(default_factory=list)
    """Of a cell with ``--compute`` that overlaps: by which of the result's ``ready`` its buckets became full; one, or
    one for each run that was merged."""
    substituted: str | None = None
    """Where the codec's times come from, if they were not measured in this run."""
    replay: ReplayRecord | None = None
    """None where nothing was replayed, and in files before version 4."""
    link: LinkRecord
    repeats: list[RepeatRecord] = Field(default_factory=list)
    summary: Summary | None = None
    recipe: Recipe | None = None
    training: TrainingSummary | None = None
    error: str | None = None
    prediction_error: PredictionError | None = None
    """Of a predicted cell, how far it may be off; None where no validation says so."""
    citation: str | None = None
    """Of a user's own method, what it gives as its ``citation``: BibTeX or text."""


class Result(Strict):
    """A whole result file."""

    schema_version: Literal[1, 2, 3, 4] = SCHEMA_VERSION
    kind: Literal["steps", "training"] = "steps"
    tool: Tool
    created_utc: str
    status: Status
    environment: dict[str, object]
    code: list[CodeRecord] = Field(default_factory=list)
    scenario: dict[str, object]
    command: str
    model_parameters: int | None = None
    ready: dict[str, ReadyTimes] = Field(default_factory=dict)
    """When a backward pass has each gradient ready: cells with ``--compute`` that overlap name one of these by its key.
    Shares of backward, and forward's of both."""
    warnings: list[str] = Field(default_factory=list)
    cells: list[Cell] = Field(default_factory=list)
