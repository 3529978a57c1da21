"""Recurrent layers as functions that JAX transforms: `import fusedrnn.jax`; needs jax (extra `jax`).

y, (h, c) = fusedrnn.jax.lstm(x, params)                    # under jit, grad, vmap and inside of scan
"""

from fusedrnn.libraries import needed

with needed("fusedrnn.jax", "jax"):
    from fusedrnn.interop.jax.layers import __all__ as __all__
    from fusedrnn.interop.jax.layers import gru as gru
    from fusedrnn.interop.jax.layers import lstm as lstm
    from fusedrnn.interop.jax.layers import rnn as rnn
