"""The jobs: each takes a config and writes artifacts; jobs communicate through artifacts, not imports."""

import os

# By default, a task that Ray's memory monitor kills is retried forever. Ray's core reads this limit once, at import. It
# equals MAX_RESTARTS in `pipelines.jobs.worker_deaths`.
os.environ.setdefault("RAY_task_oom_retries", "3")
