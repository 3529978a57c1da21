"""Modules of PyTorch with the kernels of this library: `import fusedrnn.torch`; needs torch (extra `torch`).

lstm = fusedrnn.torch.LSTM(10, 20)          # as torch.nn.LSTM
model = fusedrnn.torch.convert(model)       # every recurrent module of a model, in place
"""

from fusedrnn.libraries import needed

with needed("fusedrnn.torch", "torch"):
    from fusedrnn.interop.torch import *  # noqa: F403
    from fusedrnn.interop.torch import __all__ as __all__
