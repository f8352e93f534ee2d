"""The training step: what stands in for the parts of Composer that launch, or wait for, more than a step needs."""
