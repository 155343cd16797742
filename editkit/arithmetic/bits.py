"""Intrinsics that numba lacks: the bits of a float as an integer of its width, and back; rounding to the nearest integer."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic


@intrinsic
def float_of_bits(context, bits):
    """int32 -> float32, int64 -> float64 with the same bits."""
    target, cast = (types.float32, ir.FloatType()) if bits.bitwidth == 32 else (types.float64, ir.DoubleType())
    return target(bits), lambda _, builder, __, args: builder.bitcast(args[0], cast)


@intrinsic
def int_of_bits(context, value):
    """float32 -> int32, float64 -> int64 with the same bits."""
    target = types.int32 if value.bitwidth == 32 else types.int64
    return target(value), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(value.bitwidth))


@intrinsic
def nearest_integer(context, value):
    """Round half to even, in the width of the argument, one vector instruction."""

    def generate(_, builder, __, args):
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [args[0].type]), args)

    return value(value), generate
