"""Reading operands, two neighbouring values at a time."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_pair(pointer):
    """Two neighbouring values as float32, in one access: the address must be that of a pair.

    The halves of the wide integer are the registers that a 64-bit access fills; taking them apart
    costs nothing for float32 and one instruction a value for the half precisions.
    """
    if pointer.dtype.element_ty == tl.float32:
        both = tl.load(pointer.to(tl.pointer_type(tl.int64)))
        first = both.to(tl.int32).to(tl.float32, bitcast=True)
        second = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        return first, second
    else:
        half: tl.constexpr = pointer.dtype.element_ty
        both = tl.load(pointer.to(tl.pointer_type(tl.int32)))
        first = both.to(tl.int16).to(half, bitcast=True).to(tl.float32)
        second = (both >> 16).to(tl.int16).to(half, bitcast=True).to(tl.float32)
        return first, second
