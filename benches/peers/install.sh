#!/usr/bin/env bash
# Installs what `make bench-peers` needs beside tests/servers/install.sh, into the ignored folder .cache/peers, and
# compiles the Java peers there. Says nothing and takes a moment when all is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/servers/install.sh
mkdir -p .cache/peers
exec 9>.cache/peers/install.lock
flock 9

say() { printf 'install: %s\n' "$*"; }
stamped() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

# A Java runtime is not enough here. Debian's default-jdk-headless is the version of its default-jre-headless.
if ! command -v javac >/dev/null; then
    say 'Debian package: default-jdk-headless'
    root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        default-jdk-headless >.cache/peers/apt.log 2>&1 || { tail -n 20 .cache/peers/apt.log >&2 && exit 1; }
fi

venv=.cache/peers/venv
packages=(bytewax==0.21.1 confluent-kafka==2.16.1 orjson==3.13.0 redis==8.1.0 hiredis==3.5.0)
if ! stamped "$venv/installed" "${packages[*]}"; then
    say "PyPI packages: ${packages[*]}"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check "${packages[@]}"
    printf '%s\n' "${packages[*]}" >"$venv/installed"
fi

for peer in flink kafka-streams; do
    sources=(benches/peers/"$peer"/*.java)
    folder=.cache/peers/$peer
    version=$(cat benches/peers/"$peer"/pom.xml "${sources[@]}" | cksum)
    stamped "$folder/installed" "$version" && continue
    say "$peer: jars from Maven, and our source compiled against them"
    rm -rf "$folder" && mkdir -p "$folder"
    mvn -q -B -f benches/peers/"$peer"/pom.xml dependency:copy-dependencies "-DoutputDirectory=$PWD/$folder/libs" \
        >"$folder/mvn.log" 2>&1 </dev/null || { tail -n 20 "$folder/mvn.log" >&2 && exit 1; }
    javac --release 17 -Xlint:all,-processing,-serial -Werror -cp "$folder/libs/*" -d "$folder/classes" "${sources[@]}"
    printf '%s\n' "$version" >"$folder/installed"
done
