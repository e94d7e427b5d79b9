"""What the loop around a hook or backend did with its averages: what no rank's optimizer got, and what is added to."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch._C._distributed_c10d import GradBucket

from netsim_ddp.errors import UsageError

LOOKED_AT = 8
"""Parameters, the smallest ones, that are looked at for what an earlier step left."""


def when_backward_ends(then: Callable[[], None]) -> None:
    """Call ``then`` when this backward pass is over and DDP has given gradients their averages; never outside of one
    (``ddp.join()`` calls hooks for a rank that has run out of batches)."""
    if torch._C._current_graph_task_id() == -1:
        return
    queue = torch.autograd.Variable._execution_engine.queue_callback
    # DDP queues its own end when the last hook call has returned: what that end queues comes after it.
    queue(lambda: queue(then))


class HookCall:
    """One call of the hook: DDP's memory, whose gradients lie there, and the future that DDP waits for.

    ``checked``: the same memory held the same parameters' gradients in an earlier step.
    """

    gradients: list[Tensor]
    parameters: list[Tensor]

    def __init__(self, bucket: GradBucket, known: HookCall | None = None) -> None:
        self.buffer = bucket.buffer()
        self.checked = known is not None and known.buffer.data_ptr() == self.buffer.data_ptr() != 0
        if known is not None and self.checked:
            # Taking them from the bucket makes a tensor for each. That memory is still DDP's: it has been kept alive.
            self.gradients, self.parameters = known.gradients, known.parameters
        else:
            self.gradients, self.parameters = bucket.gradients(), bucket.parameters()
        self.places: list[int] = []
        self.future: torch.futures.Future[Tensor] = torch.futures.Future(
            devices=[self.buffer.device] if self.buffer.is_cuda else None
        )

    def answer(self) -> None:
        self.future.set_result(self.buffer)


class Given:
    """An average that is in DDP's bucket, and the parameter that should get it.

    Args:
        average: float32 [n], without the loss's scale.
        bucket: the same in DDP's memory, with it.
    """

    __slots__ = ("_before", "_version", "average", "bucket", "parameter")

    def __init__(self, parameter: Tensor, average: Tensor, bucket: Tensor) -> None:
        self.parameter, self.average, self.bucket = parameter, average, bucket
        self._before = parameter.grad
        self._version = None if self._before is None else self._before._version

    def not_applied(self, scale: float) -> Tensor | None:
        """What the parameter's gradient lacks of its average, None where it has it: DDP leaves the gradient of a
        parameter that no rank used in this step as it is."""
        grad = self.parameter.grad
        if grad is None:
            return self.average.view_as(self.parameter)
        written = grad is not self._before or grad._version != self._version
        if written or grad.data_ptr() == self.bucket.data_ptr():  # as under gradient_as_bucket_view
            return None
        return self.average.view_as(grad) - grad.to(self.average.dtype) / scale


class ClearedBetweenSteps:
    """Refuses a backward pass that adds to the average of the step before: a velocity would take it in once more, and
    grow without end.

    Args:
        parameters: with gradients that one exchange averages.
        what_to_do: for the one who reads the refusal.
    """

    def __init__(self, parameters: Iterable[Tensor], what_to_do: str) -> None:
        self._what_to_do = what_to_do
        self._waiting: set[int] = set()
        """Which of the parameters have had no backward pass since the last step."""
        smallest = sorted((p for p in parameters if p.numel()), key=lambda p: p.numel())[:LOOKED_AT]
        self._count = len(smallest)
        for number, parameter in enumerate(smallest):
            look = _looks(weakref.ref(self), number, weakref.ref(parameter))
            weakref.finalize(self, parameter.register_hook(look).remove)  # type: ignore[no-untyped-call]

    def step_ended(self) -> None:
        """Gradients hold averages from now on."""
        self._waiting = set(range(self._count))

    def look(self, number: int, parameter: Tensor) -> None:
        """A gradient is about to be added to this parameter's.

        Raises:
            UsageError: to an average.
        """
        if number not in self._waiting:
            return
        if parameter.grad is not None and bool(parameter.grad.any()):
            raise UsageError(
                "this backward pass adds to the average of the step before, which momentum= would take in once more",
                hint=self._what_to_do,
            )
        self._waiting.discard(number)


def _looks(
    cleared: weakref.ref[ClearedBetweenSteps], number: int, parameter: weakref.ref[Tensor]
) -> Callable[[Tensor], None]:
    def look(gradient: Tensor) -> None:
        del gradient
        who, whose = cleared(), parameter()
        if who is not None and whose is not None:
            who.look(number, whose)

    return look
