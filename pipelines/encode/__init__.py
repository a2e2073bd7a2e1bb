"""The encoded layer of a prepared data set, made in bulk."""
