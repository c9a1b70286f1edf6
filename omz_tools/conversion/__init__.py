"""Which stages a model needs, in which order, and in which processes."""
