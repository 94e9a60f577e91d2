"""The fast formulation of GLEAN for CPUs."""
