"""What a model does: gates and cells, the steps that an output comes from, gradients by step, attention.

records = fusedrnn.interpret.cell_records(lstm, x)
print(fusedrnn.interpret.integrated_gradients(model, x, target=1).values)
"""

from fusedrnn.interpret.attention import AttentionMap, attention_maps
from fusedrnn.interpret.attribution import Attribution, integrated_gradients, saliency
from fusedrnn.interpret.flow import GradientFlow, gradient_flow
from fusedrnn.interpret.records import CellRecord, cell_records
from fusedrnn.interpret.relevance import lrp

__all__ = [
    "AttentionMap",
    "Attribution",
    "CellRecord",
    "GradientFlow",
    "attention_maps",
    "cell_records",
    "gradient_flow",
    "integrated_gradients",
    "lrp",
    "saliency",
]


def __dir__() -> list[str]:
    return __all__
