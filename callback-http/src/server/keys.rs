//! The service's public keys.

use axum::{Router, response::IntoResponse, routing::get};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use callback_core::Keys;
use http::header;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Serves the public halves of the service's Ed25519 keys at `/.well-known/callback-keys`.
///
/// A JWK Set (RFC 7517, RFC 8037), empty where there is none. Each key has its RFC 7638 thumbprint as `kid`, and the form of
/// Standard Webhooks as `whpk`, which [`Verifier`](callback_core::Verifier) reads.
pub fn key_router(keys: &Keys) -> Router {
    let keys: Vec<Value> = keys.public_keys().iter().filter_map(|key| jwk(key)).collect();
    let body = json!({ "keys": keys }).to_string();
    let headers = [(header::CONTENT_TYPE, "application/jwk-set+json"), (header::CACHE_CONTROL, "public, max-age=300")];
    Router::new().route("/.well-known/callback-keys", get(async move || (headers, body).into_response()))
}

/// A key of Standard Webhooks as a JWK.
fn jwk(whpk: &str) -> Option<Value> {
    let key = BASE64_STANDARD.decode(whpk.strip_prefix("whpk_")?).ok()?;
    let x = BASE64_URL_SAFE_NO_PAD.encode(key);
    let thumbprint = Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#));
    let kid = BASE64_URL_SAFE_NO_PAD.encode(thumbprint);
    Some(json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "use": "sig", "alg": "EdDSA", "kid": kid, "whpk": whpk }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and the thumbprint of RFC 8037, appendix A.
    #[test]
    fn a_key_is_named_by_its_thumbprint() {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let key = BASE64_STANDARD.encode(BASE64_URL_SAFE_NO_PAD.decode(x).expect("base64"));
        let jwk = jwk(&format!("whpk_{key}")).expect("a key");
        assert_eq!(jwk["x"], x);
        assert_eq!(jwk["kid"], "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
