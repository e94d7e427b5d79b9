"""The few vector operations that numba cannot express, as LLVM IR: one call handles 64 or 32 floats.

Two families. The first packs hits to the front of a register (``vpcompressd``) and needs AVX-512: it has no
branch, so its time does not depend on how many hits there are. The second asks for a bit mask of the hits and
leaves the packing to a loop over its set bits; LLVM lowers it on any processor. Nothing checks bounds, and a
packing store always writes 16 lanes, so the arrays it writes to need that much room behind the last entry.

In the first family the offset where the next hit goes and the number of hits at or above ``high`` travel in
one int64, low and high half, because an intrinsic returns one number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core.registry import cpu_target

intrinsic: Callable[[Callable[..., Any]], Any] = (
    extending.intrinsic
)  # its own annotations count the typing context as an argument

_BOOL, _I16, _I32, _I64 = (ir.IntType(width) for width in (1, 16, 32, 64))
_F32 = ir.FloatType()
_LANES = 16
_KEY_MASK = 0x7FFFFFFF
_UNROLL = 4  # registers per call: shorter bodies leave the loop limited by its own instructions
STRIDE = _LANES * _UNROLL
MASK_STRIDE = 32
_FEW = 4  # lanes: more of 16 are seldom candidates
LINE = 16  # floats of a cache line

HAS_COMPRESS: bool = "+avx512f" in str(cpu_target.target_context.codegen().magic_tuple()[2])
"""Whether numba compiles for a processor with AVX-512; NUMBA_CPU_NAME and NUMBA_CPU_FEATURES have a say."""


def _vector(element: Any, lanes: int = _LANES) -> Any:
    return ir.VectorType(element, lanes)


_INTS, _FLOATS = _vector(_I32), _vector(_F32)


def _splat(builder: Any, scalar: Any, lanes: int = _LANES) -> Any:
    kind = _vector(scalar.type, lanes)
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(_vector(_I32, lanes), [0] * lanes))


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _load(builder: Any, pointer: Any) -> Any:
    loaded = builder.load(pointer)
    loaded.align = 4
    return loaded


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, pointer).align = 4


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def _lanes(builder: Any, vector: Any, begin: int, count: int) -> Any:
    lanes = ir.Constant(_vector(_I32, count), list(range(begin, begin + count)))
    return builder.shuffle_vector(vector, vector, lanes)


def _compress(builder: Any, values: Any, mask: Any) -> Any:
    zero = ir.Constant(_INTS, [0] * _LANES)
    return _call(builder, "llvm.x86.avx512.mask.compress.v16i32", _INTS, values, zero, mask)


def _ones(builder: Any, mask: Any) -> Any:
    return builder.zext(_call(builder, "llvm.ctpop.i16", _I16, builder.bitcast(mask, _I16)), _I64)


def _keys(builder: Any, bits: Any, lanes: int = _LANES) -> Any:
    return builder.and_(bits, ir.Constant(_vector(_I32, lanes), [_KEY_MASK] * lanes))


def _source(builder: Any, address: Any, index: Any, vector: Any) -> Any:
    """A pointer to float ``index`` of those at ``address``."""
    floats = builder.inttoptr(address, _F32.as_pointer())
    return builder.bitcast(builder.gep(floats, [index]), vector.as_pointer())


@intrinsic
def float_at(_: Any, address: Any, i: Any) -> Any:
    """The float32 at ``address`` + 4 i."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        del context, sig
        return _load(builder, _source(builder, arguments[0], arguments[1], _F32))

    return types.float32(types.int64, types.int64), generate


