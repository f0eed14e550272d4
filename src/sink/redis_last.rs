//! The newest reading of every sensor in Redis: a hash per sensor, with the fields `METRIC` and `METRIC:time`.
//!
//! Effectively once: set only where nothing newer by event time stands there, so that repeating changes nothing. Of a
//! batch only the newest reading per series is sent. Readings that are late, behind or in the future say nothing about
//! now, and are left out.

use super::redis::{FENCE, FORGETS_US, Link};
use super::*;
use crate::config::RedisLastSink;
use ::redis::{RedisResult, Script, Value};
use operators::{SeriesName, Verdict};
use std::collections::HashMap;

/// After the fence: a key per series, and for each the metric, the value and the time. Times are compared as text of
/// whole numbers, because Lua's numbers are not exact beyond 2^53. Of equal times the later reading stands.
const SET: &str = r"
local function older(a, b)
  local negative = string.sub(a, 1, 1) == '-'
  if negative ~= (string.sub(b, 1, 1) == '-') then
    return negative
  end
  if #a ~= #b then
    return (#a < #b) ~= negative
  end
  if negative then
    return a > b
  end
  return a < b
end
for i = 2, #KEYS do
  local metric, value, time = ARGV[i * 3 - 4], ARGV[i * 3 - 3], ARGV[i * 3 - 2]
  local known = redis.call('HGET', KEYS[i], metric .. ':time')
  if not known or not older(time, known) then
    redis.call('HSET', KEYS[i], metric, value, metric .. ':time', time)
  end
end
return redis.status_reply('OK')
";

/// A script holds up the whole server: so many series take about a millisecond.
const SERIES_AT_ONCE: usize = 500;

/// Hashes of last values.
pub struct RedisLast {
    link: Link,
    prefix: String,
    term: u64,
    fence: Script,
    set: Script,
}

impl RedisLast {
    /// By its settings, not connected yet.
    pub fn new(settings: &RedisLastSink) -> Result<Self, StartError> {
        Ok(Self {
            link: Link::new(&settings.url, settings.password.as_ref())?,
            prefix: settings.prefix.clone(),
            term: 0,
            fence: Script::new(FENCE),
            set: Script::new(&[FENCE, SET].concat()),
        })
    }

    /// What `check` shows.
    pub async fn look(&mut self) -> Result<String, StartError> {
        Ok(format!("{}, keys {}SENSOR", self.link.look().await?, self.prefix))
    }

    /// Not below the prefix, where a sensor may have any name.
    fn fence_key(&self) -> String {
        format!("streamgauge:{}", self.prefix)
    }
}

/// The newest accepted reading of each series, in the order in which the series first appear.
fn newest(batch: &[Rows]) -> (Vec<(&SeriesName, i64, f64)>, u64, u64) {
    let (mut at, mut series) = (HashMap::new(), Vec::new());
    let (mut accepted, mut unnamed) = (0, 0);
    for rows in batch {
        let table = std::sync::Arc::as_ptr(&rows.names);
        for row in rows.batch.rows.iter().filter(|row| row.verdict == Verdict::Accepted) {
            let place = *at.entry((table, row.series)).or_insert_with(|| {
                let name = rows.names.name(row.series)?;
                series.push((name, row.time, row.value));
                Some(series.len() - 1)
            });
            match place {
                Some(place) => {
                    let newest = &mut series[place];
                    if row.time >= newest.1 {
                        (newest.1, newest.2) = (row.time, row.value);
                    }
                    accepted += 1;
                }
                None => unnamed += 1,
            }
        }
    }
    (series, accepted, unnamed)
}

impl Sink for RedisLast {
    type Item = Rows;

    fn traits(&self) -> Traits {
        Traits { in_checkpoint: false, forgets_us: FORGETS_US, batch_entries: 50_000, batch_bytes: 8 << 20 }
    }

    async fn connect(&mut self, term: u64) -> Result<(), StartError> {
        self.term = term;
        self.link.look().await?;
        let mut fence = self.fence.prepare_invoke();
        fence.key(self.fence_key()).arg(term);
        let answer: RedisResult<Value> = match self.link.get() {
            Ok(connection) => fence.invoke_async(connection).await,
            Err(error) => return Err(StartError::Unreachable(error.to_string())),
        };
        answer.map(drop).map_err(|error| self.link.start_error(&error))
    }

    async fn write(&mut self, batch: &[Rows]) -> Result<Written, SinkError> {
        let (series, entries, unnamed) = newest(batch);
        for chunk in series.chunks(SERIES_AT_ONCE) {
            let mut set = self.set.prepare_invoke();
            set.key(self.fence_key()).arg(self.term);
            for (name, time, value) in chunk {
                set.key(format!("{}{}", self.prefix, name.sensor));
                set.arg(&*name.metric).arg(line::number(*value)).arg(*time);
            }
            let answer: RedisResult<Value> = set.invoke_async(self.link.get()?).await;
            answer.map_err(|error| self.link.failed(&error))?;
        }
        let refused = if unnamed > 0 { vec![("unnamed", unnamed)] } else { Vec::new() };
        Ok(Written { entries, refused, ..Written::default() })
    }

    async fn probe(&mut self) -> Result<(), SinkError> {
        self.link.probe().await
    }
}
