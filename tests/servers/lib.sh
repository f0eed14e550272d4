# shellcheck shell=bash
# What every server script here shares: choosing a port, starting, knowing our own process, stopping.
#
# A script defines four functions and then calls `serve "$@"`:
#   installed            whether what it starts is on this machine
#   configure DIR PORT   writes the server's files into DIR (again at each start: ports may have changed)
#   command_line DIR PORT   fills the array CMD; it must exec, so that its pid is the server's
#   answers DIR PORT     whether the server answers a question only it can answer
#
# DIR holds all of a server's state: pid, port, options, log, data. Everything binds to 127.0.0.1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../.." && pwd)/.cache
export here cache

START_SECONDS=90 # Kafka on a machine that compiles at the same time needs 30
STOP_SECONDS=20

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# A pid alone may be somebody else's by now; a pid with its start time is ours. The name in /proc/PID/stat may hold
# spaces, so fields are counted after the last parenthesis (the start time is the 20th there).
started_at() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    awk '{print $20}' <<<"${stat##*) }"
}

# Gone, or a zombie without threads: nobody may be there to reap it, but its ports and files are free. (While a
# process of many threads dies, its first thread is a zombie and the others still hold the port.)
gone() {
    local state tasks
    state=$(awk '/^State:/ {print $2}' "/proc/$1/status" 2>/dev/null) || return 0
    [ -z "$state" ] && return 0
    tasks=("/proc/$1/task/"*)
    [ "$state" = Z ] && [ "${#tasks[@]}" -le 1 ]
}

# own_pid DIR: prints the pid of DIR's server while it lives.
own_pid() {
    local pid start
    { read -r pid start <"$1/pid.start"; } 2>/dev/null || return 1
    [ "$(started_at "$pid")" = "$start" ] || return 1
    gone "$pid" && return 1
    printf '%s\n' "$pid"
}

# listens PID PORT: whether PID itself holds the listening socket. An answer on the port proves nothing: another
# server may have been there first.
listens() {
    local hex inode
    printf -v hex ':%04X' "$2"
    while read -r inode; do
        [ -n "$(find "/proc/$1/fd" -lname "socket:\\[$inode\\]" -print -quit 2>/dev/null)" ] && return 0
    done < <(awk -v port="$hex" '$4 == "0A" && substr($2, length($2) - 4) == port {print $10}' \
        /proc/net/tcp /proc/net/tcp6 2>/dev/null)
    return 1
}

# Below the range from which the kernel takes ports for outgoing connections, so that only a sibling can come between.
free_port() {
    local port
    while :; do
        port=$((10240 + RANDOM % 20000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    printf '%s\n' "$port"
}

# other_port PORT...: a free one that is none of these.
other_port() {
    local port
    while :; do
        port=$(free_port)
        [[ " $* " = *" $port "* ]] || break
    done
    printf '%s\n' "$port"
}

# before SECONDS COMMAND...: repeats COMMAND until it succeeds; false when the time is over.
before() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}

up_or_gone() { gone "$1" || { listens "$1" "$3" && answers "$2" "$3"; }; }

# launch DIR PORT: starts the server and returns once our own process listens and answers; false if it died (its port
# was taken, say) or did not get there in time.
launch() {
    local dir=$1 port=$2 pid start
    configure "$dir" "$port"
    CMD=()
    command_line "$dir" "$port"
    # A session of its own: Ctrl-C at the terminal is for the tests, which then stop their servers in order.
    setsid "${CMD[@]}" >>"$dir/log" 2>&1 </dev/null &
    pid=$!
    start=$(started_at "$pid") || return 1
    printf '%s %s\n' "$pid" "$start" >"$dir/pid.start"
    printf '%s\n' "$pid" >"$dir/pid"
    printf '%s\n' "$port" >"$dir/port"
    before "$START_SECONDS" up_or_gone "$pid" "$dir" "$port" && ! gone "$pid" && return 0
    end_with KILL "$dir"
    return 1
}

# end_with SIGNAL DIR: the signal to our own pid, KILL if that is not enough, and returns when the process is gone.
end_with() {
    local pid
    pid=$(own_pid "$2") || return 0
    kill "-$1" "$pid" 2>/dev/null || true
    before "$STOP_SECONDS" gone "$pid" && return 0
    kill -KILL "$pid" 2>/dev/null || true
    before "$STOP_SECONDS" gone "$pid" || fail "process $pid does not end"
}

# watch DIR PID: a server is not left behind by a test that was itself killed: when PID ends, the server is stopped
# and DIR removed.
watch() {
    local dir=$1 pid=$2 start
    start=$(started_at "$pid") || fail "no process $pid to watch"
    (
        while [ -e "$dir/options" ] && [ "$(started_at "$pid")" = "$start" ] && ! gone "$pid"; do sleep 0.3; done
        [ -e "$dir/options" ] || exit 0
        end_with KILL "$dir"
        rm -rf "$dir"
    ) >/dev/null 2>&1 </dev/null &
}

usage() {
    fail "usage: start DIR [PORT] [--until PID] ${OPTIONS:-} | restart DIR | stop DIR | kill9 DIR"
}

serve() {
    [ $# -ge 2 ] || usage
    local verb=$1 dir=$2 port='' until='' tries=5
    shift 2
    # Options are remembered, so that restart and stop need only the DIR. Each is one word and a value.
    declare -gA option=()
    case $verb in
    start)
        mkdir -p "$dir" && dir=$(cd "$dir" && pwd)
        own_pid "$dir" >/dev/null && fail "$dir already has a running server"
        while [ $# -gt 0 ]; do
            case $1 in
            --until) until=$2 && shift 2 ;;
            --*)
                [[ " ${OPTIONS:-} " == *" $1 "* && $# -ge 2 ]] || usage
                option[${1#--}]=$2 && shift 2
                ;;
            *) port=$1 && shift ;;
            esac
        done
        declare -p option >"$dir/options"
        ;;
    restart | stop | kill9)
        [ -e "$dir/options" ] || fail "$dir holds no server of ours"
        dir=$(cd "$dir" && pwd)
        eval "$(sed 's/^declare -A/declare -gA/' "$dir/options")"
        ;;
    *) usage ;;
    esac
    case $verb in
    start)
        installed || fail "not installed: run \`make test\` or tests/servers/install.sh"
        if [ -n "$port" ]; then
            launch "$dir" "$port" || fail "did not start on port $port: $(tail -n 3 "$dir/log" 2>/dev/null)"
        else
            until launch "$dir" "$(free_port)"; do
                tries=$((tries - 1))
                [ "$tries" -gt 0 ] || fail "did not start: $(tail -n 3 "$dir/log" 2>/dev/null)"
            done
        fi
        [ -z "$until" ] || watch "$dir" "$until"
        ;;
    restart)
        end_with TERM "$dir"
        port=$(cat "$dir/port")
        launch "$dir" "$port" || fail "did not restart on port $port: $(tail -n 3 "$dir/log" 2>/dev/null)"
        ;;
    stop) end_with TERM "$dir" ;;
    kill9) end_with KILL "$dir" ;;
    esac
}
