"""The local runner: environments, the executor of compiled pipelines, the run report."""
