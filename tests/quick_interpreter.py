"""Plugin for test processes under TRITON_INTERPRET=1: makes Triton's interpreter twice as fast.

A kernel that starts patches ``triton.language``. The interpreter does so again for every function
that the kernel calls, which takes more time than the function: leave that out for functions that
use the language under the name that is patched already, which are all but Triton's own.
"""

from triton.runtime.interpreter import InterpretedFunction

_careful_call = InterpretedFunction.__call__


def _call(self, *args, **kwargs):
    if self.fn.__module__.startswith("triton."):
        return _careful_call(self, *args, **kwargs)
    return self.rewrite()(*args, **kwargs)


InterpretedFunction.__call__ = _call
