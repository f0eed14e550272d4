"""What the Python peers share: the message, the rules, and a series' rolling minute."""

import math
from bisect import insort
from datetime import datetime

import orjson

# Rules by metric: name, statistic, whether beyond is above, limit.
RULES = {
    "temperature": [("temperature", "value", True, 35.0)],
    "humidity": [("humidity", "value", False, 30.0)],
    "pressure": [("pressure", "value", True, 1050.0)],
    "pm10": [
        ("pm10", "value", True, 80.0),
        ("pm10-mean", "mean", True, 35.00371),
        ("pm10-deviation", "deviation", True, 4.00371),
    ],
    "pm25": [("pm25", "value", True, 50.0)],
    "co2": [("co2", "value", True, 1500.0)],
}
WINDOW_MS = 60_000


class Series:
    """The last minute of a series in event time, its mean and deviation (Welford, with removal), and what is firing."""

    __slots__ = ("clock", "firing", "m2", "mean", "window")

    def __init__(self):
        self.clock, self.mean, self.m2, self.window, self.firing = 0, 0.0, 0.0, [], set()

    def add(self, time, value):
        """Returns whether the reading is behind a newer one."""
        window = self.window
        insort(window, (time, value))
        d = value - self.mean
        self.mean += d / len(window)
        self.m2 += d * (value - self.mean)
        if time < self.clock:
            return True
        self.clock = time
        while window[0][0] <= time - WINDOW_MS:
            _, old = window.pop(0)
            d = old - self.mean
            self.mean -= d / len(window)
            self.m2 -= d * (old - self.mean)
        return False

    def judge(self, metric, value):
        """Yields what changes: rule, whether it fires now, the number that was judged."""
        for rule, statistic, above, limit in RULES.get(metric, ()):
            x = value if statistic == "value" else self.mean if statistic == "mean" else self.deviation()
            if x is None:
                continue
            beyond = x > limit if above else x < limit
            if beyond != (rule in self.firing):
                self.firing ^= {rule}
                yield rule, beyond, x

    def copy(self):
        other = Series()
        other.clock, other.mean, other.m2 = self.clock, self.mean, self.m2
        other.window, other.firing = self.window.copy(), self.firing.copy()
        return other

    def deviation(self):
        n = len(self.window)
        return math.sqrt(max(self.m2, 0.0) / (n - 1)) if n > 1 else None


def parse(payload):
    """A reading as a tuple; ValueError, TypeError or KeyError if it is malformed."""
    r = orjson.loads(payload)
    value = r["value"]
    if not isinstance(value, (int, float)):
        raise TypeError("the value is not a number")
    time = round(datetime.fromisoformat(r["timestamp"]).timestamp() * 1000)
    return r["unique_reading_id"], r["sensor_id"], r["type"], value, time
