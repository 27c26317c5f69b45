"""medmtl: multi-task learning for medical images from several sites, with gaps in the label table."""

__version__ = "0.4.0"
