"""How a run resumes as if it had never stopped: checkpoints, what must be the same, and whose folder it is."""
