"""Tasks: a model with its loss, its parameter groups and its held-out metrics, as the one trainer sees it."""
