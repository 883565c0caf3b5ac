//! A sink of one's own for Redis: its proof, against the server that `CALLBACK_TEST_REDIS` names.

use callback_core::{
    Dsn, MessageId, async_trait,
    conformance::{Fault, Harness, Proxy, Received, Skip, server},
};
use callback_examples::RedisSink;
use redis::{
    Client, Cmd, FromRedisValue, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    cmd,
};
use std::collections::BTreeMap;
use url::Url;

/// A stream of its own in a shared server, and a network of its own to it.
struct Stream {
    name: String,
    url: Url,
    direct: MultiplexedConnection,
    proxy: Proxy,
}

fn dsn(stream: &str) -> Dsn {
    format!("redis:///{stream}").parse().expect("valid")
}

impl Stream {
    async fn ask<T: FromRedisValue>(&self, question: &Cmd) -> RedisResult<T> {
        question.query_async(&mut self.direct.clone()).await
    }

    /// Where the stream is while another value has its name.
    fn kept(&self) -> String {
        format!("{}-kept", self.name)
    }
}

#[async_trait]
impl Harness for Stream {
    type Sink = RedisSink;

    async fn start() -> Result<Self, Skip> {
        let mut url: Url = server("CALLBACK_TEST_REDIS")?.parse().expect("a URL");
        let direct = Client::open(url.clone()).expect("a Redis URL");
        let direct = direct.get_multiplexed_async_connection().await.expect("the server answers");
        let address = url.socket_addrs(|| Some(6379)).expect("an address")[0];
        let proxy = Proxy::start(address.to_string()).await.expect("a free port");
        url.set_ip_host(proxy.address().ip()).expect("a host");
        url.set_port(Some(proxy.address().port())).expect("a port");
        Ok(Self { name: format!("conformance-{}", MessageId::new()), url, direct, proxy })
    }

    fn sink(&self) -> RedisSink {
        let client = Client::open(self.url.clone()).expect("a Redis URL");
        let server =
            ConnectionManager::new_lazy_with_config(client, ConnectionManagerConfig::new()).expect("a runtime");
        RedisSink::new(server, [&self.name])
    }

    fn dsn(&self) -> Dsn {
        dsn(&self.name)
    }

    async fn received(&self) -> Vec<Received> {
        let mut received = Vec::new();
        for stream in [self.kept(), self.name.clone()] {
            // The name is another value's during a refusal.
            let entries: Vec<(String, Vec<(String, Vec<u8>)>)> =
                self.ask(cmd("XRANGE").arg(stream).arg("-").arg("+")).await.unwrap_or_default();
            for (_, fields) in entries {
                let mut fields: BTreeMap<_, _> = fields.into_iter().collect();
                let body = fields.remove(":body").expect("a body");
                let texts = fields.into_iter().map(|(name, value)| (name, String::from_utf8(value).expect("text")));
                let headers: BTreeMap<_, _> = texts.collect();
                received.push(Received::new(headers["webhook-id"].parse().expect("an id"), body).with_headers(headers));
            }
        }
        received
    }

    async fn inject(&self, fault: Fault) -> Result<(), Skip> {
        match fault {
            Fault::Refuse => {
                let _moved: RedisResult<()> = self.ask(cmd("RENAME").arg(&self.name).arg(self.kept())).await;
                self.ask::<()>(cmd("SET").arg(&self.name).arg("no stream")).await.expect("the server answers");
            }
            Fault::Throttle(_) => return Err(Skip::because("a full memory is that of the whole server")),
            _ => self.proxy.inject(fault)?,
        }
        Ok(())
    }

    async fn heal(&self) {
        self.proxy.heal();
        // Neither does anything unless there was a refusal: a stream is no value that can be got.
        let _gone: RedisResult<String> = self.ask(cmd("GETDEL").arg(&self.name)).await;
        let _moved: RedisResult<()> = self.ask(cmd("RENAME").arg(self.kept()).arg(&self.name)).await;
    }

    fn forbidden(&self) -> Result<(RedisSink, Dsn), Skip> {
        Ok((self.sink(), dsn(&self.kept())))
    }

    fn secrets(&self) -> Vec<String> {
        self.url.password().map(str::to_owned).into_iter().collect()
    }
}

callback_core::conformance!(Stream);
