"""How far the masks of several annotators agree: pair by pair, as a consensus, as a map, and as a set."""
