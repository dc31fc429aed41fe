"""The lessons: plain-text sources in src/, executed notebooks beside this file, the builder and the lint."""
