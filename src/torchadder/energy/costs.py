"""What an addition, a multiplication and a byte from memory cost. Nothing here counts."""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class OpEnergy:
    """Energy of one addition and of one multiplication, in pJ.

    Raises:
        ValueError: if a cost is negative or not a number.
    """

    add: float
    mul: float

    def __post_init__(self) -> None:
        for name in ("add", "mul"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} must be an energy of at least 0 pJ, got {value!r}")


@dataclass(frozen=True)
class CostTable:
    """Energy of arithmetic by number format, in pJ; the default is a 45 nm process at 0.9 V.

    Sources: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014,
    figure 1.1.9: int8 add 0.03 and mul 0.2, int32 add 0.1 and mul 3.1, fp16 add 0.4 and mul 1.1,
    fp32 add 0.9 and mul 3.7. The fp32 pair is the one of the adder detection paper
    (arXiv 2112.13608), the int8 pair the one of its supplement. bfloat16 is not in the source:
    it gets the fp16 pair, an upper bound for its shorter mantissa. Memory traffic, which costs
    more than arithmetic on most chips, is in none of these figures.

    Replace what differs on your hardware, for instance
    `dataclasses.replace(CostTable(), name="my chip", int8=OpEnergy(add=0.01, mul=0.1))`.

    Attributes:
        name: what the figures stand for; reports print it.
        float32: cost in float32; the other fields likewise for their formats.
        float64: None, as the source has no figure: counting a float64 layer asks for one.
    """

    name: str = "45 nm, 0.9 V (Horowitz, ISSCC 2014)"
    float32: OpEnergy = OpEnergy(add=0.9, mul=3.7)
    float16: OpEnergy = OpEnergy(add=0.4, mul=1.1)
    bfloat16: OpEnergy = OpEnergy(add=0.4, mul=1.1)
    int32: OpEnergy = OpEnergy(add=0.1, mul=3.1)
    int8: OpEnergy = OpEnergy(add=0.03, mul=0.2)
    uint8: OpEnergy = OpEnergy(add=0.03, mul=0.2)
    float64: OpEnergy | None = None

    def of(self, dtype: torch.dtype) -> OpEnergy:
        """Return the costs in `dtype`.

        Raises:
            ValueError: if the table has no figure for `dtype`.

        >>> CostTable().of(torch.int8).mul
        0.2
        """
        name = str(dtype).removeprefix("torch.")
        cost = getattr(self, name, None)
        if not isinstance(cost, OpEnergy):
            known = [f.name for f in fields(self) if isinstance(getattr(self, f.name), OpEnergy)]
            raise ValueError(
                f"cost table {self.name!r} has no energy for {name}; known are {', '.join(known)}: "
                f"pass costs with {name}, or dtype= to count every layer in another format"
            )
        return cost


@dataclass(frozen=True)
class MemoryCost:
    """Energy of moving one byte between a memory and the arithmetic, in pJ.

    Attributes:
        name: what the figure stands for; reports print it.
        pj_per_byte: energy of a byte read or written.

    Raises:
        ValueError: if the cost is negative or not a number.
    """

    name: str
    pj_per_byte: float

    def __post_init__(self) -> None:
        if not self.pj_per_byte >= 0:
            raise ValueError(
                f"pj_per_byte must be an energy of at least 0 pJ, got {self.pj_per_byte!r}"
            )


_SOURCE = "45 nm (Horowitz, ISSCC 2014)"

MEMORIES: dict[str, MemoryCost] = {
    "sram8k": MemoryCost(f"8 KB SRAM, {_SOURCE}", 10 / 8),
    "sram32k": MemoryCost(f"32 KB SRAM, {_SOURCE}", 20 / 8),
    "sram1m": MemoryCost(f"1 MB SRAM, {_SOURCE}", 100 / 8),
    "dram": MemoryCost(f"DRAM, lower end, {_SOURCE}", 1300 / 8),
}
"""Memories of figure 1.1.9 of M. Horowitz, ISSCC 2014, which gives the energy of 64 bits: 10 pJ,
20 pJ and 100 pJ from caches of 8 KB, 32 KB and 1 MB, 1.3 to 2.6 nJ from DRAM."""
