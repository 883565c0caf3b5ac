//! A sink of one's own for a real system: adds each message to the Redis stream of `redis:///name`.
use callback_core::{Attempt, Dsn, DsnError, ErrorKind, Evidence, Message, Receipt, Sink, SinkError, async_trait};
use redis::{RedisError, aio::ConnectionManager};
use tokio_util::task::TaskTracker;

/// Delivers over one connection, which connects again by itself: a client names an open stream, and no host.
#[derive(Clone, Debug)]
pub struct RedisSink(ConnectionManager, Vec<String>, TaskTracker);

impl RedisSink {
    /// A sink for these streams, the names of which a client may say.
    pub fn new(server: ConnectionManager, streams: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self(server, streams.into_iter().map(|stream| format!("/{}", stream.into())).collect(), TaskTracker::new())
    }
}

fn kind(error: &RedisError) -> ErrorKind {
    match error.kind() {
        _ if error.is_timeout() => ErrorKind::TimedOut,
        _ if error.code() == Some("OOM") => ErrorKind::Throttled,
        redis::ErrorKind::Extension => ErrorKind::Refused, // Another type of value has the stream's name.
        _ => ErrorKind::Unavailable,
    }
}

#[async_trait]
impl Sink for RedisSink {
    fn schemes(&self) -> &[&str] {
        &["redis"]
    }
    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        match dsn.scheme() {
            "redis" if self.1.iter().any(|open| open == dsn.path()) => dsn.params().finish(),
            "redis" => Err(DsnError::forbidden("no such stream is open")),
            other => Err(DsnError::unknown_scheme(other, self.schemes())),
        }
    }
    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let (_in_flight, mut server, mut add) = (self.2.token(), self.0.clone(), redis::cmd("XADD"));
        if self.2.is_closed() {
            return Err(SinkError::unavailable("the sink is closed"));
        }
        self.check(dsn)?;
        add.arg(&dsn.path()[1..]).arg("*").arg(":body").arg(&message.body()[..]);
        let mut field = |name: &str, value: &str| _ = add.arg(name).arg(value);
        field("content-type", message.content_type());
        message.headers().for_each(|(name, value)| field(name, value));
        message.attributes().for_each(|(name, value)| field(&format!("ce-{name}"), &value));
        attempt.headers(message).for_each(|(name, value)| field(name, &value));
        let added = tokio::time::timeout_at(attempt.deadline().into(), add.query_async(&mut server)).await;
        let _id: String = added.map_err(SinkError::timed_out)?.map_err(|error| SinkError::new(kind(&error), error))?;
        Ok(Receipt::new(Evidence::Custom("XADD")))
    }
    async fn close(&self) -> Result<(), SinkError> {
        self.2.close();
        self.2.wait().await;
        Ok(())
    }
}
