#!/usr/bin/env bash
# Runs every check and test, leaves nothing behind, and ends with 'N passed, N failed': the sum over all test
# binaries; a check that fails, a test run that breaks off and a process left behind count as a failure each.
#
# All temporary files of the tests lie in one folder, which goes at the end. All their processes carry one word in
# their environment, by which what is left is found and ended: by its own id, and nobody else's.
cd "$(dirname "$0")/.." || exit 1
# shellcheck source=tests/servers/lib.sh
. tests/servers/lib.sh
set +e

log=target/test.log
mkdir -p target
scratch=$(mktemp -d)
running=

# Prints the processes that carry our word, which `step` alone gives: what this script itself starts, such as the
# `sort` that reads this function, must not find itself.
ours() {
    local environ server
    for environ in /proc/[0-9]*/environ; do
        grep -qzFx "SG_TEST_RUN=$scratch" "$environ" 2>/dev/null || continue
        environ=${environ#/proc/}
        printf '%s\n' "${environ%/environ}"
    done
    # Redis writes its title over its environment.
    while read -r server; do own_pid "$(dirname "$server")"; done < <(find "$scratch" -name pid.start 2>/dev/null)
}

# settled SECONDS: waits that long for our processes to end by themselves.
settled() {
    local end=$((SECONDS + $1))
    until [ -z "$(ours | sort -u)" ]; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

end_all() {
    local pid
    [ -z "$running" ] || kill -TERM -- "-$running" 2>/dev/null
    for pid in $(ours | sort -u); do kill -KILL "$pid" 2>/dev/null; done
    settled 10
    rm -rf "$scratch"
}
trap end_all EXIT
trap 'exit 130' INT TERM HUP

# A group of its own for each step, so that an interrupted run can end all of it. `wait` lets the trap in at once.
# All of it goes to the log; the terminal, of which CI keeps only a part, gets what a person has to read.
step() {
    set -m
    env "TMPDIR=$scratch" "SG_TEST_RUN=$scratch" "$@" </dev/null > >(tee -a "$log" | awk -f tests/digest.awk) 2>&1 &
    running=$!
    set +m
    local status=0
    wait "$running" || status=$?
    running=
    return "$status"
}

: >"$log"
failed=0
step tests/servers/install.sh || failed=1
if [ "$failed" = 0 ]; then
    step make --no-print-directory check || failed=1
    # --show-output: a test that leaves a part out says so, and .ci/run reads it in the log.
    step cargo test --workspace --release --features tls --jobs 2 --no-fail-fast -- --show-output
    tests=$?
    # That a test can fail is seen by making it fail: the two bugs that must never pass.
    step tests/planted.sh reading-skipped epoch-log-edited || [ "$tests" != 0 ] || tests=1
fi

# A killed test's servers end by themselves within a second; what stays longer was forgotten.
if ! settled 10; then
    for pid in $(ours | sort -u); do
        printf 'left behind by a test: process %s, %s\n' "$pid" "$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline")"
        failed=$((failed + 1))
    done
fi

sleep 0.3 # for the last lines to reach the log
read -r passed broken < <(sed 's/\x1b\[[0-9;]*m//g' "$log" |
    awk '/^test result: / {for (i = 2; i <= NF; i++) {if ($i == "passed;") p += $(i-1); if ($i == "failed;") f += $(i-1)}}
         END {print p + 0, f + 0}')
# A run that broke off (it did not compile, a test process died) without any test saying that it failed.
[ "${tests:-1}" = 0 ] || [ "$broken" -gt 0 ] || broken=1
# Once more at the end, where a reader of a long output looks first.
sed 's/\x1b\[[0-9;]*m//g' "$log" | sed -nE 's/^test (.*) \.\.\. FAILED$/failed: \1/p'
failed=$((failed + broken))
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
