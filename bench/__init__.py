"""The measuring of trilogue: loads, the floor that no system beats, verification, tables and plots.

Owns every number that the README quotes. It knows the public names of ``trilogue.client`` and ``trilogue.cluster`` and
nothing of what lies under them, so that it measures what a user would get. Invariant: a rate is never shown without
the verification of the same run beside it.
"""
