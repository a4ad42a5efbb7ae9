-- One row per station and hour: the weather when the hour is over, and the temperature (°F) six
-- hours later, which is the label.
SELECT
    now.origin,
    now.time_hour + INTERVAL 1 HOUR AS known_at,
    now.hour,
    now.temp AS temperature,
    now.dewp AS dew_point,
    now.humid AS humidity,
    now.wind_speed,
    now.pressure,
    later.temp AS temperature_in_6_hours
FROM weather AS now
JOIN weather AS later
    ON later.origin = now.origin AND later.time_hour = now.time_hour + INTERVAL 6 HOURS
WHERE later.temp IS NOT NULL
ORDER BY known_at, now.origin
