"""The engines: how each is started on a topic, its settings and versions."""

import importlib.metadata
import platform
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import confluent_kafka
import truth

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"
STREAMGAUGE = ROOT / "target/release/streamgauge"
PYTHON = CACHE / "peers/venv/bin/python"
WORKERS = 2
CHECKPOINT_MS = 10_000
JAVA = ["-XX:+UseParallelGC", "-Xmx3g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]

CONFIG = """
data_dir = "{data}"
workers = {workers}
server.listen = "127.0.0.1:0"
rolling.windows = ["60s"]
[sources.bench]
type = "kafka"
bootstrap_servers = "{kafka}"
topics = ["{topic}"]
decode = {{ id = "/unique_reading_id", sensor = "/sensor_id", metric = "/type", value = "/value", time = "/timestamp" }}
[sinks]
topic = {{ type = "kafka", bootstrap_servers = "{kafka}", topic = "{alerts}" }}
stream = {{ type = "redis_stream", url = "{redis}" }}
"""


@dataclass
class Place:
    """Where an engine reads and writes."""

    kafka: str
    topic: str
    alerts: str
    redis: str
    folder: Path


def streamgauge(at):
    config = CONFIG.format(
        data=at.folder / "data", workers=WORKERS, kafka=at.kafka, topic=at.topic, alerts=at.alerts, redis=at.redis
    )
    for rule in truth.RULES:
        config += f'[rules.{rule.name}]\nmetric = "{rule.metric}"\n'
        config += f"when.{'above' if rule.above else 'below'} = {rule.limit}\n"
        if rule.statistic != "value":
            config += f'of.{ {"mean": "mean", "deviation": "stddev"}[rule.statistic] } = "60s"\n'
    path = at.folder / "streamgauge.toml"
    path.write_text(config)
    return [STREAMGAUGE, "run", "-c", path, "--until-end", "--summary", "json", "--log-level", "warn"]


def java(at, peer, *more):
    libs = CACHE / "peers" / peer
    return [
        "java",
        *JAVA,
        *more,
        f"-Djava.io.tmpdir={at.folder}",
        "-cp",
        f"{libs}/classes:{libs}/libs/*",
        "SensorAlerts",
        at.kafka,
        at.topic,
        at.alerts,
        WORKERS,
    ]


def flink(at):
    return java(
        at, "flink", *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in ("java.lang", "java.util"))
    )


def flink_checkpoints(at):
    return [*flink(at), CHECKPOINT_MS, (at.folder / "checkpoints").as_uri()]


def kafka_streams(at):
    return java(at, "kafka-streams")


def kafka_streams_changelog(at):
    return [*kafka_streams(at), "changelog"]


def python_redis(at):
    return [PYTHON, HERE / "python_redis.py", at.kafka, at.topic, at.alerts, at.redis, WORKERS]


def bytewax(at):
    ports = [free_port() for _ in range(WORKERS)]
    addresses = ";".join(f"127.0.0.1:{port}" for port in ports)
    start = 'for i in $(seq 0 $(($1 - 1))); do "$0" -m bytewax.run bytewax_flow -i "$i" -a "$2" & all="$all $!"; done; '
    wait = 'for pid in $all; do wait "$pid" || exit 1; done'
    where = [f"BOOTSTRAP={at.kafka}", f"TOPIC={at.topic}", f"ALERT_TOPIC={at.alerts}", f"PYTHONPATH={HERE}"]
    return ["env", *where, "sh", "-c", start + wait, PYTHON, WORKERS, addresses]


ENGINES = {
    "streamgauge": streamgauge,
    "flink": flink,
    "kafka-streams": kafka_streams,
    "python-redis": python_redis,
    "bytewax": bytewax,
    "flink-checkpoints": flink_checkpoints,
    "kafka-streams-changelog": kafka_streams_changelog,
}
# Those that are run if nothing is said: each at its fastest.
USUAL = ["flink", "kafka-streams", "python-redis", "bytewax"]
SETTINGS = {
    "streamgauge": "2 workers; durability process, tick 20 ms, checkpoint every 30 s, metrics, journal; alerts to both",
    "flink": "parallelism 2, local mini-cluster, heap state, object reuse; checkpoints off; alerts to Kafka only",
    "kafka-streams": "2 stream threads, in-memory stores, no changelog topics; alerts to Kafka only",
    "python-redis": "2 processes; batches of 5,000, orjson, one Lua script a batch (SET NX EX 600), alerts to both; "
    "no checkpoints",
    "flink-checkpoints": f"as flink, with a checkpoint to disk every {CHECKPOINT_MS // 1000} s",
    "kafka-streams-changelog": "as kafka-streams, with changelog topics, which is its default",
    "bytewax": "2 processes of 1 worker; batches of 1,000, orjson; no recovery store; alerts to Kafka only",
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def jar(folder, name):
    (path,) = (CACHE / folder).glob(f"{name}-[0-9]*.jar")
    return path.stem.removeprefix(f"{name}-")


def packages(*names):
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def first_line(*command):
    out = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
    return (out.stdout + out.stderr).splitlines()[0].strip()


def versions():
    python = platform.python_version()
    flink_version = (
        f"Apache Flink {jar('peers/flink/libs', 'flink-runtime')}, connector "
        f"{jar('peers/flink/libs', 'flink-connector-kafka')}, Jackson {jar('peers/flink/libs', 'jackson-databind')}"
    )
    streams_version = (
        f"Kafka Streams {jar('peers/kafka-streams/libs', 'kafka-streams')}, Jackson "
        f"{jar('peers/kafka-streams/libs', 'jackson-databind')}"
    )
    return {
        "streamgauge": first_line(STREAMGAUGE, "--version"),
        "flink": flink_version,
        "flink-checkpoints": flink_version,
        "kafka-streams": streams_version,
        "kafka-streams-changelog": streams_version,
        "bytewax": f"Python {python}, " + packages("bytewax", "confluent-kafka", "orjson"),
        "python-redis": f"Python {python}, " + packages("confluent-kafka", "orjson", "redis", "hiredis"),
        "java": first_line("java", "-version"),
        "librdkafka of Python": confluent_kafka.libversion()[0],
        "broker": f"Apache Kafka {jar('kafka/libs', 'kafka_2.13')}",
        "redis": first_line("redis-server", "--version").split(" sha=")[0],
    }