def _scan(add: bool, stream: bool = False) -> Any:
    """Scan ``STRIDE`` floats from ``i`` on and append those with a key >= ``low``; see :data:`scan_add`."""

    @intrinsic
    def scan(
        _: Any,
        total: Any,
        residual: Any,
        gradient: Any,
        i: Any,
        low: Any,
        high: Any,
        where: Any,
        found: Any,
        both: Any,
    ) -> Any:
        limits = types.int32, types.int32
        signature = types.int64(total, residual, types.int64, types.int64, *limits, where, found, types.int64)

        def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            total, residual, gradient, i, low, high, where, found, both = arguments
            kinds = sig.args
            lows, highs = _splat(builder, low), _splat(builder, high)
            hits = []
            for register in range(_UNROLL):
                here = builder.add(i, ir.Constant(_I64, register * _LANES))
                target = _pointer(context, builder, kinds[0], total, here, _FLOATS)
                if add:
                    rest = _load(builder, _pointer(context, builder, kinds[1], residual, here, _FLOATS))
                    value = builder.fadd(rest, _load(builder, _source(builder, gradient, here, _FLOATS)))
                else:
                    value = _load(builder, target)
                bits = builder.bitcast(value, _INTS)
                keys = _keys(builder, bits)
                sent = builder.icmp_signed(">=", keys, highs)
                if add:
                    zero = ir.Constant(_FLOATS, [0.0] * _LANES)
                    stored = builder.store(builder.select(sent, zero, value), target)
                    stored.align = 4
                    if stream:
                        stored.align = 64
                        one = builder.module.add_metadata([ir.Constant(_I32, 1)])
                        stored.set_metadata("nontemporal", one)
                hits.append((here, bits, builder.icmp_signed(">=", keys, lows), sent))
            steps = ir.Constant(_INTS, list(range(_LANES)))
            for here, bits, candidates, _ in hits:
                count = builder.and_(both, ir.Constant(_I64, 0xFFFFFFFF))  # the low half
                positions = builder.add(_splat(builder, builder.trunc(here, _I32)), steps)
                packed = [
                    (
                        _pointer(context, builder, kind, array, count, _INTS),
                        _compress(builder, values, candidates),
                    )
                    for kind, array, values in ((kinds[6], where, positions), (kinds[7], found, bits))
                ]
                ones = _ones(builder, candidates)
                # A store of a whole register costs several times one of its first four lanes.
                for slot, values in packed:
                    _store(
                        builder,
                        _lanes(builder, values, 0, _FEW),
                        builder.bitcast(slot, _vector(_I32, _FEW).as_pointer()),
                    )
                with builder.if_then(builder.icmp_unsigned(">", ones, ir.Constant(_I64, _FEW)), likely=False):
                    for slot, values in packed:
                        _store(builder, values, slot)
                both = builder.add(both, ones)
            sent = [mask for *_, mask in hits]
            while len(sent) > 1:
                lanes = [ir.Constant(_I32, lane) for lane in range(2 * sent[0].type.count)]
                sent = [
                    builder.shuffle_vector(one, other, ir.Constant(_vector(_I32, len(lanes)), lanes))
                    for one, other in zip(sent[::2], sent[1::2], strict=True)
                ]
            number = _call(builder, "llvm.ctpop.i64", _I64, builder.bitcast(sent[0], _I64))
            return builder.add(both, builder.shl(number, ir.Constant(_I64, 32)))

        return signature, generate

    return scan


scan_add = _scan(add=True)
"""``(total, residual, gradient, i, low, high, where, found, both) -> both``: ``total = residual + gradient`` over 64
floats from ``i`` on; positions and bits of every key >= ``low`` are appended to ``where`` and ``found``, and those >=
``high`` are 0 in ``total`` at once. ``gradient`` is the address of float 0. AVX-512."""
scan_stream = _scan(add=True, stream=True)
"""The same, past the caches, where float ``i`` of ``total`` lies at a multiple of 64 bytes. AVX-512."""
scan_only = _scan(add=False)
"""The same of what is in ``total``, which does not change. AVX-512."""


