"""How good a run was, and the modes in which runs are made."""
