import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.time.DateTimeException;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.flink.api.common.JobExecutionResult;
import org.apache.flink.api.common.accumulators.LongCounter;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichFlatMapFunction;
import org.apache.flink.api.common.serialization.SimpleStringSchema;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Readings without their duplicates, a rolling minute per series, and an alert whenever a rule begins or ceases to hold.
 *
 * <p>One keyBy: keyed by id first and by series then, a series' readings would be reordered on the way. State is one
 * object per series on the heap, the fastest there is.
 *
 * <p>SensorAlerts BOOTSTRAP TOPIC ALERT_TOPIC WORKERS [CHECKPOINT_MS CHECKPOINT_DIR]
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

    public static class Message {
        public String unique_reading_id;
        public String sensor_id;
        public String type;
        public Double value;
        public String timestamp;
    }

    public static class Reading {
        public String id;
        public String sensor;
        public String metric;
        public double value;
        public long time;
    }

    public static class Entry {
        public long time;
        public double value;
    }

    /** What is known of a series. */
    public static class Series {
        public long clock;
        public LinkedHashMap<String, Long> seen = new LinkedHashMap<>(); // not Map: its order must survive a checkpoint
        public List<Entry> window = new ArrayList<>();
        public double mean;
        public double m2;
        public Set<String> firing = new HashSet<>();

        /** Whether the id is new within ten minutes of event time. */
        boolean firstSeen(String id, long time) {
            if (seen.putIfAbsent(id, time) != null) {
                return false;
            }
            Iterator<Long> oldest = seen.values().iterator();
            while (oldest.hasNext() && oldest.next() < clock - DEDUP_MS) {
                oldest.remove();
            }
            return true;
        }

        /** Moves mean and deviation of the last minute (Welford, with removal). */
        void add(long time, double value) {
            clock = Math.max(clock, time);
            Entry entry = new Entry();
            entry.time = time;
            entry.value = value;
            int at = window.size();
            while (at > 0 && window.get(at - 1).time > time) {
                at--;
            }
            window.add(at, entry);
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
    }

    static class Parse extends RichFlatMapFunction<byte[], Reading> {
        private transient ObjectMapper json;
        private final LongCounter records = new LongCounter();
        private final LongCounter deadLetters = new LongCounter();

        @Override
        public void open(OpenContext context) {
            json = new ObjectMapper();
            getRuntimeContext().addAccumulator("records", records);
            getRuntimeContext().addAccumulator("dead_letters", deadLetters);
        }

        @Override
        public void flatMap(byte[] payload, Collector<Reading> out) {
            records.add(1);
            try {
                Message m = json.readValue(payload, Message.class);
                Reading r = new Reading();
                r.id = m.unique_reading_id;
                r.sensor = m.sensor_id;
                r.metric = m.type;
                r.value = m.value;
                r.time = Instant.parse(m.timestamp).toEpochMilli();
                if (r.id == null || r.sensor == null || r.metric == null) {
                    throw new IOException("a field is missing");
                }
                out.collect(r);
            } catch (IOException | DateTimeException | NullPointerException e) {
                deadLetters.add(1);
            }
        }
    }

    static class Judge extends KeyedProcessFunction<String, Reading, String> {
        private transient ValueState<Series> state;
        private transient ObjectMapper json;
        private final LongCounter accepted = new LongCounter();
        private final LongCounter behind = new LongCounter();
        private final LongCounter duplicates = new LongCounter();
        private final LongCounter alerts = new LongCounter();

        @Override
        public void open(OpenContext context) {
            state = getRuntimeContext().getState(new ValueStateDescriptor<>("series", Series.class));
            json = new ObjectMapper();
            getRuntimeContext().addAccumulator("accepted", accepted);
            getRuntimeContext().addAccumulator("behind", behind);
            getRuntimeContext().addAccumulator("duplicates", duplicates);
            getRuntimeContext().addAccumulator("alerts", alerts);
        }

        @Override
        public void processElement(Reading r, Context context, Collector<String> out) throws Exception {
            Series series = state.value();
            if (series == null) {
                series = new Series();
            }
            if (!series.firstSeen(r.id, r.time)) {
                duplicates.add(1);
                return;
            }
            accepted.add(1);
            boolean late = r.time < series.clock;
            series.add(r.time, r.value);
            if (late) {
                behind.add(1);
            } else {
                for (Rule rule : RULES.getOrDefault(r.metric, List.of())) {
                    judge(rule, r, series, out);
                }
            }
            state.update(series);
        }

        private void judge(Rule rule, Reading r, Series series, Collector<String> out) throws IOException {
            double x = series.statistic(rule.statistic, r.value);
            boolean beyond = rule.above ? x > rule.limit : x < rule.limit;
            if (Double.isNaN(x) || beyond == series.firing.contains(rule.name)) {
                return;
            }
            if (beyond) {
                series.firing.add(rule.name);
            } else {
                series.firing.remove(rule.name);
            }
            alerts.add(1);
            Map<String, Object> alert = new LinkedHashMap<>();
            alert.put("rule", rule.name);
            alert.put("sensor", r.sensor);
            alert.put("metric", r.metric);
            alert.put("value", x);
            alert.put("state", beyond ? "firing" : "resolved");
            alert.put("time", r.time);
            out.collect(json.writeValueAsString(alert));
        }
    }

    public static void main(String[] args) throws Exception {
        Configuration configuration = new Configuration();
        configuration.set(PipelineOptions.OBJECT_REUSE, true);
        StreamExecutionEnvironment env =
                StreamExecutionEnvironment.createLocalEnvironment(Integer.parseInt(args[3]), configuration);
        if (args.length > 4) {
            env.enableCheckpointing(Long.parseLong(args[4]));
            env.configure(new Configuration().set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, args[5]));
        }
        KafkaSource<byte[]> source = KafkaSource.<byte[]>builder()
                .setBootstrapServers(args[0])
                .setTopics(args[1])
                .setGroupId("flink")
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setBounded(OffsetsInitializer.latest())
                .setDeserializer(KafkaRecordDeserializationSchema.valueOnly(ByteArrayDeserializer.class))
                .build();
        KafkaSink<String> sink = KafkaSink.<String>builder()
                .setBootstrapServers(args[0])
                .setRecordSerializer(KafkaRecordSerializationSchema.builder()
                        .setTopic(args[2])
                        .setValueSerializationSchema(new SimpleStringSchema())
                        .build())
                .setDeliveryGuarantee(DeliveryGuarantee.AT_LEAST_ONCE)
                .build();
        env.fromSource(source, WatermarkStrategy.noWatermarks(), "readings")
                .flatMap(new Parse())
                .keyBy(r -> r.sensor + '/' + r.metric)
                .process(new Judge())
                .sinkTo(sink);
        JobExecutionResult result = env.execute("sensor alerts");
        System.out.println(new ObjectMapper().writeValueAsString(result.getAllAccumulatorResults()));
    }
}
