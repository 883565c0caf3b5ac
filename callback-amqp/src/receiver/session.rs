//! One connection, and what is declared and consumed on it.

use super::{Source, desk::Desk};
use crate::{
    connection::GOODBYE,
    dial::Socket,
    outcome::{About, Failure, broken},
};
use callback_core::{ErrorKind, Phase};
use futures_util::{StreamExt, future::poll_immediate};
use lapin::{
    Channel, Connection, Consumer, Error, ErrorKind as LapinErrorKind, ExchangeKind,
    options::{
        BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long the broker may take to answer what is asked of it before messages come.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a temporary queue is kept that nobody listens to, in milliseconds.
const EXPIRES: i32 = 30 * 60 * 1_000;

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// A connection on which exchange and queue were declared.
pub(super) struct Session {
    connection: Connection,
    socket: Socket,
}

impl Session {
    pub(super) async fn open(source: &Source) -> Result<Self, Failure> {
        let (connection, socket) = source.endpoint.connect(&source.vhost).await?;
        let session = Self { connection, socket };
        in_time(session.declare(source)).await?;
        Ok(session)
    }

    async fn declare(&self, source: &Source) -> Result<(), Failure> {
        let place = &source.place;
        match self.declare_exchange(&place.exchange, false).await {
            Err(error) if is(&error, ACCESS_REFUSED) => self.declare_exchange(&place.exchange, true).await,
            Err(error) if is(&error, PRECONDITION_FAILED) => {
                return Err(Failure::new(
                    ErrorKind::Refused,
                    Phase::Connect,
                    "there is an exchange of this name that is no durable topic exchange",
                ));
            }
            result => result,
        }
        .map_err(|error| failed(&error))?;
        // First asked for: a queue with other properties than ours is as good.
        match self.declare_queue(source, true).await {
            Err(error) if is(&error, NOT_FOUND) => self.declare_queue(source, false).await,
            result => result,
        }
        .map_err(|error| failed(&error))?;
        self.bind(source).await.map_err(|error| failed(&error))
    }

    // An error closes the channel, so each has one of its own.

    async fn declare_exchange(&self, name: &str, passive: bool) -> Result<(), Error> {
        let channel = self.connection.create_channel().await?;
        let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default()).await
    }

    async fn declare_queue(&self, source: &Source, passive: bool) -> Result<(), Error> {
        let channel = self.connection.create_channel().await?;
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        if source.is_temporary {
            arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES));
        }
        if let Some(exchange) = &source.dead_letters {
            arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(exchange.as_str().into()));
        }
        channel.queue_declare(source.place.queue.as_str().into(), options, arguments).await.map(drop)
    }

    async fn bind(&self, source: &Source) -> Result<(), Error> {
        let channel = self.connection.create_channel().await?;
        let (place, options) = (&source.place, QueueBindOptions::default());
        let (queue, exchange) = (place.queue.as_str().into(), place.exchange.as_str().into());
        channel.queue_bind(queue, exchange, place.binding().into(), options, FieldTable::default()).await
    }

    /// Offers what comes, until the receiver closes, or the connection or the queue is gone.
    pub(super) async fn take_in(
        &self,
        source: &Source,
        desk: &Arc<Desk>,
        offers: &mut JoinSet<()>,
        closing: &CancellationToken,
    ) -> Result<(), Failure> {
        let consume = async {
            self.consume(source).await.map_err(|error| match is(&error, ACCESS_REFUSED) {
                true => {
                    let text = "another consumer has the queue, or this user may not read it";
                    Failure::new(ErrorKind::Unauthorized, Phase::Connect, text)
                }
                false => failed(&error),
            })
        };
        let (channel, mut consumer) = tokio::select! {
            biased;
            () = closing.cancelled() => return Ok(()),
            consuming = in_time(consume) => consuming?,
        };
        tracing::debug!("the broker is listened to");
        // What is held cannot be given back on a channel that is gone.
        let lost = CancellationToken::new();
        let _lost = lost.clone().drop_guard();
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                Some(_) = offers.join_next(), if !offers.is_empty() => {}
                delivery = consumer.next() => match delivery {
                    Some(Ok(delivery)) => {
                        let mut settling = Box::pin(Arc::clone(desk).settle(delivery, lost.clone()));
                        // Each begins before the next one, so that they are handed over in the order in which they came.
                        if poll_immediate(&mut settling).await.is_none() {
                            offers.spawn(settling);
                        }
                    }
                    Some(Err(error)) => return Err(failed(&error)),
                    None => {
                        let text = "the broker ended the consumer: its queue was deleted, or its node is gone";
                        return Err(Failure::new(ErrorKind::Unavailable, Phase::Answer, text));
                    }
                },
            }
        }
        let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        let _ = timeout(GOODBYE, cancelled).await;
        // An offer ends by itself, in time, and what is held is given back at once.
        while offers.join_next().await.is_some() {}
        // What came and was not offered goes back with the channel.
        let _ = timeout(GOODBYE, channel.close(200, "OK".into())).await;
        Ok(())
    }

    async fn consume(&self, source: &Source) -> Result<(Channel, Consumer), Error> {
        let channel = self.connection.create_channel().await?;
        channel.basic_qos(source.prefetch, BasicQosOptions::default()).await?;
        // Another receiver would find none of its handles here.
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let queue = source.place.queue.as_str().into();
        let consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
        Ok((channel, consumer))
    }

    /// Says goodbye; a temporary queue is deleted.
    pub(super) async fn close(self, source: &Source) {
        if source.is_temporary {
            let deleted = async {
                let channel = self.connection.create_channel().await?;
                channel.queue_delete(source.place.queue.as_str().into(), QueueDeleteOptions::default()).await
            };
            // Nobody listens to it any more: it ends by itself.
            let _ = timeout(GOODBYE, deleted).await;
        }
        let _ = timeout(GOODBYE, self.connection.close(200, "OK".into())).await;
        self.socket.shut_down();
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let too_slow = || Failure::new(ErrorKind::Unavailable, Phase::Connect, "the broker did not answer in time");
    timeout(LIMIT, work).await.unwrap_or_else(|_elapsed| Err(too_slow()))
}

fn is(error: &Error, code: u16) -> bool {
    matches!(error.kind(), LapinErrorKind::ProtocolError(error) if error.get_id() == code)
}

fn failed(error: &Error) -> Failure {
    broken(error, Phase::Connect, About::Place)
}
