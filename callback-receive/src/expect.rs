//! A named handle, while it is being asked for.

use crate::{
    Callback, ReceiveError,
    inbox::{Micros, Write, Written},
    named::Named,
    receiver::{Name, Shared},
    sync::lock,
};
use callback_core::Verifier;
use std::{collections::hash_map::Entry, fmt, future::IntoFuture, pin::Pin, sync::Arc, time::Duration};

/// A named handle, while it is being asked for; awaited, it gives the [`Callback`].
///
/// ```no_run
/// # async fn example(receiver: callback_receive::Receiver) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let key = std::env::var("PARTNER_KEY")?.parse()?;
/// let granted = receiver.expect("grant-42").verifier(key).expires_in(Duration::from_secs(3600)).await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is expected before it is awaited"]
pub struct Expect {
    shared: Arc<Shared>,
    name: String,
    verifier: Option<Verifier>,
    expires_in: Option<Duration>,
}

impl Expect {
    pub(crate) const fn new(shared: Arc<Shared>, name: String) -> Self {
        Self { shared, name, verifier: None, expires_in: None }
    }

    /// Sets the keys that messages to this handle must be signed by, instead of the receiver's.
    ///
    /// That there are some is stored, they are not: after a restart its senders are told to come again until it is expected
    /// with them.
    pub fn verifier(mut self, verifier: Verifier) -> Self {
        self.verifier = Some(verifier);
        self
    }

    /// Ends the handle so long after it was **first** expected; what waits for it becomes dead letters. Default: never.
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires_in = Some(time);
        self
    }

    async fn open(self) -> Result<Callback, ReceiveError> {
        let Self { shared, name, verifier, expires_in } = self;
        if !(1..=255).contains(&name.len()) || name.chars().any(char::is_control) {
            return Err(ReceiveError::Name);
        }
        shared.inbox()?;
        if shared.is_closing() {
            return Err(ReceiveError::Closed);
        }
        let known = match lock(&shared.names).entry(name.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Name::OnItsWay);
                None
            }
            Entry::Occupied(entry) => match entry.get() {
                Name::OnItsWay => return Err(ReceiveError::NameTaken(name)),
                Name::Handle(named) => Some(Arc::clone(named)),
            },
        };
        let (named, is_resumed) = match known {
            Some(named) => (named, true),
            None => store(&shared, &name, expires_in, verifier.is_some()).await?,
        };
        let attached = match verifier {
            None => named.attach().then_some(true),
            Some(verifier) => named.attach_with(verifier),
        };
        let Some(is_told) = attached else {
            return Err(if shared.is_closing() { ReceiveError::Closed } else { ReceiveError::NameTaken(name) });
        };
        let callback = Callback::named(Arc::clone(&named), Arc::clone(&shared), is_resumed);
        if !is_told {
            // It was expected without a key before.
            shared.write_then(named.change(), drop).await?;
        }
        Ok(callback)
    }
}

/// Stores the handle of a name; it is known as soon as it is stored, whoever waits for it.
async fn store(
    shared: &Arc<Shared>,
    name: &str,
    expires_in: Option<Duration>,
    own_key: bool,
) -> Result<(Arc<Named>, bool), ReceiveError> {
    let expires = expires_in.map(|time| Micros::now().after(time));
    let write = Write::Expect { name: name.to_owned(), handle: shared.minter.mint(), expires, own_key };
    let on_its_way = OnItsWay { shared: Arc::clone(shared), name: name.to_owned() };
    let stored = shared.write_then(write, move |written| match written {
        Written::Expected(expectation, is_resumed) => {
            let named = on_its_way.shared.register(expectation);
            Some((named, is_resumed))
        }
        _ => None,
    });
    stored.await?.ok_or(ReceiveError::Closed)
}

/// Frees the name, unless a handle has it by then.
struct OnItsWay {
    shared: Arc<Shared>,
    name: String,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut names = lock(&self.shared.names);
        if matches!(names.get(&self.name), Some(Name::OnItsWay)) {
            names.remove(&self.name);
        }
    }
}

impl IntoFuture for Expect {
    type Output = Result<Callback, ReceiveError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

/// The name, and whether there are keys.
impl fmt::Debug for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expect")
            .field("name", &self.name)
            .field("verifier", &self.verifier)
            .field("expires_in", &self.expires_in)
            .finish_non_exhaustive()
    }
}
