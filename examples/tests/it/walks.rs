//! The walks through callbacks as others write them are as their guidelines say: each program judges itself.

use std::process::Command;

#[track_caller]
fn check(program: &str, last: &str) {
    let output = Command::new(program).output().expect("it starts");
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains(last), "{told}\n{errors}");
}

#[test]
fn task_api_is_what_the_adidas_guidelines_write() {
    check(env!("CARGO_BIN_EXE_task-api"), "4. What is over is not cancelled again");
}

#[test]
fn container_events_is_what_delhivery_os1_writes() {
    check(env!("CARGO_BIN_EXE_container-events"), "x-coreos-hmac-signature is right");
}
