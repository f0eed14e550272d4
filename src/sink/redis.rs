//! What the Redis sinks share: one connection at a time, and what its errors mean.

use super::{SinkError, StartError};
use crate::config::{Secret, Url};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisError, RedisResult};
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(20);

/// An answer older than this, given over the same connection, has been synced by `appendfsync everysec` (which may be a
/// second late).
pub const FORGETS_US: u64 = 2_000_000;

/// Refuses an older term, and remembers a newer one. `KEYS[1]` is the key that holds it, `ARGV[1]` ours.
pub const FENCE: &str = r"
local known = tonumber(redis.call('HGET', KEYS[1], 'term') or '0')
if tonumber(ARGV[1]) < known then
  return redis.error_reply('FENCED by term ' .. known)
end
if tonumber(ARGV[1]) > known then
  redis.call('HSET', KEYS[1], 'term', ARGV[1])
end
";

/// A server, and the connection that stands.
///
/// No connection heals by itself: that the server answers over the connection of an earlier write is how a lane knows
/// that it has not crashed in between.
pub struct Link {
    client: Client,
    shown: String,
    connection: Option<MultiplexedConnection>,
}

impl Link {
    /// To this server, not connected yet.
    pub fn new(url: &Url, password: Option<&Secret>) -> Result<Self, StartError> {
        let wrong = |error: RedisError| {
            StartError::Settings(format!(
                "url {url}: {error}; write redis://[user:password@]host:port[/database], or unix:///path"
            ))
        };
        let mut info = url.expose().into_connection_info().map_err(wrong)?;
        if let Some(password) = password {
            let settings = info.redis_settings().clone().set_password(password.expose());
            info = info.set_redis_settings(settings);
        }
        let shown = info.addr().to_string();
        Ok(Self { client: Client::open(info).map_err(wrong)?, shown, connection: None })
    }

    /// Connects anew.
    pub async fn connect(&mut self) -> Result<(), StartError> {
        self.connection = None;
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
        let connected = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            redis::cmd("PING").query_async::<()>(&mut connection).await?;
            Ok(connection)
        };
        self.connection = Some(connected.await.map_err(|error: RedisError| self.start_error(&error))?);
        Ok(())
    }

    /// The connection, if it stands.
    pub fn get(&mut self) -> Result<&mut MultiplexedConnection, SinkError> {
        let shown = &self.shown;
        self.connection.as_mut().ok_or_else(|| SinkError::Unavailable(format!("not connected to {shown}")))
    }

    /// Asks for a sign of life over the same connection.
    pub async fn probe(&mut self) -> Result<(), SinkError> {
        let answer: RedisResult<()> = redis::cmd("PING").query_async(self.get()?).await;
        answer.map_err(|error| self.failed(&error))
    }

    /// The version, and whether it can be written to: for people.
    pub async fn look(&mut self) -> Result<String, StartError> {
        self.connect().await?;
        let info: RedisResult<String> = match self.get() {
            Ok(connection) => redis::cmd("INFO").query_async(connection).await,
            Err(error) => return Err(StartError::Unreachable(error.to_string())),
        };
        let info = info.map_err(|error| self.start_error(&error))?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let version = field("redis_version").unwrap_or("of unknown version").trim().to_owned();
        if field("role").is_some_and(|role| role.trim() == "slave")
            && field("slave_read_only").is_some_and(|x| x.trim() == "1")
        {
            return Err(StartError::Denied(format!(
                "{} is a read-only replica; give the address of its master",
                self.shown
            )));
        }
        Ok(format!("Redis {version} at {}", self.shown))
    }

    /// Where it is, without a password.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// What an error at start means.
    pub fn start_error(&self, error: &RedisError) -> StartError {
        let shown = &self.shown;
        let text = error.to_string();
        let code = error.code().unwrap_or_default();
        if error.kind() == ErrorKind::AuthenticationFailed
            || matches!(code, "WRONGPASS" | "NOAUTH")
            || text.contains("AUTH")
        {
            let help = "put the right one into url, or into password";
            return StartError::Denied(match code {
                "NOAUTH" => format!("{shown} wants a password; {help}"),
                _ => format!("{shown} does not accept the user or password; {help}"),
            });
        }
        match code {
            "NOPERM" => StartError::Denied(format!("{shown}: {text}; give this user the permission (ACL SETUSER)")),
            "READONLY" => StartError::Denied(format!("{shown} is a read-only replica; give the address of its master")),
            "FENCED" => StartError::Foreign(format!(
                "{shown}: {text}: a newer run of this streamgauge has written there, so this one must not"
            )),
            "WRONGTYPE" => StartError::Settings(format!(
                "{shown}: a key that this sink writes holds something else ({text}); choose another key, or remove it"
            )),
            _ => {
                StartError::Unreachable(format!("{shown} does not answer as Redis does: {text}; is it running there?"))
            }
        }
    }

    /// What an error while running means: whatever it is, somebody can mend it, and nothing need be lost meanwhile.
    pub fn failed(&mut self, error: &RedisError) -> SinkError {
        let shown = &self.shown;
        let text = match error.code().unwrap_or_default() {
            "READONLY" => format!("{shown} has become a read-only replica"),
            "OOM" => format!("{shown} is full (maxmemory)"),
            "WENTBACK" => format!("{shown} has forgotten what it had acknowledged ({error})"),
            "FENCED" => {
                return SinkError::Foreign(format!("{shown}: {error}: a newer run of this streamgauge writes there"));
            }
            "FOREIGN" => return SinkError::Foreign(format!("{shown}: {error}")),
            _ => format!("{shown}: {error}"),
        };
        self.connection = None;
        SinkError::Unavailable(text)
    }
}
