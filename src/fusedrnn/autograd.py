"""Gradients of NumPy code around modules: `import fusedrnn.autograd`; needs HIPS autograd (extra `autograd`).

def loss(tokens, tags):
    y, state = lstm(embedding(tokens))
    return fusedrnn.autograd.cross_entropy(head(y), tags)

value = fusedrnn.autograd.value_and_backward(loss)(tokens, tags)    # adds to the grads of all three modules
"""

from fusedrnn.libraries import needed

with needed("fusedrnn.autograd", "autograd"):
    from fusedrnn.interop.autograd import *  # noqa: F403
    from fusedrnn.interop.autograd import __all__ as __all__
