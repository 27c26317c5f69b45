"""Studies that medmtl makes itself: real files with known truth, so that every step can be checked out of the box."""
