"""The pipeline that people start with: a Python loop that remembers ids in Redis. Done well: batches, orjson, one round
trip a batch for the ids and one for the alerts. Partitions are shared out among worker processes, so that all readings
of a sensor meet in one of them.

    python_redis.py BOOTSTRAP TOPIC ALERT_TOPIC REDIS_URL WORKERS
"""

import sys
from collections import defaultdict
from multiprocessing import get_context

import orjson
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from redis import Redis
from series import Series, parse

DEDUP_S = 600
BATCH = 5_000

# Says of each id whether it is new, and remembers it for ten minutes: by the clock on the wall, as a TTL does.
REMEMBER = """
local new = {}
for i, id in ipairs(KEYS) do new[i] = redis.call('SET', id, '', 'NX', 'EX', ARGV[1]) and 1 or 0 end
return new
"""


def work(bootstrap, topic, alert_topic, redis_url, worker, workers):
    redis = Redis.from_url(redis_url)
    remember = redis.register_script(REMEMBER)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 10})
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "python-redis",
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 10,
        }
    )
    partitions = {p for p in consumer.list_topics(topic).topics[topic].partitions if p % workers == worker}
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    series = defaultdict(Series)
    records = accepted = behind = duplicates = dead_letters = alerts = 0
    while partitions:
        readings = []
        for message in consumer.consume(BATCH, timeout=0.1):
            if message.error():
                if message.error().code() != KafkaError._PARTITION_EOF:
                    sys.exit(str(message.error()))
                partitions.discard(message.partition())
                continue
            records += 1
            try:
                readings.append(parse(message.value()))
            except (ValueError, TypeError, KeyError):
                dead_letters += 1
        if not readings:
            continue
        is_new = remember(keys=[r[0] for r in readings], args=[DEDUP_S])
        pipe = redis.pipeline(transaction=False)
        for (_, sensor, metric, value, time), new in zip(readings, is_new):
            if not new:
                duplicates += 1
                continue
            accepted += 1
            state = series[sensor, metric]
            if state.add(time, value):
                behind += 1
                continue
            for rule, firing, x in state.judge(metric, value):
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
                producer.produce(alert_topic, alert, key=sensor)
                pipe.xadd("alerts", {"alert": alert})
                alerts += 1
        producer.poll(0)
        pipe.execute()
    producer.flush()
    consumer.close()
    counts = {
        "records": records,
        "accepted": accepted,
        "behind": behind,
        "duplicates": duplicates,
        "dead_letters": dead_letters,
        "alerts": alerts,
    }
    print(orjson.dumps(counts).decode(), flush=True)


def main():
    *where, workers = sys.argv[1:]
    spawn = get_context("spawn")
    processes = [spawn.Process(target=work, args=(*where, n, int(workers))) for n in range(int(workers))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
