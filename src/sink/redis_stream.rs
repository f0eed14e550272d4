//! Alerts to a Redis Stream: exactly once.
//!
//! The position is the entry's id, `epoch-n`. One script per batch refuses an older term (R9), skips what is at or below
//! the stream's last id, and adds the rest: so a batch can be sent again after any crash, whole or in part.

use super::redis::{FENCE, FORGETS_US, Link};
use super::*;
use crate::config::RedisStreamSink;
use ::redis::{Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, Value, cmd, streams::StreamInfoStreamReply};

/// After the fence: `KEYS[2]` is the stream, `ARGV[2]` its length at most (0: any), `ARGV[3]` and `ARGV[4]` the last id
/// as we know it; then per entry the epoch, n, the number of fields and values, and these.
///
/// The last id must be the one we know: a lower one says that the server has forgotten something, a higher one that
/// somebody else has written. An entry that is there already must be the same transition of the same alert.
const ADD: &str = r"
local key, added = KEYS[2], 0
local epoch, n = 0, 0
if redis.call('EXISTS', key) == 1 then
  local info = redis.call('XINFO', 'STREAM', key)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local a, b = string.match(info[i + 1], '^(%d+)-(%d+)$')
      epoch, n = tonumber(a), tonumber(b)
    end
  end
end
local e, m = tonumber(ARGV[3]), tonumber(ARGV[4])
if epoch < e or (epoch == e and n < m) then
  return redis.error_reply('WENTBACK to ' .. string.format('%.0f-%.0f', epoch, n))
end
if epoch > e or n > m then
  return redis.error_reply('FOREIGN its last id is ' .. string.format('%.0f-%.0f', epoch, n))
