"""What must come out, worked out a second time: slowly, from the topic itself, statistics from the readings each time.

The job is that of `make bench`: per series (sensor and metric), in the order of its partition,
- a message that is no JSON, lacks a field or has a value that is no number is a dead letter;
- an id that the series accepted with an event time of at most ten minutes before its newest is a duplicate;
- every other reading is accepted, and `behind` if a newer one of its series came before it;
- the window is the accepted readings of (newest - 60 s, newest];
- a rule that begins to hold fires and one that ceases to hold resolves: each is an alert.

A reading that is behind changes no alert for the peers. streamgauge, too, judges it by no statistic, but a single value
beyond its limit is an alert of its own (docs/semantics.md, 6): fired and resolved at once. `alerts` holds both sets.
"""

import json
import math
from bisect import insort
from collections import namedtuple
from datetime import datetime

import orjson
from confluent_kafka import Consumer, KafkaError, TopicPartition

Rule = namedtuple("Rule", "name metric statistic above limit")
RULES = [
    Rule("temperature", "temperature", "value", True, 35.0),
    Rule("humidity", "humidity", "value", False, 30.0),
    Rule("pressure", "pressure", "value", True, 1050.0),
    Rule("pm10", "pm10", "value", True, 80.0),
    Rule("pm25", "pm25", "value", True, 50.0),
    Rule("co2", "co2", "value", True, 1500.0),
    Rule("pm10-mean", "pm10", "mean", True, 35.00371),
    Rule("pm10-deviation", "pm10", "deviation", True, 4.00371),
]
BY_METRIC = {m: [r for r in RULES if r.metric == m] for m in {r.metric for r in RULES}}
Alert = namedtuple("Alert", "rule sensor metric state time")


def read_all(bootstrap, topic):
    """All payloads of a topic, in the order of their partitions."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "truth",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 10,
        }
    )
    partitions = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    while partitions:
        for message in consumer.consume(10_000, timeout=1):
            if message.error() is None:
                yield message.value()
            elif message.error().code() == KafkaError._PARTITION_EOF:
                partitions.discard(message.partition())
            else:
                raise RuntimeError(message.error())
    consumer.close()


def millis(text):
    time = datetime.fromisoformat(text)
    return round(time.timestamp() * 1000)


def decode(payload):
    try:
        r = orjson.loads(payload)
        value = r["value"]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return r["unique_reading_id"], r["sensor_id"], r["type"], value, millis(r["timestamp"])
    except (ValueError, TypeError, KeyError):
        return None


class Series:
    __slots__ = ("clock", "episodes", "firing", "seen", "window")

    def __init__(self):
        self.clock, self.seen, self.window, self.firing = None, {}, [], {}
        self.episodes = []  # of the value rule: [start, end or None]

    def statistic(self, name, value):
        if name == "value":
            return value
        values = [v for _, v in self.window]
        mean = math.fsum(values) / len(values)
        if name == "mean":
            return mean
        return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else None


def expected(bootstrap, topic):
    """The counts, and the alerts with the numbers that were judged: of the peers, and those that streamgauge adds."""
    series = {}
    counts = dict.fromkeys(("records", "accepted", "behind", "duplicates", "dead_letters"), 0)
    alerts, added = {}, {}
    for payload in read_all(bootstrap, topic):
        counts["records"] += 1
        reading = decode(payload)
        if reading is None:
            counts["dead_letters"] += 1
            continue
        reading_id, sensor, metric, value, time = reading
        s = series.setdefault((sensor, metric), Series())
        if s.clock is not None and s.seen.get(reading_id, -1) >= s.clock - 600_000:
            counts["duplicates"] += 1
            continue
        counts["accepted"] += 1
        is_behind = s.clock is not None and time < s.clock
        s.clock = time if s.clock is None else max(s.clock, time)
        s.seen[reading_id] = time
        while (oldest := next(iter(s.seen.items())))[1] < s.clock - 700_000:
            del s.seen[oldest[0]]
        insort(s.window, (time, value))
        s.window = [entry for entry in s.window if entry[0] > s.clock - 60_000]
        if is_behind:
            counts["behind"] += 1
            judge_behind(s, sensor, metric, value, time, added)
        else:
            judge(s, sensor, metric, value, time, alerts)
    return counts, alerts, added


def judge(s, sensor, metric, value, time, alerts):
    for rule in BY_METRIC.get(metric, []):
        x = s.statistic(rule.statistic, value)
        if x is None:
            continue
        beyond = x > rule.limit if rule.above else x < rule.limit
        if beyond == s.firing.get(rule.name, False):
            continue
        s.firing[rule.name] = beyond
        alerts[Alert(rule.name, sensor, metric, "firing" if beyond else "resolved", time)] = x
        if rule.statistic == "value":
            if beyond:
                s.episodes.append([time, None])
            else:
                s.episodes[-1][1] = time


def judge_behind(s, sensor, metric, value, time, added):
    for rule in BY_METRIC.get(metric, []):
        beyond = value > rule.limit if rule.above else value < rule.limit
        inside = any(start <= time and (end is None or time < end) for start, end in s.episodes)
        if rule.statistic == "value" and beyond and not inside:
            s.episodes.insert(0, [time, time])
            for state in ("firing", "resolved"):
                added[Alert(rule.name, sensor, metric, state, time)] = value


def agrees_with_produce(counts, path):
    """Whether the counts are those that `streamgauge produce` wrote down; the reason if not."""
    truth = json.loads(path.read_text())
    outcome = truth["outcome"]
    wanted = {
        "records": truth["records"],
        "accepted": outcome["accepted"],
        "behind": outcome["behind"],
        "duplicates": outcome["duplicates"],
        "dead_letters": sum(truth["dead_letters"].values()) + sum(truth["dead_values"].values()),
    }
    return None if counts == wanted else f"the topic holds {counts}, produce wrote down {wanted}"
