"""The version of the training step."""

STEP = 3
"""Counts changes of the operations of a step; on a GPU another one may round in another way, so the contract has it."""