end
local i = 5
while i <= #ARGV do
  local e, m, count = tonumber(ARGV[i]), tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local id = ARGV[i] .. '-' .. ARGV[i + 1]
  if e > epoch or (e == epoch and m > n) then
    local entry = {}
    if ARGV[2] ~= '0' then
      entry = {'MAXLEN', '~', ARGV[2]}
    end
    entry[#entry + 1] = id
    for j = i + 3, i + 2 + count do
      entry[#entry + 1] = ARGV[j]
    end
    redis.call('XADD', key, unpack(entry))
    added = added + 1
  else
    local there = redis.call('XRANGE', key, id, id)[1]
    if there then
      local has = {}
      for j = 1, #there[2], 2 do
        has[there[2][j]] = there[2][j + 1]
      end
      for j = i + 3, i + 2 + count, 2 do
        local name = ARGV[j]
        if (name == 'alert' or name == 'transition') and has[name] ~= ARGV[j + 1] then
          return redis.error_reply('FOREIGN entry ' .. id .. ' is not ours')
        end
      end
    end
  end
  i = i + 3 + count
end
return added
";

/// A stream.
pub struct RedisStream {
    link: Link,
    key: String,
    maxlen: u64,
    term: u64,
    /// The stream's last id, as we know it.
    last: Position,
    fence: Script,
    add: Script,
}

impl RedisStream {
    /// By its settings, not connected yet.
    pub fn new(settings: &RedisStreamSink) -> Result<Self, StartError> {
        Ok(Self {
            link: Link::new(&settings.url, settings.password.as_ref())?,
            key: settings.key.clone(),
            maxlen: settings.maxlen.unwrap_or(0),
            term: 0,
            last: Position::default(),
            fence: Script::new(FENCE),
            add: Script::new(&[FENCE, ADD].concat()),
        })
    }

    /// What `check` shows.
    pub async fn look(&mut self) -> Result<String, StartError> {
        let server = self.link.look().await?;
        let kind: RedisResult<String> = match self.link.get() {
            Ok(connection) => ::redis::cmd("TYPE").arg(&self.key).query_async(connection).await,
            Err(error) => return Err(StartError::Unreachable(error.to_string())),
        };
        match kind.map_err(|error| self.link.start_error(&error))?.as_str() {
            "none" => Ok(format!("{server}, stream {} is new", self.key)),
            "stream" => Ok(format!("{server}, stream {}", self.key)),
            other => Err(StartError::Settings(format!(
                "{}: key {} holds a {other}, not a stream; choose another key, or remove it",
                self.link.shown(),
                self.key
            ))),
        }
    }

    fn fence_key(&self) -> String {
        format!("{}:streamgauge", self.key)
    }
}

impl Sink for RedisStream {
    type Item = Alerts;

    fn traits(&self) -> Traits {
        // A script holds up the whole server: a batch takes a few milliseconds.
        Traits { in_checkpoint: false, forgets_us: FORGETS_US, batch_entries: 500, batch_bytes: 1 << 20 }
    }

    async fn connect(&mut self, term: u64) -> Result<(), StartError> {
        self.term = term;
        self.look().await?;
        let mut fence = self.fence.prepare_invoke();
        fence.key(self.fence_key()).arg(term);
        let answer: RedisResult<Value> = match self.link.get() {
            Ok(connection) => fence.invoke_async(connection).await,
            Err(error) => return Err(StartError::Unreachable(error.to_string())),
        };
        answer.map(drop).map_err(|error| self.link.start_error(&error))
    }

    async fn position(&mut self) -> Result<Option<Position>, SinkError> {
        let connection = self.link.get()?;
        let exists: RedisResult<bool> = ::redis::cmd("EXISTS").arg(&self.key).query_async(connection).await;
        match exists {
            Ok(true) => {}
            Ok(false) => {
                self.last = Position::default();
                return Ok(Some(self.last));
            }
            Err(error) => return Err(self.link.failed(&error)),
        }
        let info: RedisResult<StreamInfoStreamReply> =
            ::redis::cmd("XINFO").arg("STREAM").arg(&self.key).query_async(self.link.get()?).await;
        let id = info.map_err(|error| self.link.failed(&error))?.last_generated_id;
        let position =
            id.split_once('-').and_then(|(epoch, n)| Some(Position { epoch: epoch.parse().ok()?, n: n.parse().ok()? }));
        // No entry of ours has a number beyond 32 bits.
        self.last = position.ok_or_else(|| SinkError::Foreign(format!("{}: its last id is {id}", self.key)))?;
        Ok(Some(self.last))
    }

    async fn write(&mut self, batch: &[Alerts]) -> Result<Written, SinkError> {
        // What `Script` would send, without an allocation for each of an entry's thirty words.
        let mut add = cmd("EVALSHA");
        add.arg(self.add.get_hash()).arg(2).arg(self.fence_key()).arg(&self.key).arg(self.term).arg(self.maxlen);
        add.arg(self.last.epoch).arg(self.last.n);
        let mut entries = 0;
        for alerts in batch {
            for entry in &alerts.0.alerts {
                add.arg(alerts.0.epoch).arg(entry.n);
                fields(entry, &mut add);
                entries += 1;
            }
        }
        let mut answer: RedisResult<u64> = add.query_async(self.link.get()?).await;
        if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
            // The first time, and when the server was started anew.
            let loaded: RedisResult<String> = self.add.prepare_invoke().load_async(self.link.get()?).await;
            if let Err(error) = loaded {
                return Err(self.link.failed(&error));
            }
            answer = add.query_async(self.link.get()?).await;
        }
        match answer {
            Ok(_) => {
                self.last = batch.last().and_then(Item::last).unwrap_or_default().max(self.last);
                Ok(Written { entries, ..Written::default() })
            }
            Err(error) => Err(self.link.failed(&error)),
        }
    }

    async fn probe(&mut self) -> Result<(), SinkError> {
        self.link.probe().await
    }
}

/// How many words follow, then the fields of an entry and their values; `value` only where there is one.
fn fields(entry: &JournalEntry, add: &mut Cmd) {
    let alert = &entry.alert;
    add.arg(if alert.value.is_some() { 26 } else { 24 });
    add.arg("alert").arg(alert.id_hex());
    add.arg("transition").arg(u32::from(alert.state.number()));
    add.arg("state").arg(alert.state.word());
    add.arg("rule").arg(&*alert.rule);
    add.arg("severity").arg(&*alert.severity);
    add.arg("sensor").arg(&*alert.sensor);
    add.arg("metric").arg(&*alert.metric);
    add.arg("time").arg(alert.time);
    add.arg("start").arg(alert.start);
    add.arg("ordinal").arg(alert.ordinal);
    add.arg("behind").arg(if alert.behind { "true" } else { "false" });
    add.arg("version").arg(&*alert.version);
    if let Some(value) = alert.value {
        add.arg("value").arg(line::number(value));
    }
}
