//! A request of a party to another: JSON there, no more than a status back.

use callback_core::BoxError;
use serde_json::Value;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Posts JSON to `http://HOST:PORT/PATH`; an error unless it is answered with 2xx.
pub(crate) async fn post(url: &str, body: &Value) -> Result<(), BoxError> {
    timeout(Duration::from_secs(10), exchange(url, body)).await?
}

async fn exchange(url: &str, body: &Value) -> Result<(), BoxError> {
    let rest = url.strip_prefix("http://").ok_or("the URL must begin with http://")?;
    let (host, path) = rest.split_once('/').ok_or("the URL has no path")?;
    let body = body.to_string();
    let length = body.len();
    let request = format!(
        "POST /{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    );
    let mut connection = TcpStream::connect(host).await?;
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    match answer.split(' ').nth(1) {
        Some(status) if status.starts_with('2') => Ok(()),
        status => Err(format!("answered with {}", status.unwrap_or("nothing")).into()),
    }
}
