"""`Adder2d` as an ONNX function: the adder layer written with standard operators.

A model file carries the definition, so a runtime needs to know nothing of adder nets; one that does
may put a kernel of its own in the place of the node `torchadder.Adder2d`.

No standard operator sums absolute differences, and spelling them out by broadcasting would make a
tensor of all N O C P Q differences of a tap: 51 MB an image for most layers of a ResNet-18. The
function walks over the taps (r, s) instead and, inside, over the channels of a group, and holds one
difference for each output: a few times the memory of the output, whatever the kernel. The two loops
also keep the sums short, channels first and taps then, which bounds the rounding
(`terms_in_a_row`). Numbers of pixels, images and groups are read at run time, from the
operands and attributes, so one definition serves all layers and every size of image.
"""

from __future__ import annotations

import functools

from onnx import FunctionProto, parser

DOMAIN = "torchadder"
NAME = "Adder2d"
VERSION = 1
OPSET = 18
"""Of the standard operators in the function; the oldest with every one of them."""

# Letters as everywhere: N C H W input, O filters, R S kernel, P Q output; Cg and Og of one group.
# Vectors of shapes and starts have rank 1 throughout, so that Concat joins them.
_TEXT = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{NAME} <strides, pads, dilations, group> (X, W) => (Y)
{{
  stride = Constant <value_ints: ints = @strides> ()
  padding = Constant <value_ints: ints = @pads> ()
  dilation = Constant <value_ints: ints = @dilations> ()
  G_scalar = Constant <value_int: int = @group> ()
  zero = Constant <value = int64 {{0}}> ()
  one = Constant <value = int64 {{1}}> ()
  first = Constant <value = int64[1] {{0}}> ()
  single = Constant <value = int64[1] {{1}}> ()
  rest = Constant <value = int64[1] {{-1}}> ()
  after_G = Constant <value = int64[1] {{3}}> ()
  image_axes = Constant <value = int64[2] {{2, 3}}> ()
  slice_axes = Constant <value = int64[2] {{3, 4}}> ()
  float_zero = Constant <value = float {{0}}> ()

  G = Unsqueeze (G_scalar, first)
  N = Shape <start = 0, end = 1> (X)
  O = Shape <start = 0, end = 1> (W)
  Cg = Shape <start = 1, end = 2> (W)
  RS = Shape <start = 2, end = 4> (W)
  Og = Div (O, G)

  padded = Pad (X, padding, , image_axes)
  HW = Shape <start = 2, end = 4> (padded)
  gaps = Sub (RS, one)
  reach = Mul (gaps, dilation)
  room = Sub (HW, reach)
  room_behind_first = Sub (room, one)
  last = Div (room_behind_first, stride)
  PQ = Add (last, one)
  last_start = Mul (last, stride)
  extent = Add (last_start, one)

  grouped_shape = Concat <axis = 0> (N, G, Cg, HW)
  grouped = Reshape (padded, grouped_shape)
  x = Transpose <perm = [2, 0, 1, 3, 4]> (grouped)

  filters_shape = Concat <axis = 0> (G, Og, Cg, RS)
  filters = Reshape (W, filters_shape)
  filters_last = Transpose <perm = [3, 4, 2, 0, 1]> (filters)
  w_shape = Concat <axis = 0> (rest, Cg, G, Og, single, single)
  w = Reshape (filters_last, w_shape)

  R, S = Split <num_outputs = 2> (RS)
  RxS = Mul (R, S)
  num_taps = Squeeze (RxS)
  numbers = Range (zero, num_taps, one)
  taps = Unsqueeze (numbers, rest)
  r = Div (taps, S)
  s = Mod (taps, S)
  tap = Concat <axis = 1> (r, s)
  begin = Mul (tap, dilation)
  end = Add (begin, extent)

  typed_zero = CastLike (float_zero, X)
  sums_shape = Concat <axis = 0> (N, G, Og, PQ)
  zeros = Expand (typed_zero, sums_shape)
  sums = Scan <num_scan_inputs = 3, body = one_tap (sum, w_r_s, from_r_s, to_r_s) => (next_sum) {{
    seen = Slice (x, from_r_s, to_r_s, slice_axes, stride)
    x_r_s = Unsqueeze (seen, after_G)
    part = Scan <num_scan_inputs = 2, body = one_channel (row, x_c, w_c) => (next_row) {{
      difference = Sub (x_c, w_c)
      distance = Abs (difference)
      next_row = Sub (row, distance)
    }}> (zeros, x_r_s, w_r_s)
    next_sum = Add (sum, part)
  }}> (zeros, w, begin, end)

  Y_shape = Concat <axis = 0> (N, O, PQ)
  Y = Reshape (sums, Y_shape)
}}
"""


@functools.cache
def adder2d() -> FunctionProto:
    """The adder layer as a function.

    ``Y[n,o,p,q] = -sum_{c,r,s} |X[n, c, p*sh + r*dh - ph, q*sw + s*dw - pw] - W[o,c,r,s]|``

    Inputs X (N, C, H, W) and W (O, C / group, R, S) of one floating type, in which sums are taken;
    attributes of ONNX's Conv: strides (sh, sw), pads (ph, pw, ph, pw), dilations (dh, dw), group.
    There is no bias: an Add follows where a layer has one.
    """
    function = parser.parse_function(_TEXT)
    function.doc_string = (
        "Y[n,o,p,q] = -sum |X[n,c,p*sh+r*dh-ph,q*sw+s*dw-pw] - W[o,c,r,s]| over c, r and s: the "
        "adder layer of AdderNet, arXiv 1912.13200, Eq. 2. Attributes as of Conv."
    )
    return function


def terms_in_a_row(channels: int, taps: int) -> int:
    """Additions that a term of the sum goes through: what bounds its rounding.

    >>> terms_in_a_row(64, 9)
    73
    """
    return channels + taps
