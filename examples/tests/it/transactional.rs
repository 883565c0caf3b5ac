//! The programs with a business table end well, and send what was committed.

use std::process::Command;

#[track_caller]
fn check(program: &mut Command, expected: &str) {
    let output = program.output().expect("it starts");
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{errors}");
    assert!(told.contains("a teapot") && told.ends_with(expected), "{told}");
}

#[test]
fn transactional_sqlite_ends_well() {
    check(&mut Command::new(env!("CARGO_BIN_EXE_transactional-sqlite")), "orders: 1, events sent since: 0\n");
}

#[cfg(feature = "postgres")]
#[test]
#[expect(clippy::print_stdout, reason = "a skip is told")]
fn transactional_postgres_ends_well() {
    let Ok(url) = std::env::var("CALLBACK_TEST_POSTGRES") else {
        assert!(std::env::var_os("CI").is_none(), "CALLBACK_TEST_POSTGRES is not set");
        println!("skipped: CALLBACK_TEST_POSTGRES is not set");
        return;
    };
    let program = env!("CARGO_BIN_EXE_transactional-postgres");
    check(Command::new(program).env("DATABASE_URL", url), "events sent since: 0\n");
    let unset = Command::new(program).env_remove("DATABASE_URL").output().expect("it starts");
    assert!(!unset.status.success() && String::from_utf8_lossy(&unset.stderr).contains("DATABASE_URL"));
}
