"""The training step: what stands in for the parts of Composer that launch, or wait for, more than a step needs."""

STEP = 3
"""Counts changes of the operations of a step; on a GPU another one may round in another way, so the contract has it."""
