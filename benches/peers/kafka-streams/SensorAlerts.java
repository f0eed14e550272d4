import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.time.DateTimeException;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.ProcessorSupplier;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * Readings without their duplicates, a rolling minute per series, and an alert whenever a rule begins or ceases to hold.
 *
 * <p>The topic is keyed by sensor, so nothing is repartitioned. Stores are in memory and, unless `changelog` is said,
 * without a changelog topic.
 *
 * <p>SensorAlerts BOOTSTRAP TOPIC ALERT_TOPIC WORKERS [changelog]
 */
public final class SensorAlerts {
    private record Rule(String name, String statistic, boolean above, double limit) {}

    private static final Map<String, List<Rule>> RULES = Map.of(
            "temperature", List.of(new Rule("temperature", "value", true, 35.0)),
            "humidity", List.of(new Rule("humidity", "value", false, 30.0)),
            "pressure", List.of(new Rule("pressure", "value", true, 1050.0)),
            "pm10", List.of(
                    new Rule("pm10", "value", true, 80.0),
                    new Rule("pm10-mean", "mean", true, 35.00371),
                    new Rule("pm10-deviation", "deviation", true, 4.00371)),
            "pm25", List.of(new Rule("pm25", "value", true, 50.0)),
            "co2", List.of(new Rule("co2", "value", true, 1500.0)));
    private static final long WINDOW_MS = 60_000;
    private static final long DEDUP_MS = 600_000;

    private static final LongAdder records = new LongAdder();
    private static final LongAdder accepted = new LongAdder();
    private static final LongAdder behind = new LongAdder();
    private static final LongAdder duplicates = new LongAdder();
    private static final LongAdder deadLetters = new LongAdder();
    private static final LongAdder alerts = new LongAdder();

    public static class Message {
        public String unique_reading_id;
        public String sensor_id;
        public String type;
        public Double value;
        public String timestamp;
    }

    private record Reading(String id, String sensor, String metric, double value, long time) {}

    private record Entry(long time, double value) {}

    /** The last minute of a series, its mean and deviation, and which of its rules are firing, as bits. */
    private static final class Series {
        long clock;
        double mean;
        double m2;
        int firing;
        final List<Entry> window = new ArrayList<>();

        /** Moves mean and deviation (Welford, with removal). */
        void add(long time, double value) {
            clock = Math.max(clock, time);
            int at = window.size();
            while (at > 0 && window.get(at - 1).time > time) {
                at--;
            }
            window.add(at, new Entry(time, value));
            double d = value - mean;
            mean += d / window.size();
            m2 += d * (value - mean);
            while (window.get(0).time <= clock - WINDOW_MS) {
                double old = window.remove(0).value;
                d = old - mean;
                mean -= d / window.size();
                m2 -= d * (old - mean);
            }
        }

        double statistic(String name, double value) {
            return switch (name) {
                case "mean" -> mean;
                case "deviation" -> Math.sqrt(Math.max(m2, 0) / (window.size() - 1)); // NaN for one reading
                default -> value;
            };
        }

        static final Serializer<Series> SERIALIZER = (topic, s) -> {
            if (s == null) {
                return null;
            }
            ByteBuffer bytes = ByteBuffer.allocate(28 + 16 * s.window.size());
            bytes.putLong(s.clock).putDouble(s.mean).putDouble(s.m2).putInt(s.firing);
            s.window.forEach(e -> bytes.putLong(e.time).putDouble(e.value));
            return bytes.array();
        };
        static final Deserializer<Series> DESERIALIZER = (topic, data) -> {
            if (data == null) {
                return null;
            }
            ByteBuffer bytes = ByteBuffer.wrap(data);
            Series s = new Series();
            s.clock = bytes.getLong();
            s.mean = bytes.getDouble();
            s.m2 = bytes.getDouble();
            s.firing = bytes.getInt();
            while (bytes.hasRemaining()) {
                s.window.add(new Entry(bytes.getLong(), bytes.getDouble()));
            }
            return s;
        };
        static final Serde<Series> SERDE = Serdes.serdeFrom(SERIALIZER, DESERIALIZER);
    }

    private static final class Judge implements Processor<String, byte[], String, String> {
        private final ObjectMapper json = new ObjectMapper();
        private ProcessorContext<String, String> context;
        private KeyValueStore<String, Long> seen;
        private KeyValueStore<String, Series> all;
        private long newest;

        @Override
        public void init(ProcessorContext<String, String> context) {
            this.context = context;
            seen = context.getStateStore("seen");
            all = context.getStateStore("series");
            // Record time stamps are event times here; ids are let go every other minute of them.
            context.schedule(Duration.ofMinutes(2), PunctuationType.STREAM_TIME, now -> forget());
        }

        private void forget() {
            try (KeyValueIterator<String, Long> ids = seen.all()) {
                while (ids.hasNext()) {
                    KeyValue<String, Long> id = ids.next();
                    if (id.value < newest - DEDUP_MS - 60_000) {
                        seen.delete(id.key);
                    }
                }
            }
        }

