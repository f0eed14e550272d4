#!/bin/sh
# Stands in for streamgauge and records where its CPU time goes: PROFILE_OF=PROGRAM PROFILE_TO=FOLDER record.sh ARGUMENTS...
# For a whole benchmark: PROFILE_OF=target/release/streamgauge PROFILE_TO=/tmp/p STREAMGAUGE_BIN=benches/profile/record.sh \
#   target/release/streamgauge-bench run job --shorten 4 --rounds 1
exec perf record -q -e cpu-clock -F 499 -o "$PROFILE_TO/$$.perf" -- "$PROFILE_OF" "$@"
