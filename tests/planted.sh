#!/usr/bin/env bash
# Plants a bug at a time in a scratch copy of the tree, and wants to see the test that it names turn red.
#
#   tests/planted.sh [NAME...]     without names: all of tests/planted
#
# A patch that no longer applies, a tree that no longer compiles with it, and a test that stays green are failures. The
# copy has a target directory of its own, which begins with our dependencies; our own crates are built unoptimised there.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
scratch=$root/target/planted
tree=$scratch/tree
export CARGO_TARGET_DIR=$scratch/target CARGO_INCREMENTAL=1
profile=()
for crate in streamgauge streamgauge-operators streamgauge-oracle; do
    profile+=(--config "profile.release.package.$crate.opt-level=0" --config "profile.release.package.$crate.debug=false")
done

# seed: dependencies as we have them, but nothing of ours.
seed() {
    [ ! -e "$CARGO_TARGET_DIR/seeded" ] || return 0
    mkdir -p "$CARGO_TARGET_DIR/release"
    for part in build deps .fingerprint; do
        [ -d "$root/target/release/$part" ] || continue
        tar -C "$root/target/release" --exclude='*streamgauge*' --exclude='*operators-*' --exclude='*oracle-*' \
            --exclude='deps/it-*' --exclude='deps/*.d' -cf - "$part" | tar -C "$CARGO_TARGET_DIR/release" -xf -
    done
    touch "$CARGO_TARGET_DIR/seeded"
}

# copy: every file that git knows or would know, with its time, so that what did not change is not built again.
copy() {
    mkdir -p "$tree"
    find "$tree" -mindepth 1 -maxdepth 1 ! -name .cache -exec rm -rf {} +
    git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
        tar --null --no-recursion -T - -cf - | tar -C "$tree" -xf -
    [ ! -d "$root/.cache" ] || ln -sfn "$root/.cache" "$tree/.cache"
}

# files PATCH: those that it touches.
files() { sed -n 's|^+++ b/||p' "$1"; }

# red NAME: 0 if the test that the patch names fails with it.
red() {
    local patch=tests/planted/$1.patch words log=$scratch/$1.log test file status=0
    [ -f "$patch" ] || { echo "planted $1: there is no such patch"; return 1; }
    read -ra words < <(sed -n 's/^turns red: //p' "$patch")
    [ "${#words[@]}" -ge 2 ] || { echo "planted $1: it names no test"; return 1; }
    test=${words[-1]}
    unset 'words[-1]'
    if ! patch --silent --force --no-backup-if-mismatch --fuzz=3 -d "$tree" -p1 <"$patch" >"$log" 2>&1; then
        echo "planted $1: the patch no longer applies (target/planted/$1.log)"
        status=1
    elif ! (cd "$tree" && cargo test --quiet "${profile[@]}" --release --features tls "${words[@]}" --no-run) >"$log" 2>&1; then
        echo "planted $1: the tree no longer compiles with it (target/planted/$1.log)"
        status=1
    elif (cd "$tree" && cargo test "${profile[@]}" --release --features tls "${words[@]}" -- "$test") >"$log" 2>&1; then
        echo "planted $1: $test stays green"
        status=1
    elif ! grep -qE "^test .*$test .*FAILED|^test $test \.\.\. FAILED|^    .*$test$" "$log"; then
        echo "planted $1: something failed, but not $test (target/planted/$1.log)"
        status=1
    else
        echo "planted $1: $test turns red"
    fi
    # As it was, and newer than what was built with the bug.
    for file in $(files "$patch"); do
        cp "$file" "$tree/$file"
        touch "$tree/$file"
        rm -f "$tree/$file.rej" "$tree/$file.orig"
    done
    return "$status"
}

names=("$@")
if [ "${#names[@]}" = 0 ]; then
    for patch in tests/planted/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi
seed
copy
failed=0 passed=0
for name in "${names[@]}"; do
    if red "$name"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
done
# As libtest says it, for who adds up.
printf 'test result: planted bugs. %d passed; %d failed;\n' "$passed" "$failed"
[ "$failed" = 0 ]
