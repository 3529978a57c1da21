"""Files of Keras 3: `import fusedrnn.keras`; needs h5py (extra `keras`), not Keras.

model = fusedrnn.keras.load("model.keras")                    # of a Sequential
fusedrnn.keras.load_weights(lstm, "model.weights.h5")         # into modules of one's own
"""

from fusedrnn.libraries import needed

with needed("fusedrnn.keras", "h5py"):
    from fusedrnn.interop.keras import *  # noqa: F403
    from fusedrnn.interop.keras import __all__ as __all__
