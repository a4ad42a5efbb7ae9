-- Per origin: how departures are going. Two kinds of events change it, each known at its minute:
-- a flight leaves, or a flight is overdue because it is still there 15 minutes after its schedule.
-- Both come after the flight's own scheduled departure (one minute at least, although some leave
-- early), so that no flight sees its own outcome.
WITH flight AS (
    SELECT
        origin,
        dep_delay,
        time_hour + to_minutes(minute) AS scheduled_departure,
        scheduled_departure + to_minutes(greatest(dep_delay, 0) + 1) AS departed,
        scheduled_departure + INTERVAL 16 MINUTES AS found_overdue
    FROM flights
), event AS (
    SELECT origin, departed AS known_at, dep_delay, 0 AS overdue
    FROM flight WHERE dep_delay IS NOT NULL
    UNION ALL
    SELECT origin, found_overdue, NULL, 1
    FROM flight WHERE dep_delay > 15 OR dep_delay IS NULL
    UNION ALL
    -- It leaves. When a flight was cancelled is not recorded: it counts for three hours.
    SELECT origin, coalesce(departed, found_overdue + INTERVAL 3 HOURS), NULL, -1
    FROM flight WHERE dep_delay > 15 OR dep_delay IS NULL
)
SELECT
    origin,
    known_at,
    avg(dep_delay) OVER last_hour AS origin_departure_delay_1h,
    avg(CAST(dep_delay > 15 AS INTEGER)) OVER last_hour AS origin_late_share_1h,
    count(dep_delay) OVER last_hour AS origin_departures_1h,
    sum(overdue) OVER (PARTITION BY origin ORDER BY known_at RANGE UNBOUNDED PRECEDING)
        AS origin_overdue
FROM event
WINDOW last_hour AS (
    PARTITION BY origin ORDER BY known_at
    RANGE BETWEEN INTERVAL 1 HOUR PRECEDING AND CURRENT ROW
)
-- Rows of one minute share their window, so any of them will do.
QUALIFY row_number() OVER (PARTITION BY origin, known_at) = 1
ORDER BY origin, known_at
