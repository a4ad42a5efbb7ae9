# SPDX-License-Identifier: Apache-2.0
"""The local runner: environments, the executor of compiled pipelines, the run report."""
