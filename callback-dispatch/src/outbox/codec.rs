//! What is secret in a row, as a database keeps it: text and bytes as they are, or sealed.

use crate::{
    clock::Micros,
    row::{FailedRow, Request, Row, Stored},
    seal::{SealKeys, is_sealed, sealed_by},
    subscription::{Detail, FanOut, SubscriptionRow},
};
use callback_core::{Dsn, TaskId};
use std::borrow::Cow;

/// Writes and reads the columns that hold secrets; the other columns it never sees.
///
/// Errors are texts without any part of a value. What cannot be sealed is not stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Codec {
    keys: Option<SealKeys>,
}

/// A column and its row's id are the place that a value is sealed for.
#[derive(Clone, Copy, Debug)]
enum Column {
    Dsn,
    Work,
    WorkBody,
    Result,
    ResultBody,
    /// Of one attempt.
    Reason(u32, Micros),
    /// Of an event that several get.
    Payload,
    PayloadBody,
    Subscription,
}

/// A value of a text column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Text<'a> {
    Plain(Cow<'a, str>),
    /// Begins with a byte that begins no text in UTF-8.
    Sealed(Vec<u8>),
}

/// A text, and the body that belongs to it. The body is sealed where the text is.
pub(crate) type Pair<'a> = (Text<'a>, Cow<'a, [u8]>);

/// The columns of a row that hold secrets.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    pub(crate) dsn: Option<Text<'a>>,
    pub(crate) work: Option<Pair<'a>>,
    pub(crate) result: Option<Pair<'a>>,
}

impl Codec {
    #[cfg(feature = "seal")]
    pub(crate) fn sealing(keys: SealKeys) -> Self {
        Self { keys: Some(keys) }
    }

