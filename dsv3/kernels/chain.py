"""Kernels that follow each other closely: programmatic dependent launch (Hopper and later).

A kernel normally starts when the one before it has ended and its writes can be seen; a microsecond passes in between,
in which the GPU reads nothing. Launched with `launch_pdl`, a kernel may start as soon as all programs of the one before
have begun and said so: it finds its place on an SM as others leave, and waits there. A decode step of 26 layers of five
such kernels saves a hundred of those microseconds.

The rule that keeps it safe: wait before the first access to memory, of any kind. The kernel before has then ended, and
it had itself waited for its predecessor; so everything earlier has ended, and a buffer that the allocator has given out
again is nobody else's.
"""

# pyright: basic
# pyright: reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl


def can_overlap(x: torch.Tensor) -> bool:
    """Whether kernels on the device of x may be launched with `launch_pdl`."""
    return x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (9, 0)


@triton.jit
def follow(OVERLAP: tl.constexpr):
    """Wait for the kernel before, then let the next one come. The first statement of every kernel of a chain."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
