"""Helpers shared by the packages of minisd: argument checks, atomic file writing, vocabulary files."""
