"""Getting jobs onto a cluster: knows commands, not internals."""
