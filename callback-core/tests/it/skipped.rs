//! What cannot be shown is said, and in CI nothing may be missing.

use callback_core::{
    Dsn, MemorySink, async_trait,
    conformance::{Fault, Harness, Received, Skip, prove, server},
};
use std::{env, process::Command};

/// Set for the child that has no server.
const CHILD: &str = "CALLBACK_CORE_TEST_CHILD";

struct Nowhere(MemorySink);

#[async_trait]
impl Harness for Nowhere {
    type Sink = MemorySink;

    async fn start() -> Result<Self, Skip> {
        server("CALLBACK_CORE_TEST_NO_SERVER").map(|_| Self(MemorySink::new()))
    }

    fn sink(&self) -> MemorySink {
        self.0.clone()
    }

    fn dsn(&self) -> Dsn {
        "memory://nowhere".parse().expect("valid")
    }

    async fn received(&self) -> Vec<Received> {
        Vec::new()
    }

    async fn inject(&self, _fault: Fault) -> Result<(), Skip> {
        Err(Skip::because("there is no server"))
    }
}

/// Runs itself again as a child, with and without `CI`.
#[test]
fn a_missing_server_is_said_and_fails_in_ci() {
    if env::var_os(CHILD).is_some() {
        prove::<Nowhere>("close_is_idempotent");
        return;
    }
    let run = |ci: bool| {
        let mut child = Command::new(env::current_exe().expect("a path"));
        child.args(["--exact", "skipped::a_missing_server_is_said_and_fails_in_ci"]).env(CHILD, "").env_remove("CI");
        if ci {
            child.env("CI", "true");
        }
        child.output().expect("started")
    };
    let passes = run(false);
    let said = String::from_utf8_lossy(&passes.stderr);
    assert!(passes.status.success(), "{said}");
    assert!(said.contains("skipped: close_is_idempotent of "), "{said}");
    assert!(said.contains("CALLBACK_CORE_TEST_NO_SERVER is not set"), "{said}");
    assert!(!run(true).status.success());
}
