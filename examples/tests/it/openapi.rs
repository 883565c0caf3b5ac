//! The routes of `order-service`, as it describes them.

use crate::service::Config;
use std::{fs, path::Path};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// With `UPDATE_OPENAPI` in the environment the file is written instead.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_checked_in_is_what_is_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Config::new(folder.path()).start();
    let mut connection = TcpStream::connect(service.address).await.expect("connected");
    let request = format!("GET /openapi.json HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", service.address);
    connection.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("read");
    let (head, served) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.contains("content-type: application/json"), "{head}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        fs::write(&path, served).expect("written");
    }
    assert_eq!(served, fs::read_to_string(&path).expect("docs/openapi.json"), "UPDATE_OPENAPI=1 writes it anew");
}
