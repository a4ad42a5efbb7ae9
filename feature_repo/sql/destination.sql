-- Per destination: the arrivals there in six hours. When a row is known: see aircraft.sql.
WITH flight AS (
    SELECT
        *,
        time_hour + to_minutes(minute) AS scheduled_departure,
        scheduled_departure + to_minutes(dep_delay) AS departed,
        coalesce(tzone, 'America/Puerto_Rico') AS destination_zone,
        departed AT TIME ZONE destination_zone AS departed_there,
        date_trunc('day', departed_there) + to_minutes(arr_time // 100 * 60 + arr_time % 100)
            AS same_day_arrival,
        same_day_arrival + CASE WHEN same_day_arrival < departed_there THEN INTERVAL 1 DAY
            ELSE INTERVAL 0 DAYS END AS arrived_there
    FROM flights LEFT JOIN airports ON dest = faa
    WHERE arr_delay IS NOT NULL
), arrival AS (
    SELECT
        dest,
        arr_delay,
        arr_delay - dep_delay AS lost_on_the_way,
        greatest(
            arrived_there AT TIME ZONE destination_zone,
            scheduled_departure + INTERVAL 1 MINUTE
        ) AS arrived
    FROM flight
)
SELECT
    dest,
    arrived,
    avg(arr_delay) OVER six_hours AS destination_arrival_delay_6h,
    -- Arrival delay less departure delay: holding, headwind, a full airport.
    avg(lost_on_the_way) OVER six_hours AS destination_minutes_lost_6h
FROM arrival
WINDOW six_hours AS (
    PARTITION BY dest ORDER BY arrived
    RANGE BETWEEN INTERVAL 6 HOURS PRECEDING AND CURRENT ROW
)
-- Rows of one minute share their window, so any of them will do.
QUALIFY row_number() OVER (PARTITION BY dest, arrived) = 1
ORDER BY dest, arrived
