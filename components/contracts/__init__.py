# SPDX-License-Identifier: Apache-2.0
"""What crosses between families: files, layouts and records; and what runs a model package.

Standard library and pyarrow only, but for the two modules that run a graph.
"""
