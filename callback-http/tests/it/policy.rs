//! Whom the sink lets a client send to.

use crate::{
    receiver::{Receiver, status},
    sink::{deliver, failed, with},
};
use callback_core::{Dsn, DsnErrorKind, ErrorKind, Phase, Policy, Resolver, Rule, Sink, async_trait};
use http::{HeaderValue, StatusCode, header};
use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Addresses for the first question, for the second, and so on; the last ones stay.
pub(crate) type Script = &'static [&'static [&'static str]];

#[derive(Clone, Debug)]
pub(crate) struct Scripted {
    answers: Script,
    asked: Arc<AtomicUsize>,
}

impl Scripted {
    pub(crate) fn new(answers: Script) -> Self {
        Self { answers, asked: Arc::default() }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Resolver for Scripted {
    async fn resolve(&self, _name: &str) -> io::Result<Vec<IpAddr>> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        match self.answers.get(asked).or_else(|| self.answers.last()) {
            Some(answer) => Ok(answer.iter().map(|address| address.parse().expect("an address")).collect()),
            None => Err(io::Error::other("no such name")),
        }
    }
}

/// Opens plain `http` to the name, and no address.
fn by_name(resolver: &Scripted) -> Policy {
    Policy::default().allow("hook.example".parse().expect("a rule")).resolver(resolver.clone())
}

fn named(receiver: &Receiver) -> Dsn {
    format!("http://hook.example:{}/", receiver.port()).parse().expect("valid")
}

#[tokio::test]
async fn plain_http_to_loopback_is_forbidden_without_a_rule() {
    let receiver = Receiver::start().await;
    let (sink, dsn) = (with(Policy::default()), receiver.dsn("/"));
    assert_eq!(sink.check(&dsn).expect_err("closed").kind(), DsnErrorKind::Forbidden);
    failed(deliver(&sink, &dsn).await, ErrorKind::Forbidden, Some(Phase::Policy));
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn every_spelling_of_an_address_is_that_address() {
    let receiver = Receiver::start().await;
    let (sink, port) = (with(Policy::default()), receiver.port());
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f000001",
        "0x7f.1",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "0.0.0.0",
        "[::]",
        "localhost",
        "a.localhost.",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00::1]",
        "[ff02::1]",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "[2001:db8::1]",
        "[2001::1]",
    ] {
        for scheme in ["http", "https"] {
            let Ok(dsn) = format!("{scheme}://{host}:{port}/").parse::<Dsn>() else { continue };
            let error = sink.check(&dsn).expect_err(host);
            assert_eq!(error.kind(), DsnErrorKind::Forbidden, "{dsn}");
            failed(deliver(&sink, &dsn).await, ErrorKind::Forbidden, Some(Phase::Policy));
        }
    }
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn a_name_that_resolves_to_a_mix_is_forbidden_and_nothing_is_dialled() {
    const MIXES: [Script; 3] = [&[&["127.0.0.1", "8.8.8.8"]], &[&["8.8.8.8", "127.0.0.1"]], &[&["::ffff:127.0.0.1"]]];
    let receiver = Receiver::start().await;
    for answers in MIXES {
        let resolver = Scripted::new(answers);
        let sink = with(by_name(&resolver));
        sink.check(&named(&receiver)).expect("what a name resolves to is not known yet");
        failed(deliver(&sink, &named(&receiver)).await, ErrorKind::Forbidden, Some(Phase::Policy));
        assert_eq!(resolver.asked(), 1);
    }
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn an_address_is_judged_whenever_it_is_dialled() {
    let mut receiver = Receiver::answering(|_| {
        let mut answer = status(StatusCode::OK);
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        answer
    })
    .await;
    let resolver = Scripted::new(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let sink = with(by_name(&resolver).allow("127.0.0.1".parse().expect("a rule")));
    deliver(&sink, &named(&receiver)).await.expect("delivered");
    assert_eq!(receiver.next().await.header("host"), Some(&*format!("hook.example:{}", receiver.port())));
    failed(deliver(&sink, &named(&receiver)).await, ErrorKind::Forbidden, Some(Phase::Policy));
    assert_eq!((resolver.asked(), receiver.connections()), (2, 1));
}

#[tokio::test]
async fn the_scheme_by_which_a_name_is_reached_is_judged_with_its_address() {
    let receiver = Receiver::start().await;
    let resolver = Scripted::new(&[&["8.8.8.8"]]);
    let sink = with(Policy::default().allow(Rule::loopback()).resolver(resolver.clone()));
    // The rule opens plain HTTP to loopback, and the name may be there; it is not.
    sink.check(&named(&receiver)).expect("it may be there");
    failed(deliver(&sink, &named(&receiver)).await, ErrorKind::Forbidden, Some(Phase::Policy));
    assert_eq!(resolver.asked(), 1);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_unavailable() {
    const NOTHING: [Script; 2] = [&[], &[&[]]];
    let receiver = Receiver::start().await;
    for answers in NOTHING {
        let sink = with(by_name(&Scripted::new(answers)));
        failed(deliver(&sink, &named(&receiver)).await, ErrorKind::Unavailable, Some(Phase::Resolve));
    }
}

#[tokio::test]
async fn a_port_of_another_service_is_forbidden() {
    let sink = with(Policy::default().allow(Rule::loopback()));
    for dsn in ["http://127.0.0.1:22/", "https://example.com:25/"] {
        failed(deliver(&sink, &dsn.parse().expect("valid")).await, ErrorKind::Forbidden, Some(Phase::Policy));
    }
}
