"""The operator's kernels for GPUs, in Triton: NVIDIA and AMD from one source, nothing to compile.

``forward``, ``backward_input``, ``backward_weight`` and ``depthwise`` hold the kernels, ``packing``
and ``tiles`` what they are fed with, ``tuning`` measured tiles; ``launch`` calls them on tensors.
``int8`` and ``int8_launch`` do the same for adder layers of bytes.
This package is imported when the first GPU tensor arrives; it knows nothing of autograd or layers.
README.md derives the formulas and says what the machine code shows.
"""
