"""What a conversion did, layer by layer, and how that reads as a table.

Plain records of names, shapes and reasons: this file holds no module and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One convolution, linear or adder layer of a converted model.

    Attributes:
        name: path of the layer in the model.
        kind: class of the layer before the conversion.
        shape: shape of its weight, empty where it has none yet.
        action: "converted", "already adder", or "kept: " and the reason.
        norm: path of the normalisation behind the layer, "functional batch_norm" and the like for
            one that is no module, None for a layer without one or that stays a multiplication.
        norm_kind: class of that normalisation.
        found_by: how ``norm`` was looked for: "trace" (the graph of the model's forward) or
            "order" (the next module registered); None where it was not looked for.
        aliases: further names of the same module.
        weight_norm: how its weight is normalised (:mod:`torchadder.awn`), None if it is not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    action: str
    norm: str | None = None
    norm_kind: str | None = None
    found_by: str | None = None
    aliases: tuple[str, ...] = ()
    weight_norm: str | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert_` did; ``str()`` is a table.

    Attributes:
        layers: every convolution, linear and adder layer, in the order of execution.
        order: where that order is from: "trace" or "order" (of registration).
        trace_error: why the model could not be traced, None if it could.
    """

    layers: tuple[LayerReport, ...]
    order: str
    trace_error: str | None = None

    @property
    def converted(self) -> list[str]:
        """Names of the layers that became adder layers in this call."""
        return [layer.name for layer in self.layers if layer.action == "converted"]

    @property
    def kept(self) -> dict[str, str]:
        """Why each layer that stays a multiplication does so, by name."""
        prefix = "kept: "
        return {
            layer.name: layer.action.removeprefix(prefix)
            for layer in self.layers
            if layer.action.startswith(prefix)
        }

    @property
    def missing_norm(self) -> list[str]:
        """Names of the layers converted in this call that have no normalisation behind them."""
        return [
            layer.name
            for layer in self.layers
            if layer.action == "converted" and layer.norm is None
        ]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "kind", "weight", "action", "norm behind")]
        for layer in self.layers:
            norm = "-" if layer.found_by is None else layer.norm or "MISSING"
            if layer.norm_kind is not None:
                norm += f" ({layer.norm_kind})"
            if layer.found_by == "order":
                norm += " by order"
            shape = "x".join(str(size) for size in layer.shape) or "-"
            rows.append((layer.name or "(model)", layer.kind, shape, layer.action, norm))
        if any(layer.weight_norm for layer in self.layers):
            column = ["weight norm", *(layer.weight_norm or "-" for layer in self.layers)]
            rows = [(*row, cell) for row, cell in zip(rows, column, strict=True)]
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        adders = sum(layer.action == "already adder" for layer in self.layers)
        lines.append(
            f"{len(self.converted)} converted ({len(self.missing_norm)} without a norm), "
            f"{len(self.kept)} kept, {adders} adder layers before"
        )
        if self.trace_error is not None:
            lines.append(f"not traced, so by order of registration: {self.trace_error}")
        return "\n".join(line.rstrip() for line in lines)