    pub(crate) fn encode<'a>(&self, row: &'a Row) -> Result<Columns<'a>, String> {
        let dsn = row.dsn.as_ref().map(|dsn| self.text(row.id, Column::Dsn, dsn.expose().into()));
        let work = row.work.as_ref().map(|work| {
            let head = self.text(row.id, Column::Work, work.head().into())?;
            Ok::<_, String>((head, self.body(row.id, Column::WorkBody, &work.payload.body()[..])?))
        });
        let result = row.result.as_ref().map(|result| self.encode_result(row.id, result));
        Ok(Columns { dsn: dsn.transpose()?, work: work.transpose()?, result: result.transpose()? })
    }

    pub(crate) fn encode_result<'a>(&self, id: TaskId, result: &'a Stored) -> Result<Pair<'a>, String> {
        let head = self.text(id, Column::Result, result.head().into())?;
        Ok((head, self.body(id, Column::ResultBody, result.body())?))
    }

    pub(crate) fn encode_reason<'a>(&self, id: TaskId, failed: &'a FailedRow) -> Result<Text<'a>, String> {
        self.text(id, Column::Reason(failed.number, failed.time), failed.reason.as_str().into())
    }

    pub(crate) fn encode_payload<'a>(&self, event: &'a FanOut) -> Result<Pair<'a>, String> {
        let head = self.text(event.id, Column::Payload, event.stored.head().into())?;
        Ok((head, self.body(event.id, Column::PayloadBody, &event.stored.message.body()[..])?))
    }

    pub(crate) fn encode_subscription(&self, row: &SubscriptionRow) -> Result<Text<'static>, String> {
        self.text(row.id.0, Column::Subscription, row.kept().into())
    }

    pub(crate) fn decode_payload(&self, id: TaskId, head: &[u8], body: Vec<u8>) -> Result<Stored, String> {
        let text = self.read(id, Column::Payload, head)?;
        Stored::from_parts(&text, self.read_body(id, Column::PayloadBody, head, body)?)
    }

    pub(crate) fn decode_subscription(&self, id: TaskId, detail: &[u8]) -> Result<(Dsn, Detail), String> {
        SubscriptionRow::read_kept(&self.read(id, Column::Subscription, detail)?)
    }

    pub(crate) fn decode_dsn(&self, id: TaskId, dsn: &[u8]) -> Result<Dsn, String> {
        self.read(id, Column::Dsn, dsn)?.parse().map_err(|error: callback_core::DsnError| error.to_string())
    }

    pub(crate) fn decode_work(&self, id: TaskId, head: &[u8], body: Vec<u8>) -> Result<Request, String> {
        let text = self.read(id, Column::Work, head)?;
        Request::from_parts(&text, self.read_body(id, Column::WorkBody, head, body)?)
    }

    pub(crate) fn decode_result(&self, id: TaskId, head: &[u8], body: Vec<u8>) -> Result<Stored, String> {
        let text = self.read(id, Column::Result, head)?;
        Stored::from_parts(&text, self.read_body(id, Column::ResultBody, head, body)?)
    }

    /// The reason of attempt `number`, which was made at `time`.
    pub(crate) fn decode_reason(&self, id: TaskId, number: u32, time: Micros, reason: &[u8]) -> Result<String, String> {
        self.read(id, Column::Reason(number, time), reason).map(Cow::into_owned)
    }

    /// The id of the key that seals.
    #[cfg(feature = "seal")]
    pub(crate) fn first(&self) -> Result<&str, String> {
        self.keys.as_ref().map(SealKeys::first).ok_or_else(|| "no keys were given".to_owned())
    }

    /// The columns of a row as the first key seals them; none if it has sealed all of them.
    #[cfg(feature = "seal")]
    pub(crate) fn reseal(
        &self,
        id: TaskId,
        dsn: Option<&[u8]>,
        work: Option<(&[u8], &[u8])>,
        result: Option<(&[u8], &[u8])>,
    ) -> Result<Option<Columns<'static>>, String> {
        let first = self.first()?;
        let heads = [dsn, work.map(|(head, _)| head), result.map(|(head, _)| head)];
        if heads.into_iter().flatten().all(|head| sealed_by(head) == Some(first)) {
            return Ok(None);
        }
        let text = |column, kept| self.text(id, column, self.read(id, column, kept)?.into_owned().into());
        let pair = |(column, head), (body_column, body): (_, &[u8])| {
            let body = self.read_body(id, body_column, head, body.to_vec())?;
            let body = self.body(id, body_column, body)?.into_owned();
            Ok::<_, String>((text(column, head)?, body.into()))
        };
        let work = work.map(|(head, body)| pair((Column::Work, head), (Column::WorkBody, body)));
        let result = result.map(|(head, body)| pair((Column::Result, head), (Column::ResultBody, body)));
        let dsn = dsn.map(|dsn| text(Column::Dsn, dsn)).transpose()?;
        Ok(Some(Columns { dsn, work: work.transpose()?, result: result.transpose()? }))
    }

    /// The reason of an attempt as the first key seals it; none if it has.
    #[cfg(feature = "seal")]
    pub(crate) fn reseal_reason(
        &self,
        id: TaskId,
        number: u32,
        time: Micros,
        kept: &[u8],
    ) -> Result<Option<Text<'static>>, String> {
        if sealed_by(kept) == Some(self.first()?) {
            return Ok(None);
        }
        let column = Column::Reason(number, time);
        self.text(id, column, self.read(id, column, kept)?.into_owned().into()).map(Some)
    }

    /// The head and body of an event as the first key seals them; none if it has.
    #[cfg(feature = "seal")]
    pub(crate) fn reseal_payload(&self, id: TaskId, head: &[u8], body: &[u8]) -> Result<Option<Pair<'static>>, String> {
        if sealed_by(head) == Some(self.first()?) {
            return Ok(None);
        }
        let body = self.read_body(id, Column::PayloadBody, head, body.to_vec())?;
        let body = self.body(id, Column::PayloadBody, body)?.into_owned();
        let head = self.text(id, Column::Payload, self.read(id, Column::Payload, head)?.into_owned().into())?;
        Ok(Some((head, body.into())))
    }

    /// What may be secret of a subscription as the first key seals it; none if it has.
    #[cfg(feature = "seal")]
    pub(crate) fn reseal_subscription(&self, id: TaskId, kept: &[u8]) -> Result<Option<Text<'static>>, String> {
        if sealed_by(kept) == Some(self.first()?) {
            return Ok(None);
        }
        self.text(id, Column::Subscription, self.read(id, Column::Subscription, kept)?.into_owned().into()).map(Some)
    }

    /// Compares its keys with those that the database knows, each with its proof: a sealed nothing.
    ///
    /// Gives what the database is to know before anything is sealed with a key that is new to it.
    pub(crate) fn check(&self, known: &[(String, Vec<u8>)]) -> Result<Option<(String, Vec<u8>)>, String> {
        let Some(keys) = &self.keys else {
            return known.first().map_or(Ok(None), |(id, _)| Err(without_keys(id)));
        };
        for (id, proof) in known {
            keys.open(PROOF, proof).map_err(|error| error.to_string())?;
            if sealed_by(proof) != Some(id) {
                return Err("its keys and their proofs do not belong together".to_owned());
            }
        }
        if known.iter().any(|(id, _)| id == keys.first()) {
            return Ok(None);
        }
        let proof = keys.seal(PROOF, b"").map_err(|error| error.to_string())?;
        Ok(Some((keys.first().to_owned(), proof)))
    }

    fn text<'a>(&self, id: TaskId, column: Column, text: Cow<'a, str>) -> Result<Text<'a>, String> {
        let Some(keys) = &self.keys else { return Ok(Text::Plain(text)) };
        keys.seal(&column.place(id), text.as_bytes()).map(Text::Sealed).map_err(|error| error.to_string())
    }

    fn body<'a>(&self, id: TaskId, column: Column, body: impl Into<Cow<'a, [u8]>>) -> Result<Cow<'a, [u8]>, String> {
        let body = body.into();
        let Some(keys) = &self.keys else { return Ok(body) };
        keys.seal(&column.place(id), &body).map(Cow::Owned).map_err(|error| error.to_string())
    }

    fn read<'a>(&self, id: TaskId, column: Column, value: &'a [u8]) -> Result<Cow<'a, str>, String> {
        if !is_sealed(value) {
            return plain(value);
        }
        let text = self.open(id, column, value)?;
        String::from_utf8(text).map(Cow::Owned).map_err(|_| "not UTF-8".to_owned())
    }

    fn read_body(&self, id: TaskId, column: Column, head: &[u8], body: Vec<u8>) -> Result<Vec<u8>, String> {
        if is_sealed(head) { self.open(id, column, &body) } else { Ok(body) }
    }

    fn open(&self, id: TaskId, column: Column, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let Some(keys) = &self.keys else {
            return Err(sealed_by(sealed).map_or_else(|| "it is no text".to_owned(), without_keys));
        };
        keys.open(&column.place(id), sealed).map_err(|error| error.to_string())
    }
}

