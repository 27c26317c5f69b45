"""Worked studies: each turns a public data set into a manifest."""