@intrinsic
def keep_between(
    _: Any,
    found: Any,
    where: Any,
    i: Any,
    low: Any,
    high: Any,
    last: Any,
    out_found: Any,
    out_where: Any,
    at: Any,
) -> Any:
    """Of 16 candidates from ``i`` on, append those with ``low`` < key <= ``high``, and those with key = ``low``
    up to position ``last``, to ``out_found`` and ``out_where`` (int32 or int64); returns the next place.
    AVX-512."""
    signature = types.int64(
        found, where, types.int64, types.int32, types.int32, types.int32, out_found, out_where, types.int64
    )

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        found, where, i, low, high, last, out_found, out_where, at = arguments
        kinds = sig.args
        bits = _load(builder, _pointer(context, builder, kinds[0], found, i, _INTS))
        positions = _load(builder, _pointer(context, builder, kinds[1], where, i, _INTS))
        keys, lows = _keys(builder, bits), _splat(builder, low)
        above = builder.icmp_signed(">", keys, lows)
        below = builder.icmp_signed("<=", keys, _splat(builder, high))
        tied = builder.icmp_signed("==", keys, lows)
        early = builder.icmp_signed("<=", positions, _splat(builder, last))
        kept = builder.or_(builder.and_(above, below), builder.and_(tied, early))
        slot = _pointer(context, builder, kinds[6], out_found, at, _INTS)
        _store(builder, _compress(builder, bits, kept), slot)
        packed = _compress(builder, positions, kept)
        if kinds[7].dtype == types.int64:
            packed = builder.zext(packed, _vector(_I64))
        slot = _pointer(context, builder, kinds[7], out_where, at, packed.type)
        _store(builder, packed, slot)
        return builder.add(at, _ones(builder, kept))

    return signature, generate


def _mask(add: bool) -> Any:
    @intrinsic
    def mask(_: Any, total: Any, residual: Any, gradient: Any, i: Any, low: Any) -> Any:
        signature = types.uint32(total, residual, types.int64, types.int64, types.int32)

        def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            total, residual, gradient, i, low = arguments
            floats, ints = _vector(_F32, MASK_STRIDE), _vector(_I32, MASK_STRIDE)
            target = _pointer(context, builder, sig.args[0], total, i, floats)
            if add:
                rest = _load(builder, _pointer(context, builder, sig.args[1], residual, i, floats))
                value = builder.fadd(rest, _load(builder, _source(builder, gradient, i, floats)))
                _store(builder, value, target)
            else:
                value = _load(builder, target)
            keys = _keys(builder, builder.bitcast(value, ints), MASK_STRIDE)
            return builder.bitcast(builder.icmp_signed(">=", keys, _splat(builder, low, MASK_STRIDE)), _I32)

        return signature, generate

    return mask


mask_add = _mask(add=True)
"""``(total, residual, gradient, i, low) -> uint32``: ``total = residual + gradient`` over 32 floats from ``i`` on;
bit j is set where the key of float i + j is at least ``low``. ``gradient`` is the address of float 0. Any processor."""
mask_only = _mask(add=False)
"""The same without the addition."""


@intrinsic
def drain(_: Any) -> Any:
    """Wait until other threads see what went past the caches."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        del sig, arguments
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def trailing_zeros(_: Any, bits: Any) -> Any:
    """The number of the lowest set bit of a uint32 that is not 0."""
    signature = types.int64(types.uint32)

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        del context, sig
        return builder.zext(_call(builder, "llvm.cttz.i32", _I32, arguments[0], ir.Constant(_BOOL, 1)), _I64)

    return signature, generate


@intrinsic
def put_at(_: Any, address: Any, i: Any, value: Any) -> Any:
    """float32 ``value`` becomes float i of those at ``address``."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        del sig
        address, i, value = arguments
        _store(builder, value, _source(builder, address, i, _F32))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), generate


def _line(stream: bool) -> Any:
    @intrinsic
    def line(_: Any, address: Any, i: Any, block: Any, j: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            address, i, block, j = arguments
            values = _load(builder, _pointer(context, builder, sig.args[2], block, j, _FLOATS))
            store = builder.store(values, _source(builder, address, i, _FLOATS))
            store.align = 4 * _LANES
            if stream:
                one = builder.module.add_metadata([ir.Constant(_I32, 1)])
                store.set_metadata("nontemporal", one)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, block, types.int64), generate

    return line


put_line = _line(stream=False)
"""``(address, i, block, j)``: the 16 floats of ``block`` from j on become those from i on at ``address``, where a cache
line begins. Any processor."""
stream_line = _line(stream=True)
"""The same past the caches: a line that is written as a whole need not be read first. :func:`drain` must follow."""
