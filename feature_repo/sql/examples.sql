-- One row per flight, as it is known at its SCHEDULED departure: the moment of the prediction.
-- What happens later (dep_time, dep_delay, arr_time, air_time) must not appear here, except in the
-- label. Flights without an arrival delay (cancelled, diverted) have no label and are left out.
WITH flight AS (
    SELECT
        *,
        time_hour + to_minutes(minute) AS scheduled_departure,  -- UTC
        hour * 60 + minute AS departure_minute,
        sched_arr_time // 100 * 60 + sched_arr_time % 100 AS arrival_minute
    FROM flights
)
SELECT
    strftime(make_date(year, month, day), '%Y-%m-%d')
        || '-' || carrier || flight || '-' || origin AS flight_id,
    scheduled_departure,
    tailnum,
    carrier,
    origin,
    dest,
    -- New York time, minutes after midnight
    departure_minute,
    isodow(make_date(year, month, day)) AS weekday,
    distance,
    -- By the two local clocks: it also carries the difference of the time zones.
    (arrival_minute - departure_minute + 1440) % 1440 AS scheduled_minutes,
    -- The timetable is public, so the queue to be expected is known beforehand.
    count(*) OVER (
        PARTITION BY origin ORDER BY scheduled_departure
        RANGE BETWEEN INTERVAL 30 MINUTES PRECEDING AND INTERVAL 30 MINUTES FOLLOWING
    ) AS departures_within_30_minutes,
    CAST(arr_delay > 15 AS INTEGER) AS late
FROM flight
QUALIFY arr_delay IS NOT NULL
ORDER BY scheduled_departure, flight_id
