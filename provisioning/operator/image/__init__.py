"""The recipe of the operator's container image."""
