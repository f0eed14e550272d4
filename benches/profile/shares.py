#!/usr/bin/env python3
"""Where CPU time goes, by thread and by what the function belongs to: shares.py FILE.perf... (of record.sh)."""
import collections
import subprocess
import sys

# By what a symbol of a worker's thread contains; the first that matches counts.
WORKER = [
    ("librdkafka's queue and its locks", ("rd_", "pthread")),
    ("decode", ("decode", "from_utf8", "xxh3")),
    ("judge", ("Judge::", "::ids::")),
    ("log order, series numbers", ("JudgeNode", "dictionary")),
    ("intern", ("interner", "memcmp")),
    ("rolling", ("rolling",)),
    ("rules", ("rules",)),
    ("source node", ("KafkaSource", "SourceNode", "source::node")),
    ("allocator", ("malloc", "free", "unlink_chunk", "realloc", "calloc")),
    ("memmove", ("memmove", "memset")),
    ("timely: exchange, progress", ("timely", "keyed")),
    ("views", ("differential", "views")),
    ("outbox, metrics, checkpoints", ("OutboxNode", "state", "blake3", "prometheus")),
]


def place(thread, symbol, kernel):
    if thread.startswith("rdk"):
        return "librdkafka's threads, in the kernel" if kernel else "librdkafka's threads"
    if thread.startswith(("lane", "producer")):
        return "sinks: " + thread
    if not thread.startswith("timely"):
        return "other threads"
    if kernel:
        return "worker: kernel (pages, wake-ups)"
    for name, parts in WORKER:
        if any(part in symbol for part in parts):
            return "worker: " + name
    return "worker: the rest"


shares = collections.Counter()
for path in sys.argv[1:]:
    script = ["perf", "script", "-i", path, "-F", "comm,ip,sym,dso"]
    for line in subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines():
        head, _, dso = line.rpartition("(")
        words = head.split()
        # A thread's name may hold spaces; the address is the first long hexadecimal word.
        address = next((n for n, word in enumerate(words) if n and len(word) > 5 and not set(word) - set("0123456789abcdef")), 0)
        if address:
            shares[place(" ".join(words[:address]), " ".join(words[address + 1:]), "kernel" in dso)] += 1
total = sum(shares.values())
for name, count in shares.most_common():
    print(f"{100 * count / total:5.1f} %  {name}")
print(f"{total} samples")
