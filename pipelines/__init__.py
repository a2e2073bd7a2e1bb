"""The jobs: each file is a config section and run(config) -> artifact. Jobs meet through artifacts, not imports."""

import os

# Ray's own monitor of memory kills a task without end; its core reads this once, as ray is imported. As many times as
# other deaths: see `pipelines.jobs.worker_deaths`.
os.environ.setdefault("RAY_task_oom_retries", "3")