/// The place of a proof; that of a value is longer.
const PROOF: &[u8] = b"callback_seal";

impl Column {
    fn place(self, id: TaskId) -> Vec<u8> {
        let name: &[u8] = match self {
            Self::Dsn => b"dsn",
            Self::Work => b"work",
            Self::WorkBody => b"work_body",
            Self::Result => b"result",
            Self::ResultBody => b"result_body",
            Self::Reason(..) => b"reason",
            Self::Payload => b"payload",
            Self::PayloadBody => b"payload_body",
            Self::Subscription => b"subscription",
        };
        let mut place = [id.as_bytes(), name].concat();
        if let Self::Reason(number, time) = self {
            place.extend(number.to_be_bytes());
            place.extend(time.0.to_be_bytes());
        }
        place
    }
}

fn plain(value: &[u8]) -> Result<Cow<'_, str>, String> {
    str::from_utf8(value).map(Cow::Borrowed).map_err(|_| "not UTF-8".to_owned())
}

fn without_keys(id: &str) -> String {
    format!("it is sealed with the key {id}, and no keys were given")
}

#[cfg(all(test, feature = "seal"))]
mod tests {
    use super::*;
    use crate::{
        outcome::Answer,
        row::{Kept, Whole},
        work::Context,
    };
    use callback_core::{ErrorKind, Message, Payload};
    use proptest::{collection::vec, prelude::*};
    use std::{sync::Arc, time::Duration};

