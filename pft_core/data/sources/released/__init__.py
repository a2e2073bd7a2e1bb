"""Formats of released data sets: each module has the function that turns a row of its files into a record."""
