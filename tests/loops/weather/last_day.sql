-- Per station: the temperatures (°F) of 24 hours, known when the last of them is over.
SELECT
    origin,
    time_hour + INTERVAL 1 HOUR AS known_at,
    min(temp) OVER last_day AS coldest_24h,
    max(temp) OVER last_day AS warmest_24h,
    avg(temp) OVER last_day AS mean_24h
FROM weather
WINDOW last_day AS (
    PARTITION BY origin ORDER BY time_hour
    RANGE BETWEEN INTERVAL 23 HOURS PRECEDING AND CURRENT ROW
)
ORDER BY origin, known_at
