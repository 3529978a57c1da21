"""Cells that users define: expressions, their gradients, and the programs that compute both."""

from fusedrnn.symbolic.cell import DefinedCell
from fusedrnn.symbolic.define import define_cell
from fusedrnn.symbolic.program import Instruction, Program
from fusedrnn.symbolic.serial import cell_from_json, cell_to_json

__all__ = ["DefinedCell", "Instruction", "Program", "cell_from_json", "cell_to_json", "define_cell"]
