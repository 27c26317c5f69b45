"""A folder of anything -> a study: every file of it accepted, repaired, refused with a reason, or ignored."""
