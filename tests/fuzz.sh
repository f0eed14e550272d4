#!/usr/bin/env bash
# Runs the targets of fuzz/ under libFuzzer and the address sanitizer, FUZZ_SECONDS (60) each.
#
#   tests/fuzz.sh [TARGET...]     without targets: all of them
#
# A crash, an input that takes longer than 10 s, and a piece of memory above 64 MB are failures; libFuzzer says where it
# put the input. Needs a nightly toolchain; cargo-fuzz is installed into the ignored folder .cache/ where it is missing.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
export PATH=$PWD/../.cache/fuzz/bin:$PATH
rustup run nightly rustc --version >/dev/null 2>&1 || { echo 'fuzz: rustup toolchain install nightly'; exit 1; }
# The C code that we link is not what is fuzzed, and librdkafka's configure script does not find it under the sanitizer.
export CFLAGS="${CFLAGS:-} -fno-sanitize=all"
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz --root ../.cache/fuzz
targets=("$@")
[ "$#" -gt 0 ] || mapfile -t targets < <(cargo +nightly fuzz list)
cargo +nightly fuzz build
for target in "${targets[@]}"; do
    # What is found goes to the first folder; the others are where it begins.
    corpus=("corpus/$target")
    mkdir -p "${corpus[0]}"
    case $target in
        decode_*) corpus+=(seeds/decode) ;;
        time) corpus+=(seeds/time) ;;
        configuration) corpus+=(../config) ;;
    esac
    echo "fuzz: $target"
    cargo +nightly fuzz run "$target" "${corpus[@]}" -- \
        -max_total_time="${FUZZ_SECONDS:-60}" -timeout=10 -malloc_limit_mb=64 -verbosity=0 -print_final_stats=1 2>&1 |
        grep -vE '^ *(Finished|Running)|^$'
done