    const COLUMNS: [Column; 10] = [
        Column::Dsn,
        Column::Work,
        Column::WorkBody,
        Column::Result,
        Column::ResultBody,
        Column::Reason(1, Micros(7)),
        Column::Reason(2, Micros(7)),
        Column::Payload,
        Column::PayloadBody,
        Column::Subscription,
    ];

    fn codec(ids: &[&str]) -> Codec {
        let key = |id: &str| [id.as_bytes()[0]; 32];
        let first = SealKeys::new(ids[0], &key(ids[0])).expect("a valid id");
        let add = |keys: SealKeys, id: &&str| keys.older(*id, &key(id)).expect("a valid id");
        Codec::sealing(ids[1..].iter().fold(first, add))
    }

    fn kept(text: Text<'_>) -> Vec<u8> {
        match text {
            Text::Plain(text) => text.as_bytes().to_vec(),
            Text::Sealed(bytes) => bytes,
        }
    }

    /// What is written by one is read by the other, as it was.
    fn check(written_by: &Codec, read_by: &Codec, body: &[u8], reason: &str) {
        let (id, time) = (TaskId::new(), Micros(7));
        let stored = Stored {
            message: Message::builder("a.b").subject(reason).payload(body.to_vec()).build().expect("a valid message"),
            failed: true,
            traceparent: None,
            service: None,
            kept: Some(Arc::new(Kept {
                answer: Answer { status: Some(201), headers: vec![("location".into(), reason.to_owned())] },
                whole: Some(Whole { payload: Payload::new("text/y", body.repeat(2)), failed: false }),
            })),
        };
        let context = Context { operation: reason.to_owned(), ..Context::default() };
        let row = Row {
            id,
            token: 0,
            stage: crate::row::Stage::Delivering,
            held: false,
            due: time,
            worker: None,
            owner: None,
            dsn: Some("https://user:password@a.example/?q".parse().expect("a valid Dsn")),
            starts: 0,
            attempts: 0,
            accepted_at: time,
            first_due: time,
            expires: time,
            order: None,
            idempotency: None,
            work: Some(Arc::new(Request { context, payload: Payload::new("text/x", body.to_vec()) })),
            result: Some(Arc::new(stored)),
            subscribed: None,
        };
        let (dsn, work, result) = {
            let columns = written_by.encode(&row).expect("encoded");
            let pair =
                |pair: Option<Pair<'_>>| pair.map(|(head, body)| (kept(head), body.into_owned())).expect("there");
            (kept(columns.dsn.expect("there")), pair(columns.work), pair(columns.result))
        };
        assert_eq!(read_by.decode_dsn(id, &dsn).expect("read").expose(), row.dsn.as_ref().expect("there").expose());
        let back = read_by.decode_work(id, &work.0, work.1).expect("read");
        assert_eq!(&back, row.work.as_deref().expect("there"));
        let back = read_by.decode_result(id, &result.0, result.1).expect("read");
        assert_eq!(back.message.body(), &body.to_vec());
        assert_eq!((back.message.subject(), back.failed), (Some(reason), true));
        assert_eq!(back.kept, row.result.as_ref().expect("there").kept);

        let (number, took, kind) = (3, Duration::ZERO, ErrorKind::Gone);
        let failed = FailedRow { number, time, took, kind, phase: None, status: None, reason: reason.to_owned() };
        let sealed = kept(written_by.encode_reason(id, &failed).expect("encoded"));
        assert_eq!(read_by.decode_reason(id, number, time, &sealed).as_deref(), Ok(reason));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(body in vec(any::<u8>(), 0..200), reason in "[ -~äß]{1,40}") {
            for (written_by, read_by) in [
                (&Codec::default(), &Codec::default()),
                (&Codec::default(), &codec(&["a"])),
                (&codec(&["a"]), &codec(&["a"])),
                (&codec(&["a"]), &codec(&["b", "a"])),
            ] {
                check(written_by, read_by, &body, &reason);
            }
        }

        #[test]
        fn garbage_is_refused_or_was_plain(value in vec(any::<u8>(), 0..60)) {
            let id = TaskId::new();
            for codec in [Codec::default(), codec(&["a"])] {
                if let Ok(text) = codec.read(id, Column::Dsn, &value) {
                    prop_assert_eq!(text.as_bytes(), &value[..]);
                }
            }
        }
    }

