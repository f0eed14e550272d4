#!/usr/bin/env bash
# A Prometheus server, for what it makes of our /metrics.
#
#   prometheus.sh start DIR [PORT] [--until PID] [--config FILE]       restart DIR     stop DIR     kill9 DIR
#
# The configuration is DIR/prometheus.yml: FILE's copy, or what a test wrote there, or nothing to scrape.
# Change it and ask `POST /-/reload`.
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"
OPTIONS='--config'

installed() { command -v prometheus >/dev/null; }

configure() {
    [ -z "${option[config]:-}" ] || cp "${option[config]}" "$1/prometheus.yml"
    [ -e "$1/prometheus.yml" ] || echo 'scrape_configs: []' >"$1/prometheus.yml"
}

command_line() {
    CMD=(prometheus "--config.file=$1/prometheus.yml" "--storage.tsdb.path=$1/data"
        "--web.listen-address=127.0.0.1:$2" --web.enable-lifecycle --log.level=warn)
}

# Over bash's own sockets: a bare machine has no curl.
answers() {
    local line
    {
        exec 3<>"/dev/tcp/127.0.0.1/$2" && printf 'GET /-/ready HTTP/1.0\r\n\r\n' >&3 &&
            read -r -t 2 line <&3 && exec 3<&- && [[ $line == *' 200 '* ]]
    } 2>/dev/null
}

serve "$@"
