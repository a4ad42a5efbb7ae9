-- Per origin: the weather of an hour, known when the hour is over.
SELECT
    origin,
    time_hour + INTERVAL 1 HOUR AS known_at,
    temp AS temperature,
    humid AS humidity,
    wind_speed,
    visib AS visibility,
    pressure,
    pressure - first_value(pressure) OVER (
        PARTITION BY origin ORDER BY time_hour
        RANGE BETWEEN INTERVAL 3 HOURS PRECEDING AND CURRENT ROW
    ) AS pressure_change_3h,
    sum(precip) OVER (
        PARTITION BY origin ORDER BY time_hour
        RANGE BETWEEN INTERVAL 5 HOURS PRECEDING AND CURRENT ROW
    ) AS precipitation_6h
FROM weather
ORDER BY origin, known_at
