"""Submission of commands as jobs on a Ray cluster; knows the command line, not the internals."""
