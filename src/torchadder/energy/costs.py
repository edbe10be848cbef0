"""What one addition and one multiplication cost, by number format. Nothing here counts."""

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
