"""Commands for those who work on minisd, not installed with it: the figures and images of the READMEs."""
