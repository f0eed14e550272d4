#!/usr/bin/env bash
# Redis 7.4 with RedisTimeSeries, for tests only (its licence is not an open-source one). Usage: see redis.sh.
if [ "${1:-}" = start ]; then set -- "$@" --stack yes; fi
exec "$(dirname "$0")/redis.sh" "$@"
