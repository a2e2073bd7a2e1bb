"""The jobs: each file is a config section and run(config) -> artifact. Jobs meet through artifacts, not imports."""
