-- Per aircraft: facts of the register. It does not say since when, so: since before the first flight.
SELECT
    tailnum,
    TIMESTAMPTZ '2012-01-01' AS known_at,
    year AS built,
    seats
FROM planes
ORDER BY tailnum
