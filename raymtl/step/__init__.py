"""One step of the outer loop: the meta-gradient, summed over workers."""