    #[test]
    fn a_value_opens_in_its_row_and_column_alone() {
        let (codec, here, elsewhere) = (codec(&["a"]), TaskId::new(), TaskId::new());
        for (at, column) in COLUMNS.into_iter().enumerate() {
            let sealed = kept(codec.text(here, column, "value".into()).expect("sealed"));
            assert!(codec.read(elsewhere, column, &sealed).is_err(), "{column:?}");
            for (other, moved_to) in COLUMNS.into_iter().enumerate() {
                let opened = codec.read(here, moved_to, &sealed);
                assert_eq!(opened.is_ok(), at == other, "{column:?} {moved_to:?}");
            }
        }
        let attempt = Column::Reason(1, Micros(7));
        let sealed = kept(codec.text(here, attempt, "value".into()).expect("sealed"));
        assert!(codec.read(here, Column::Reason(1, Micros(8)), &sealed).is_err());
    }

    #[test]
    fn a_sealed_value_without_its_key_names_the_key() {
        let id = TaskId::new();
        let sealed = kept(codec(&["a"]).text(id, Column::Dsn, "value".into()).expect("sealed"));
        let read = |codec: &Codec| codec.read(id, Column::Dsn, &sealed).expect_err("refused");
        assert_eq!(read(&Codec::default()), "it is sealed with the key a, and no keys were given");
        assert_eq!(read(&codec(&["b"])), "it is sealed with the key a, which is not among the keys");
    }

    #[test]
    fn a_proof_is_of_its_key() {
        let (a, ba) = (codec(&["a"]), codec(&["b", "a"]));
        let proof = a.check(&[]).expect("nothing is sealed").expect("a is new");
        assert_eq!(a.check(std::slice::from_ref(&proof)), Ok(None));
        let other = ba.check(std::slice::from_ref(&proof)).expect("a opens").expect("b is new");
        assert_eq!((&*other.0, ba.check(&[proof.clone(), other.clone()])), ("b", Ok(None)));
        assert!(ba.check(&[(other.0, proof.1)]).is_err(), "the proof of another key");
    }

    #[test]
    fn what_the_first_key_has_sealed_is_not_sealed_again() {
        let (id, time) = (TaskId::new(), Micros(7));
        let sealed = kept(codec(&["a"]).text(id, Column::Reason(1, time), "value".into()).expect("sealed"));
        assert_eq!(codec(&["a", "b"]).reseal_reason(id, 1, time, &sealed), Ok(None));
        let again = codec(&["b", "a"]).reseal_reason(id, 1, time, &sealed).expect("opened").expect("sealed");
        assert_eq!(codec(&["b"]).decode_reason(id, 1, time, &kept(again)).as_deref(), Ok("value"));
        let plain = codec(&["b"]).reseal_reason(id, 1, time, b"value").expect("read").expect("sealed");
        assert_eq!(codec(&["b"]).decode_reason(id, 1, time, &kept(plain)).as_deref(), Ok("value"));
    }
}
