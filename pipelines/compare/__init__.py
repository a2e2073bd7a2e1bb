"""`pft compare`: methods, seeds and variants side by side, in a report that can be believed."""
