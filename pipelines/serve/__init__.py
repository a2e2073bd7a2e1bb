"""Serving: a policy behind Ray Serve, asked under any preference."""
