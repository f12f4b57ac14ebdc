"""The floor: what no system on this machine can beat."""
