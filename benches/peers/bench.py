"""One job, several engines, on the same topic of a real Kafka: what each spends. `make bench-peers` calls it.

Each engine runs once on an empty topic (what its start costs) and then reads the topic to its end, two workers each,
taking turns: streamgauge before every peer. Counts and every alert are checked; a wrong one fails the run.
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

TOPIC, EMPTY, PARTITIONS = "bench", "empty", 16
# As long as a hang, not as long as a slow run.
RUN_SECONDS_MAX = 1_800
TICKS = os.sysconf("SC_CLK_TCK")
MB = 1_000_000

PRODUCE = shlex.split(
    "--sensors 1667 --interval 9s --seed 20261123 --start 2025-01-01T00:00:00Z --duplicates 0.05 "
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
        written = self.folder / "truth.json"
        produce = [
            STREAMGAUGE,
            "produce",
            "--bootstrap-servers",
            self.kafka.address,
            "--topic",
            TOPIC,
            "--create-partitions",
            PARTITIONS,
            "--readings",
            self.arguments.readings,
            "--truth",
            written,
            *PRODUCE,
        ]
        subprocess.run([str(p) for p in produce], check=True)
        self.create_topic(EMPTY, PARTITIONS)
        self.counts, self.alerts, self.added = truth.expected(self.kafka.address, TOPIC)
        if (reason := truth.agrees_with_produce(self.counts, written)) is not None:
            sys.exit(reason)

    def run(self, engine, topic):
        """One run: what it spent, and whether its answer was right."""
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        Redis(port=self.redis.port).flushall()
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
        }
        if topic == TOPIC:
            result["counts"] = self.check(engine, folder, place.alerts)
        return result

    def check(self, engine, folder, alert_topic):
        """What the engine counted; ends the whole run if a count or an alert is wrong."""
        lines = [json.loads(line) for line in (folder / "out").read_text().splitlines() if line.startswith("{")]
        counted = {key: sum(line[key] for line in lines) for key in (*self.counts, "alerts")}
        wanted = dict(self.alerts)
        if engine == "streamgauge":
            wanted.update(self.added)
        if counted != self.counts | {"alerts": len(wanted)}:
            sys.exit(f"{engine} counted {counted}; right is {self.counts | {'alerts': len(wanted)}}")
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
        holder.stdout.readline()
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


def per_engine(records, starts, runs):
    """The runs of each engine, summed up per million records."""
    million, rows = records / 1e6, {}
    for engine in ENGINES:
        own = [r for r in runs if r["engine"] == engine]
        if not own:
            continue
        cpu = [r["cpu_s"] / million for r in own]
        start = starts[engine]
        rows[engine] = {
            "cpu_s_per_million": {"min": min(cpu), "median": statistics.median(cpu)},
            "cpu_s_per_million_after_start": {
                "min": min(cpu) - start["cpu_s"] / million,
                "median": statistics.median(cpu) - start["cpu_s"] / million,
            },
            "start_cpu_s": start["cpu_s"],
            "start_wall_s": start["wall_s"],
            "readings_per_s": records / min(r["wall_s"] for r in own),
            "rss_mb": max(r["rss_mb"] for r in own),
            "broker_cpu_s_per_million": statistics.median(r["broker_cpu_s"] / million for r in own),
            "redis_cpu_s_per_million": statistics.median(r["redis_cpu_s"] / million for r in own),
            "runs": len(own),
            "exact": True,
            "counts": own[0]["counts"],
            "settings": SETTINGS[engine],
        }
    return rows


def table(rows):
    base = rows["streamgauge"]["cpu_s_per_million"]["median"]
    head = (
        "engine",
        "CPU-s/M min",
        "median",
        "x",
        "median less start",
        "start CPU-s",
        "readings/s",
        "resident MB",
        "broker CPU-s/M",
        "Redis CPU-s/M",
        "runs",
        "alerts",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for engine, r in rows.items():
        cpu = r["cpu_s_per_million"]
        cells = (
            engine,
            f"{cpu['min']:.2f}",
            f"{cpu['median']:.2f}",
            f"{cpu['median'] / base:.1f}",
            f"{r['cpu_s_per_million_after_start']['median']:.2f}",
            f"{r['start_cpu_s']:.2f}",
            f"{r['readings_per_s']:,.0f}",
            f"{r['rss_mb']:,.0f}",
            f"{r['broker_cpu_s_per_million']:.2f}",
            f"{r['redis_cpu_s_per_million']:.2f}",
            str(r["runs"]),
            f"{r['counts']['alerts']:,}",
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
            records = bench.counts["records"]
            print(
                f"{records:,} records, {PARTITIONS} partitions; {bench.counts}; {len(bench.alerts):,} alerts, and "
                f"{len(bench.added):,} of readings that are behind (streamgauge only)",
                flush=True,
            )
            starts, runs = {}, []
            for _ in range(options.rounds):
                with held(options.hold):
                    if not starts:
                        for engine in engines:
                            starts[engine] = bench.run(engine, EMPTY)
                            print_run("start", starts[engine], 0)
                    for peer in options.peers:
                        for engine in ("streamgauge", peer):
                            runs.append(bench.run(engine, TOPIC))
                            print_run("run", runs[-1], records)
        finally:
            bench.stop()
    rows = per_engine(records, starts, runs)
    result = {
        "command": shlex.join(["make", "bench-peers", f"PEERS_ARGS={shlex.join(sys.argv[1:])}"]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "records": records,
        "produce": shlex.join(PRODUCE),
        "topic": f"{PARTITIONS} partitions, not compressed, producer linger 5 ms",
        "versions": {k: v for k, v in known.items() if k in engines or k not in ENGINES},
        "java": " ".join(JAVA),
        "engines": rows,
        "runs": runs,
        "starts": starts,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(f"{k}: {v}" for k, v in result["versions"].items()))
    print(f"java: {result['java']}\nmachine: {result['machine']}\n" + "\n".join(f"{e}: {SETTINGS[e]}" for e in rows))
    print(f"\n{table(rows)}")


def print_run(what, run, records):
    rate = f", {records / run['wall_s']:,.0f} records/s" if records else ""
    print(
        f"{what:5} {run['engine']:13} {run['cpu_s']:7.2f} CPU-s in {run['wall_s']:6.1f} s{rate}, "
        f"{run['rss_mb']:,.0f} MB; broker {run['broker_cpu_s']:.2f}, Redis {run['redis_cpu_s']:.2f} CPU-s",
        flush=True,
    )


if __name__ == "__main__":
    main()
