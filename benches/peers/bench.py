"""One job, several engines, on the same topic of a real Kafka: what each spends. `make bench-peers` calls it.

Each engine runs once on an empty topic (what its start costs) and once on a quarter of the readings (with that, what a
million more costs once a virtual machine has compiled what it runs). Then they read the topic to its end, two workers
each, taking turns: streamgauge before every peer. Counts and every alert are checked; a wrong one fails the run.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import orjson
import truth
from confluent_kafka.admin import AdminClient, NewTopic
from engines import ENGINES, JAVA, ROOT, SETTINGS, STREAMGAUGE, USUAL, Place, versions
from redis import Redis

FULL, QUARTER, EMPTY, PARTITIONS = "bench", "quarter", "empty", 16
# As long as a hang, not as long as a slow run.
RUN_SECONDS_MAX = 1_800
TICKS = os.sysconf("SC_CLK_TCK")
MB = 1_000_000

PRODUCE = shlex.split(
    "--sensors 10000 --one-metric --interval 9s --seed 20261123 --start 2025-01-01T00:00:00Z --duplicates 0.05 "
    "--duplicates-within 60s --disorder 0.01 --disorder-within 10s --malformed 0.001 --beyond 0.005 --timestamps event"
)


class Server:
    """One of tests/servers, in a folder of its own; it also ends when we do."""

    def __init__(self, name, folder):
        self.script, self.folder = ROOT / f"tests/servers/{name}.sh", folder
        subprocess.run([self.script, "start", folder, "--until", str(os.getpid())], check=True)
        self.port, self.pid = (int((folder / f).read_text()) for f in ("port", "pid"))
        self.address = f"127.0.0.1:{self.port}"

    def cpu_s(self):
        return cpu_s(f"/proc/{self.pid}/stat")

    def stop(self):
        subprocess.run([self.script, "stop", self.folder], check=True)


def stat_fields(path):
    """Fields of a /proc/PID/stat from the third on: the second, the name, may hold anything."""
    return Path(path).read_text().rpartition(")")[2].split()


def cpu_s(path):
    fields = stat_fields(path)
    return (int(fields[11]) + int(fields[12])) / TICKS


class Peak:
    """The most memory that a session's processes held together, looked at ten times a second.

    Not getrusage's: that of a child begins with what its parent held before exec.
    """

    def __init__(self, session):
        self.session, self.bytes, self.over = session, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self):
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.over.wait(0.1):
            total = 0
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    fields = stat_fields(f"/proc/{pid}/stat")
                except OSError:
                    continue
                if int(fields[3]) == self.session:
                    total += int(fields[21]) * page
            self.bytes = max(self.bytes, total)

    def end(self):
        self.over.set()
        self.thread.join()
        return self.bytes


class Bench:
    def __init__(self, arguments, folder):
        self.arguments, self.folder, self.runs = arguments, folder, 0
        self.kafka = Server("kafka", folder / "kafka")
        self.redis = Server("redis", folder / "redis")
        self.admin = AdminClient({"bootstrap.servers": self.kafka.address})

    def stop(self):
        self.admin = None  # it would complain of a broker that leaves
        self.kafka.stop()
        self.redis.stop()

    def create_topic(self, name, partitions):
        for future in self.admin.create_topics([NewTopic(name, partitions, 1)]).values():
            future.result(60)

    def fill(self):
        self.create_topic(EMPTY, PARTITIONS)
        self.truths = {}
        for topic, readings in ((QUARTER, self.arguments.readings // 4), (FULL, self.arguments.readings)):
            written = self.folder / f"{topic}.json"
            to = ["--bootstrap-servers", self.kafka.address, "--topic", topic, "--create-partitions", str(PARTITIONS)]
            what = ["--readings", str(readings), "--truth", str(written), *PRODUCE]
            subprocess.run([STREAMGAUGE, "produce", *to, *what], check=True)
            counts, alerts, added = truth.expected(self.kafka.address, topic)
            if (reason := truth.agrees_with_produce(counts, written)) is not None:
                sys.exit(reason)
            self.truths[topic] = counts, alerts, added
            print(
                f"{topic}: {PARTITIONS} partitions, {counts}; {len(alerts):,} alerts, and {len(added):,} of readings "
                "that are behind (streamgauge only)",
                flush=True,
            )

    def run(self, engine, topic):
        """One run: what it spent, and whether its answer was right."""
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        redis = Redis(port=self.redis.port)
        redis.flushall()
        place = Place(self.kafka.address, topic, f"alerts-{self.runs}", f"redis://{self.redis.address}", folder)
        self.create_topic(place.alerts, 4)
        command = ENGINES[engine](place)
        servers = self.kafka.cpu_s(), self.redis.cpu_s()
        begun = time.time()
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            child = subprocess.Popen(
                [str(c) for c in command], stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True
            )
            peak = Peak(child.pid)
            overdue = threading.Timer(RUN_SECONDS_MAX, os.killpg, (child.pid, signal.SIGKILL))
            overdue.start()
            try:
                _, status, used = os.wait4(child.pid, 0)
                ended = time.time()
            except BaseException:
                os.killpg(child.pid, signal.SIGKILL)
                raise
            finally:
                overdue.cancel()
                rss = peak.end()
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{engine} failed ({child.returncode}): {(folder / 'err').read_text()[-3000:]}")
        result = {
            "engine": engine,
            "cpu_s": used.ru_utime + used.ru_stime,
            "wall_s": ended - begun,
            "rss_mb": rss / MB,
            "broker_cpu_s": self.kafka.cpu_s() - servers[0],
            "redis_cpu_s": self.redis.cpu_s() - servers[1],
            "redis_mb": redis.info("memory")["used_memory"] / MB,
        }
        if topic in self.truths:
            result["records"] = self.truths[topic][0]["records"]
            result["counts"] = self.check(engine, topic, folder, place.alerts)
        rate = f", {result['records'] / result['wall_s']:,.0f} records/s" if topic in self.truths else ""
        print(
            f"{topic:7} {engine:13} {result['cpu_s']:7.2f} CPU-s in {result['wall_s']:6.1f} s{rate}, "
            f"{result['rss_mb']:,.0f} MB; broker {result['broker_cpu_s']:.2f} CPU-s, Redis {result['redis_cpu_s']:.2f}",
            flush=True,
        )
        return result

    def check(self, engine, topic, folder, alert_topic):
        """What the engine counted; ends the whole run if a count or an alert is wrong."""
        lines = [json.loads(line) for line in (folder / "out").read_text().splitlines() if line.startswith("{")]
        counts, alerts, added = self.truths[topic]
        wanted = alerts | added if engine == "streamgauge" else alerts
        right = counts | {"alerts": len(wanted)}
        counted = {key: sum(line[key] for line in lines) for key in right}
        if counted != right:
            sys.exit(f"{engine} counted {counted}; right is {right}")
        found, sent = {}, 0
        for payload in truth.read_all(self.kafka.address, alert_topic):
            a = orjson.loads(payload)
            millis = a["time"] // 1_000 if engine == "streamgauge" else a["time"]
            found[truth.Alert(a["rule"], a["sensor"], a["metric"], a["state"], millis)] = a["value"]
            sent += 1
        wrong = [a for a, x in wanted.items() if a not in found or abs(found[a] - x) > 1e-6 * max(1.0, abs(x))]
        if wrong or len(found) != len(wanted) or sent != len(wanted):
            sys.exit(
                f"{engine}: {sent} alerts written, {len(wanted)} are right, {len(wrong)} of them are missing or "
                f"have another value, such as {wrong[:3]}"
            )
        return counted


@contextmanager
def held(lock):
    """Holds what a lock's command holds while it runs something."""
    if not lock:
        yield
        return
    with subprocess.Popen(
        [*lock, "sh", "-c", "echo; read -r _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        if not holder.stdout.readline():
            sys.exit(f"{shlex.join(lock)} did not run what it was given")
        yield
        if holder.poll() is not None:
            print("note: the lock was lost before the round was over")
        holder.stdin.close()


def machine():
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GB, Linux {platform.release()}"


def per_engine(engine, starts, quarters, runs):
    """The runs of an engine, per million records."""
    own = [r for r in runs if r["engine"] == engine]
    start, quarter = starts[engine], quarters[engine]
    million = own[0]["records"] / 1e6

    def median(key):
        return statistics.median(r[key] for r in own)

    return {
        "cpu_s_per_million": {"min": min(r["cpu_s"] for r in own) / million, "median": median("cpu_s") / million},
        "cpu_s_per_million_warm": (median("cpu_s") - quarter["cpu_s"]) / (million - quarter["records"] / 1e6),
        "start_cpu_s": start["cpu_s"],
        "start_wall_s": start["wall_s"],
        "readings_per_s": own[0]["records"] / min(r["wall_s"] for r in own),
        "rss_mb": max(r["rss_mb"] for r in own),
        "broker_cpu_s_per_million": median("broker_cpu_s") / million,
        "redis_cpu_s_per_million": median("redis_cpu_s") / million,
        "redis_mb": max(r["redis_mb"] for r in own),
        "runs": len(own),
        "exact": True,
        "counts": own[0]["counts"],
        "settings": SETTINGS[engine],
    }


def table(rows):
    head = (
        "engine",
        "CPU-s/M min / median",
        "times ours",
        "warm CPU-s/M",
        "times ours",
        "start CPU-s",
        "records/s",
        "resident MB",
        "broker CPU-s/M",
        "Redis CPU-s/M",
        "Redis MB",
    )
    ours = rows["streamgauge"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for engine, r in rows.items():
        cpu, warm = r["cpu_s_per_million"], r["cpu_s_per_million_warm"]
        cells = (
            engine,
            f"{cpu['min']:.2f} / {cpu['median']:.2f}",
            f"{cpu['median'] / ours['cpu_s_per_million']['median']:.1f}",
            f"{warm:.2f}",
            f"{warm / ours['cpu_s_per_million_warm']:.1f}",
            f"{r['start_cpu_s']:.2f}",
            f"{r['readings_per_s']:,.0f}",
            f"{r['rss_mb']:,.0f}",
            f"{r['broker_cpu_s_per_million']:.2f}",
            f"{r['redis_cpu_s_per_million']:.2f}",
            f"{r['redis_mb']:,.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = [e for e in ENGINES if e != "streamgauge"]
    parser.add_argument("--peers", default=USUAL, type=lambda text: text.split(","), help=f"of {peers}")
    parser.add_argument("--readings", default=2_000_000, type=int, help="how many, copies not counted")
    parser.add_argument("--rounds", default=3, type=int, help="how often each peer runs")
    parser.add_argument(
        "--hold",
        default=[],
        type=shlex.split,
        help="on a shared machine: a lock's command, such as `flock FILE`, that each round waits for and keeps",
    )
    parser.add_argument("--out", default=ROOT / "target/bench/peers.json", type=Path)
    parsed = parser.parse_args()
    if unknown := set(parsed.peers) - set(peers):
        parser.error(f"no such peer: {', '.join(unknown)}")
    return parsed


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = arguments()
    engines = ["streamgauge", *options.peers]
    known = versions()
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        bench = Bench(options, Path(folder))
        try:
            bench.fill()
            starts, quarters, runs = {}, {}, []
            for _ in range(options.rounds):
                with held(options.hold):
                    for engine in engines if not runs else []:
                        starts[engine] = bench.run(engine, EMPTY)
                        quarters[engine] = bench.run(engine, QUARTER)
                    for peer in options.peers:
                        runs.extend(bench.run(engine, FULL) for engine in ("streamgauge", peer))
        finally:
            bench.stop()
    rows = {engine: per_engine(engine, starts, quarters, runs) for engine in engines}
    result = {
        "command": shlex.join(["make", "bench-peers", f"PEERS_ARGS={shlex.join(sys.argv[1:])}"]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "records": runs[0]["records"],
        "produce": shlex.join(PRODUCE),
        "topic": f"{PARTITIONS} partitions, not compressed, producer linger 5 ms",
        "versions": {k: v for k, v in known.items() if k in engines or k not in ENGINES},
        "java": " ".join(JAVA),
        "engines": rows,
        "runs": runs,
        "starts": starts,
        "quarters": quarters,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(f"{k}: {v}" for k, v in result["versions"].items()))
    print(f"java: {result['java']}\nmachine: {result['machine']}\n" + "\n".join(f"{e}: {SETTINGS[e]}" for e in rows))
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
