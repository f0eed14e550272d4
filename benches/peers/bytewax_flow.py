"""The job as a Bytewax dataflow: one exchange, by series; the state of a series holds its ids and its rolling minute.

BOOTSTRAP=.. TOPIC=.. ALERT_TOPIC=.. python -m bytewax.run bytewax_flow -i 0 -a 'HOST:PORT;HOST:PORT'
"""

import atexit
import os
from collections import Counter

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from series import Series, parse

DEDUP_MS = 600_000
# In this process; printed when it ends.
counts = Counter(records=0, accepted=0, behind=0, duplicates=0, dead_letters=0, alerts=0)
atexit.register(lambda: print(orjson.dumps(counts).decode(), flush=True))


def parse_all(messages):
    """Readings keyed by their series; what is malformed is counted."""
    keyed = []
    for message in messages:
        try:
            reading = parse(message.value)
            keyed.append((f"{reading[1]}/{reading[2]}", reading))
        except (ValueError, TypeError, KeyError):
            counts["dead_letters"] += 1
    counts["records"] += len(messages)
    return keyed


class Judge(StatefulBatchLogic):
    """One series."""

    def __init__(self, resume):
        self.series, self.seen = resume or (Series(), {})

    def on_batch(self, readings):
        alerts = []
        series, seen = self.series, self.seen
        for reading_id, sensor, metric, value, time in readings:
            if reading_id in seen:
                counts["duplicates"] += 1
                continue
            seen[reading_id] = time
            while (oldest := next(iter(seen.items())))[1] < series.clock - DEDUP_MS:
                del seen[oldest[0]]
            counts["accepted"] += 1
            if series.add(time, value):
                counts["behind"] += 1
                continue
            for rule, firing, x in series.judge(metric, value):
                alert = orjson.dumps(
                    {
                        "rule": rule,
                        "sensor": sensor,
                        "metric": metric,
                        "value": x,
                        "state": "firing" if firing else "resolved",
                        "time": time,
                    }
                )
                alerts.append(KafkaSinkMessage(key=sensor.encode(), value=alert))
                counts["alerts"] += 1
        return alerts, self.RETAIN

    def snapshot(self):
        return self.series.copy(), self.seen.copy()


brokers = [os.environ["BOOTSTRAP"]]
flow = Dataflow("sensor_alerts")
fetch = {"fetch.queue.backoff.ms": "10"}
messages = op.input("readings", flow, KafkaSource(brokers, [os.environ["TOPIC"]], tail=False, add_config=fetch))
keyed = op.flat_map_batch("parse", messages, parse_all)
alerts = op.stateful_batch("judge", keyed, Judge)
op.output("alerts", op.key_rm("unkey", alerts), KafkaSink(brokers, os.environ["ALERT_TOPIC"]))
