#!/usr/bin/env python3
"""Lists the runs of breaching readings in a station's CSV file, to hold the program's alerts against.

    aberdeen_runs.py FILE LATENESS WINDOW metric=column,... name:metric:above|below:limit ...

LATENESS and WINDOW (of repeated times) are seconds. Nothing here comes from the program: the rules are those of
docs/semantics.md, 2, 3 and 6, and of the issue that asked for this. Prints one JSON object.
"""

import csv
import json
import re
import sys
from datetime import datetime, timezone

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", re.ASCII)
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def micros(text):
    """A time in UTC that does not say so; None for what is no time."""
    if not TIME.fullmatch(text):
        return None
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()) * 1_000_000
    except ValueError:
        return None


def readings(path, columns, dead):
    """(sensor, metric, time, value) in the order of the file. An empty cell is an absent field."""
    with open(path, newline="") as file:
        for row in csv.DictReader(file, delimiter=";"):
            at = micros(row["timestamp"])
            present = {metric: row[column] for metric, column in columns.items() if row[column] != ""}
            if row["sensor_id"] == "" or at is None or not present:
                dead["records"] += 1
                continue
            for metric, cell in sorted(present.items()):
                if NUMBER.fullmatch(cell):
                    yield row["sensor_id"], metric, at, float(cell)
                else:
                    dead["values"] += 1


def main(path, lateness, window, columns, *rules):
    lateness, window = int(lateness) * 1_000_000, int(window) * 1_000_000
    columns = dict(pair.split("=") for pair in columns.split(","))
    rules = [(name, metric, way, float(limit)) for name, metric, way, limit in (rule.split(":") for rule in rules)]
    newest, taken, runs, archive = {}, {}, {}, {}
    dead = {"records": 0, "values": 0}
    counts = {"accepted": 0, "behind": 0, "duplicates": 0, "late": 0}

    for sensor, metric, at, value in readings(path, columns, dead):
        series = sensor, metric
        clock = newest.get(series)
        times = taken.setdefault(series, set())
        if clock is not None and at in times and at >= clock - window:
            counts["duplicates"] += 1
            continue
        archive.setdefault(series, {})[at] = value
        if clock is not None and at < clock - lateness:
            counts["late"] += 1
            continue
        counts["accepted"] += 1
        times.add(at)
        behind = clock is not None and at < clock
        counts["behind"] += behind
        if not behind:
            newest[series] = at
        for name, of, way, limit in rules:
            if of != metric:
                continue
            breaches = value > limit if way == "above" else value < limit
            # [start, end, behind]; a run that goes on has no end.
            known = runs.setdefault((name, sensor, metric), {"list": [], "open": None})
            if not behind and breaches and known["open"] is None:
                known["open"] = [at, None, False]
                known["list"].append(known["open"])
            elif not behind and not breaches and known["open"] is not None:
                known["open"][1] = at
                known["open"] = None
            elif behind and breaches:
                inside = any(start <= at and (end is None or at < end) for start, end, _ in known["list"])
                if not inside:
                    known["list"].append([at, at, True])

    def held(values):
        """How many, and their sum in order of time."""
        total = 0.0
        for at in sorted(values):
            total += values[at]
        return [len(values), total]

    print(json.dumps({
        "counts": counts,
        "dead": dead,
        "archive": {f"{sensor}:{metric}": held(values) for (sensor, metric), values in archive.items()},
        "runs": sorted([*key, *run] for key, known in runs.items() for run in known["list"]),
    }))


main(*sys.argv[1:])
