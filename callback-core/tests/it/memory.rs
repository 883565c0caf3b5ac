//! The sink into this process keeps the contract.

use callback_core::{
    Dsn, MemorySink, SinkError, async_trait,
    conformance::{Fault, Harness, Received, Skip},
};
use std::sync::Mutex;

#[derive(Default)]
struct Memory {
    sink: MemorySink,
    received: Mutex<Vec<Received>>,
}

#[async_trait]
impl Harness for Memory {
    type Sink = MemorySink;

    async fn start() -> Result<Self, Skip> {
        Ok(Self::default())
    }

    fn sink(&self) -> MemorySink {
        self.sink.clone()
    }

    fn dsn(&self) -> Dsn {
        "memory://results".parse().expect("valid")
    }

    async fn received(&self) -> Vec<Received> {
        let taken = self.sink.take("results");
        let mut received = self.received.lock().expect("no panic");
        received.extend(taken.iter().map(|delivered| Received::from_parts(&delivered.message, &delivered.attempt)));
        received.clone()
    }

    async fn inject(&self, fault: Fault) -> Result<(), Skip> {
        let error = match fault {
            Fault::Refuse => SinkError::refused("no"),
            Fault::Throttle(None) => SinkError::throttled("slow down"),
            Fault::Throttle(Some(wait)) => SinkError::throttled("slow down").with_retry_after(wait),
            _ => return Err(Skip::because("a channel of this process is neither out of reach nor slow")),
        };
        self.sink.fail("results", error);
        Ok(())
    }
}

callback_core::conformance!(Memory);
