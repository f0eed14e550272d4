#!/usr/bin/env bash
# Debian's Redis 7.0; with `--stack yes` (or redis-stack.sh) Redis 7.4 and its module RedisTimeSeries.
#
#   redis.sh start DIR [PORT] [--until PID] [--password WORD] [--stack yes]    restart DIR    stop DIR    kill9 DIR
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"
OPTIONS='--password --stack'
stack=$cache/redis-stack

installed() {
    command -v redis-server >/dev/null && command -v redis-cli >/dev/null || return 1
    [ -z "${option[stack]:-}" ] || [ -e "$stack/installed" ]
}

configure() { mkdir -p "$1/data"; }

# The append-only file is written before Redis answers: what was acknowledged is there again after kill -9.
command_line() {
    CMD=(redis-server)
    [ -z "${option[stack]:-}" ] || CMD=(env "LD_LIBRARY_PATH=$stack/openssl" "$stack/bin/redis-server"
        --loadmodule "$stack/lib/redistimeseries.so")
    CMD+=(--bind 127.0.0.1 --port "$2" --dir "$1/data" --save '' --appendonly yes --appendfsync no)
    [ -z "${option[password]:-}" ] || CMD+=(--requirepass "${option[password]}")
}

answers() {
    local question=(PING)
    [ -z "${option[stack]:-}" ] || question=(TS.QUERYINDEX a=b)
    # redis-cli exits 0 on most errors (LOADING, NOAUTH), but writes them in its answer.
    ! REDISCLI_AUTH=${option[password]:-} timeout 2 redis-cli -e -p "$2" "${question[@]}" 2>&1 | grep -qE 'ERR|LOADING|NOAUTH|refused'
}

serve "$@"
