-- Per aircraft: how its flights out of New York went.
-- A row is known when the flight has ARRIVED, and never before the flight's own scheduled departure
-- (some leave early), so that no flight sees its own outcome.
WITH flight AS (
    SELECT
        *,
        time_hour + to_minutes(minute) AS scheduled_departure,
        scheduled_departure + to_minutes(dep_delay) AS departed,
        -- The four destinations that are not listed are in Puerto Rico and the Virgin Islands.
        coalesce(tzone, 'America/Puerto_Rico') AS destination_zone,
        departed AT TIME ZONE destination_zone AS departed_there,
        -- arr_time is a clock time at the destination, HHMM
        date_trunc('day', departed_there) + to_minutes(arr_time // 100 * 60 + arr_time % 100)
            AS same_day_arrival,
        same_day_arrival + CASE WHEN same_day_arrival < departed_there THEN INTERVAL 1 DAY
            ELSE INTERVAL 0 DAYS END AS arrived_there
    FROM flights LEFT JOIN airports ON dest = faa
    WHERE arr_delay IS NOT NULL AND tailnum IS NOT NULL
), arrival AS (
    SELECT
        *,
        greatest(
            arrived_there AT TIME ZONE destination_zone,
            scheduled_departure + INTERVAL 1 MINUTE
        ) AS arrived,
        arrived AT TIME ZONE 'America/New_York' AS arrived_new_york
    FROM flight
)
SELECT
    tailnum,
    arrived,
    arr_delay AS last_arrival_delay,
    date_diff('minute', departed, arrived) AS last_flight_minutes,
    -- Like departure_minute of the examples: New York time, minutes after midnight.
    hour(arrived_new_york) * 60 + minute(arrived_new_york) AS last_arrival_minute,
    avg(arr_delay) OVER (
        PARTITION BY tailnum ORDER BY arrived, scheduled_departure
        ROWS BETWEEN 9 PRECEDING AND CURRENT ROW
    ) AS mean_arrival_delay_10_flights
FROM arrival
QUALIFY row_number() OVER (
    PARTITION BY tailnum, arrived ORDER BY scheduled_departure DESC
) = 1
ORDER BY tailnum, arrived
