#!/usr/bin/env bash
# A real Apache Kafka broker, alone, in KRaft mode (no ZooKeeper).
#
#   kafka.sh start DIR [PORT] [--until PID] [--sasl USER:PASSWORD]     restart DIR     stop DIR     kill9 DIR
#   kafka.sh topic DIR NAME PARTITIONS        (2 s of Java; tests ask the broker themselves)
#
# With --sasl the port asks for SASL/PLAIN; DIR/internal_port never does.
# shellcheck source=tests/servers/lib.sh
. "$(dirname "$0")/lib.sh"
OPTIONS='--sasl'

jars() { printf '%s/kafka/libs/*' "$cache"; }
installed() { [ -e "$cache/kafka/installed" ] && command -v java >/dev/null && command -v kcat >/dev/null; }

# C1 and the serial collector: a broker for a test is young all its life, and starts 2 s sooner so.
java_command() {
    CMD=(java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.net.preferIPv4Stack=true
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dlog4j2.level=WARN -cp "$(jars)" "$@")
}

configure() {
    local dir=$1 port=$2 internal controller
    internal=$(other_port "$port")
    controller=$(other_port "$port" "$internal")
    printf '%s\n' "$internal" >"$dir/internal_port"
    {
        cat <<CONFIG
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
controller.listener.names=CONTROLLER
listeners=CLIENT://127.0.0.1:$port,INTERNAL://127.0.0.1:$internal,CONTROLLER://127.0.0.1:$controller
advertised.listeners=CLIENT://127.0.0.1:$port,INTERNAL://127.0.0.1:$internal
inter.broker.listener.name=INTERNAL
log.dirs=$dir/data
auto.create.topics.enable=false
# One broker: nothing is replicated.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# A start takes several heartbeats, and one after kill -9 waits until the broker that was is given up.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=6000
# Records carry times from 1970 to 2106, and real data of 2018: a broker that believed them would delete, roll a
# segment for each week, or refuse.
log.retention.ms=-1
log.roll.ms=9223372036854775807
log.message.timestamp.after.max.ms=9223372036854775807
# A record of 1 MB is something that tests send.
message.max.bytes=4194304
log.cleaner.dedupe.buffer.size=16777216
CONFIG
        if [ -n "${option[sasl]:-}" ]; then
            cat <<CONFIG
listener.security.protocol.map=CLIENT:SASL_PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT
listener.name.client.sasl.enabled.mechanisms=PLAIN
listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_${option[sasl]%%:*}="${option[sasl]#*:}";
CONFIG
        else
            echo 'listener.security.protocol.map=CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT'
        fi
    } >"$dir/server.properties"
    [ -e "$dir/data/meta.properties" ] && return 0
    java_command kafka.tools.StorageTool format -t streamgauge-tests-0000 -c "$dir/server.properties"
    "${CMD[@]}" >>"$dir/log" 2>&1 || fail "cannot format $dir/data: $(tail -n 3 "$dir/log")"
}

command_line() { java_command kafka.Kafka "$1/server.properties"; }

# Asked at the internal port, which takes no password; the client port is open when that one is.
answers() { kcat -b "127.0.0.1:$(cat "$1/internal_port")" -L -m 2 >/dev/null 2>&1; }

if [ "${1:-}" = topic ] && [ $# -eq 4 ]; then
    java_command org.apache.kafka.tools.TopicCommand --bootstrap-server "127.0.0.1:$(cat "$2/internal_port")" \
        --create --topic "$3" --partitions "$4"
    exec "${CMD[@]}"
fi
serve "$@"
