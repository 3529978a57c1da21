"""Cells of Equinox over sequences: `import fusedrnn.jax.equinox`; needs jax and equinox.

y, (h, c) = fusedrnn.jax.equinox.RNN(equinox.nn.LSTMCell(10, 20, key=key))(x)
"""

from fusedrnn.libraries import needed

with needed("fusedrnn.jax.equinox", "equinox"):
    from fusedrnn.interop.jax.equinox import RNN as RNN
    from fusedrnn.interop.jax.equinox import __all__ as __all__
