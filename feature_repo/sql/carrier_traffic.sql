-- Per carrier and origin: the departures of three hours. When a row is known: see
-- origin_traffic.sql.
WITH departure AS (
    SELECT
        carrier,
        origin,
        dep_delay,
        time_hour + to_minutes(minute) + to_minutes(greatest(dep_delay, 0) + 1) AS known_at
    FROM flights
    WHERE dep_delay IS NOT NULL
)
SELECT
    carrier,
    origin,
    known_at,
    avg(dep_delay) OVER three_hours AS carrier_departure_delay_3h,
    avg(CAST(dep_delay > 15 AS INTEGER)) OVER three_hours AS carrier_late_share_3h
FROM departure
WINDOW three_hours AS (
    PARTITION BY carrier, origin ORDER BY known_at
    RANGE BETWEEN INTERVAL 3 HOURS PRECEDING AND CURRENT ROW
)
QUALIFY row_number() OVER (PARTITION BY carrier, origin, known_at) = 1
ORDER BY carrier, origin, known_at
