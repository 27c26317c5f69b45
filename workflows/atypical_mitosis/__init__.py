"""Atypical against normal mitotic figures across scanners (AMi-Br, MIDOG 2025 track 2)."""
