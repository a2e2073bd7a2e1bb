"""A policy in the terminal: a person types scenarios, and both poles of an axis answer side by side."""