        private Reading parse(byte[] payload) {
            try {
                Message m = json.readValue(payload, Message.class);
                if (m.unique_reading_id == null || m.sensor_id == null || m.type == null) {
                    return null;
                }
                long time = Instant.parse(m.timestamp).toEpochMilli();
                return new Reading(m.unique_reading_id, m.sensor_id, m.type, m.value, time);
            } catch (IOException | DateTimeException | NullPointerException e) {
                return null;
            }
        }

        @Override
        public void process(Record<String, byte[]> record) {
            Reading r = parse(record.value());
            if (r == null) {
                deadLetters.increment();
            } else {
                accept(r, record);
            }
            records.increment(); // last: when all are counted, the program ends
        }

        private void accept(Reading r, Record<String, byte[]> record) {
            String key = r.sensor + '/' + r.metric;
            Series series = all.get(key);
            if (series == null) {
                series = new Series();
            }
            Long known = seen.get(r.id);
            if (known != null && known >= series.clock - DEDUP_MS) {
                duplicates.increment();
                return;
            }
            seen.put(r.id, r.time);
            accepted.increment();
            newest = Math.max(newest, r.time);
            boolean late = r.time < series.clock;
            series.add(r.time, r.value);
            if (late) {
                behind.increment();
            } else {
                List<Rule> rules = RULES.getOrDefault(r.metric, List.of());
                for (int n = 0; n < rules.size(); n++) {
                    judge(rules.get(n), 1 << n, r, series, record);
                }
            }
            all.put(key, series);
        }

        private void judge(Rule rule, int bit, Reading r, Series series, Record<String, byte[]> record) {
            double x = series.statistic(rule.statistic, r.value);
            boolean beyond = rule.above ? x > rule.limit : x < rule.limit;
            if (Double.isNaN(x) || beyond == ((series.firing & bit) != 0)) {
                return;
            }
            series.firing ^= bit;
            alerts.increment();
            Map<String, Object> alert = new LinkedHashMap<>();
            alert.put("rule", rule.name);
            alert.put("sensor", r.sensor);
            alert.put("metric", r.metric);
            alert.put("value", x);
            alert.put("state", beyond ? "firing" : "resolved");
            alert.put("time", r.time);
            try {
                context.forward(record.withKey(r.sensor).withValue(json.writeValueAsString(alert)));
            } catch (IOException e) {
                throw new IllegalStateException(e);
            }
        }
    }

    private static ProcessorSupplier<String, byte[], String, String> judging(boolean changelog) {
        return new ProcessorSupplier<>() {
            @Override
            public Processor<String, byte[], String, String> get() {
                return new Judge();
            }

            @Override
            public Set<StoreBuilder<?>> stores() {
                StoreBuilder<?> seen = Stores.keyValueStoreBuilder(
                        Stores.inMemoryKeyValueStore("seen"), Serdes.String(), Serdes.Long());
                StoreBuilder<?> series = Stores.keyValueStoreBuilder(
                        Stores.inMemoryKeyValueStore("series"), Serdes.String(), Series.SERDE);
                return changelog ? Set.of(seen, series) : Set.of(seen.withLoggingDisabled(), series.withLoggingDisabled());
            }
        };
    }

    /** How many records the topic holds. */
    private static long end(String bootstrap, String topic) {
        Map<String, Object> config = Map.of(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        try (var consumer = new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                    .map(p -> new TopicPartition(topic, p.partition()))
                    .toList();
            return consumer.endOffsets(partitions).values().stream().mapToLong(Long::longValue).sum();
        }
    }

    public static void main(String[] args) throws Exception {
        Properties config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, "sensor-alerts-" + args[2]);
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, args[3]);
        config.put(StreamsConfig.STATE_DIR_CONFIG, Files.createTempDirectory("kafka-streams").toString());
        config.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");

        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(args[1], Consumed.with(Serdes.String(), Serdes.ByteArray()))
                .process(judging(args.length > 4 && args[4].equals("changelog")))
                .to(args[2], Produced.with(Serdes.String(), Serdes.String()));
        long end = end(args[0], args[1]);
        try (KafkaStreams streams = new KafkaStreams(builder.build(), config)) {
            streams.start();
            while (streams.state() != KafkaStreams.State.RUNNING || records.sum() < end) {
                if (streams.state() == KafkaStreams.State.ERROR) {
                    throw new IllegalStateException("the stream threads have died");
                }
                Thread.sleep(20);
            }
        }
        Map<String, Object> counts = new LinkedHashMap<>();
        counts.put("records", records.sum());
        counts.put("accepted", accepted.sum());
        counts.put("behind", behind.sum());
        counts.put("duplicates", duplicates.sum());
        counts.put("dead_letters", deadLetters.sum());
        counts.put("alerts", alerts.sum());
        System.out.println(new ObjectMapper().writeValueAsString(counts));
    }
}
