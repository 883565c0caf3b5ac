//! `delivery-broker` plays its story to the end, whatever happens to the broker.

use std::process::Command;

#[track_caller]
fn plays(arguments: &[&str], parts: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_delivery-broker"));
    let output = command.args(["--limit", "2"]).args(arguments).output().expect("the program was built");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for part in parts {
        assert!(text.contains(part), "{part} in {text}");
    }
}

const END: &str = "delivered: north-1, south-1; refused: grant-north-3, grant-south-3; still open: 0";

#[test]
fn the_story_is_played_to_its_end() {
    plays(&[], &["north-2 (nothing he likes): the partner is silent", "south-3: revoked, too late", END]);
}

#[test]
fn a_broker_that_is_killed_in_the_middle_finishes_the_same_story() {
    plays(&["--crash"], &["the broker is killed", "goes on where it stopped", END]);
}
