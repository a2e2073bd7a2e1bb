"""The alpha/beta search: `pft tune`."""
