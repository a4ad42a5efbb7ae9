# SPDX-License-Identifier: Apache-2.0
"""What the payload logger tells Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter(
    "kfloop_payload_events",
    "Events by type and what became of them, each counted once when that is known: joined, orphan, "
    "duplicate, conflict, unreadable, dropped, sampled_out, ignored, refused.",
    ("type", "outcome"),
)
QUEUED = Gauge("kfloop_payload_queued_events", "Events that wait for the writer.")
QUEUED_BYTES = Gauge("kfloop_payload_queued_bytes", "Bytes of their payloads.")
WAITING = Gauge("kfloop_payload_waiting_events", "Events that wait for their other half.")
UNFLUSHED = Gauge("kfloop_payload_unflushed_rows", "Rows that are not in a file yet.")
LIMITS = Gauge(
    "kfloop_payload_limit",
    "How much may be in memory, and is lost with the process: queued_events, waiting_events, "
    "unflushed_rows.",
    ("what",),
)
ROWS = Counter("kfloop_payload_rows", "Rows in files.", ("service", "version"))
DROPPED_ROWS = Counter("kfloop_payload_dropped_rows", "Rows that no file took.", ("why",))
FLUSH = Histogram(
    "kfloop_payload_flush_seconds",
    "Time of writing a file, by result: ok or failed.",
    ("result",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30),
)
