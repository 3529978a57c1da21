"""Flax's nnx.RNN with the kernels of this library: `import fusedrnn.jax.nnx`; needs jax and flax.

y = fusedrnn.jax.nnx.RNN(nnx.LSTMCell(10, 20, rngs=rngs))(x)           # as flax.nnx.RNN
"""

from fusedrnn.libraries import needed

with needed("fusedrnn.jax.nnx", "flax"):
    from fusedrnn.interop.jax.nnx import RNN as RNN
    from fusedrnn.interop.jax.nnx import __all__ as __all__
