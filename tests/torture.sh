#!/usr/bin/env bash
# The long forms of the tests that kill, fill, stop, freeze and cut things. Each adds a line to TESTED.md.
#
#   tests/torture.sh [NAME...]     without names: all of them, for some hours
#
# How often is in the environment: KILLS=500 FAILPOINTS=20 RESCALES=100 BROKER_KILLS=20 FAULT_ROUNDS=6 FAULT_SECONDS=60
# SLOW_SECONDS=600 ZOMBIES=100 CUTS=3 DEATHS=20 DISK_FAULTS=1000 DISK_ROUNDS=20 DAMAGES=600000 SEEDS=10000 CLOCKS=800
# SEED=N (one that is drawn, otherwise). What was reached is published, whatever it is.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export SG_TESTED=$PWD/TESTED.md
export SG_SEED=${SEED:-$((RANDOM * 32768 + RANDOM))}

# it COMMAND FILTER VARIABLE=VALUE...: one test of tests/it.
it() {
    local said=$1 filter=$2
    shift 2
    env "$@" SG_COMMAND="$said tests/torture.sh $name" \
        cargo test --release --features tls --test it -- "$filter" --nocapture --test-threads 1
}

torture() {
    name=$1
    case $name in
        kills) it "KILLS=${KILLS:-500} SEED=$SG_SEED" crash:: "SG_KILLS=${KILLS:-500}" ;;
        failpoints) it "FAILPOINTS=${FAILPOINTS:-20} SEED=$SG_SEED" failpoints:: "SG_FAILPOINTS=${FAILPOINTS:-20}" ;;
        rescale) it "RESCALES=${RESCALES:-100} SEED=$SG_SEED" rescale:: "SG_RESCALES=${RESCALES:-100}" ;;
        broker) it "BROKER_KILLS=${BROKER_KILLS:-20}" broker:: "SG_BROKER_KILLS=${BROKER_KILLS:-20}" ;;
        redis)
            it "FAULT_ROUNDS=${FAULT_ROUNDS:-6} FAULT_SECONDS=${FAULT_SECONDS:-60}" redis_faults:: \
                "SG_FAULT_ROUNDS=${FAULT_ROUNDS:-6}" "SG_FAULT_SECONDS=${FAULT_SECONDS:-60}"
            ;;
        slow) it "SLOW_SECONDS=${SLOW_SECONDS:-600}" slow_sink:: "SG_SLOW_SECONDS=${SLOW_SECONDS:-600}" ;;
        disk)
            it "DISK_FAULTS=${DISK_FAULTS:-1000} DISK_ROUNDS=${DISK_ROUNDS:-20}" full_disk:: \
                "SG_DISK_FAULTS=${DISK_FAULTS:-1000}" "SG_DISK_ROUNDS=${DISK_ROUNDS:-20}"
            ;;
        zombies) it "ZOMBIES=${ZOMBIES:-100} SEED=$SG_SEED" zombie:: "SG_ZOMBIES=${ZOMBIES:-100}" ;;
        cuts) it "CUTS=${CUTS:-3}" cut_off:: "SG_CUTS=${CUTS:-3}" ;;
        mesh) it "DEATHS=${DEATHS:-20}" mesh:: "SG_DEATHS=${DEATHS:-20}" ;;
        damage)
            SG_COMMAND="DAMAGES=${DAMAGES:-600000} tests/torture.sh damage" SG_DAMAGES=${DAMAGES:-600000} \
                cargo test --release --features tls --test damage -- no_damage --nocapture
            ;;
        sim)
            SG_COMMAND="SEEDS=${SEEDS:-10000} tests/torture.sh sim" SIM_SEEDS=${SEEDS:-10000} \
                cargo test --release --features tls --test simulation seeds_with_faults -- --nocapture
            ;;
        clocks)
            SG_COMMAND="CLOCKS=${CLOCKS:-800} tests/torture.sh clocks" SIM_CLOCKS=${CLOCKS:-800} \
                cargo test --release --features tls --test simulation wrong_clocks -- --nocapture
            ;;
        planted) tests/planted.sh ;;
        *)
            echo "torture: there is no $name" >&2
            return 1
            ;;
    esac
}

all=(planted damage sim clocks cuts mesh kills zombies failpoints rescale broker redis disk slow)
[ "$#" -gt 0 ] || set -- "${all[@]}"
tests/servers/install.sh || exit 1
failed=()
for name in "$@"; do
    echo "torture: $name, SEED=$SG_SEED"
    torture "$name" || failed+=("$name")
done
if [ "${#failed[@]}" -gt 0 ]; then
    echo "torture: failed: ${failed[*]} (SEED=$SG_SEED)"
    exit 1
fi
echo "torture: all went well"
