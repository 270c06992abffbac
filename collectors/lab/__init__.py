"""The virtual fabric: a model of a GPU cluster's back-end network, and the device side of the protocols that tell of it."""
