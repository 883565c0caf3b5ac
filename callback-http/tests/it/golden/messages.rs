//! What receivers get: of events in each profile, and of calls (protocol §§3.1, 3.3, 4).

use super::{answered, received};
use crate::{
    shop::{Opening, SEED_REQUEST},
    subscriptions::{Api, created},
};
use callback_core::Signer;
use callback_dispatch::{CloudEvents, MemoryOutbox};
use serde_json::json;

#[tokio::test]
async fn a_notification_in_each_profile() {
    for profile in ["bare", "hal", "os1", "cloudevents"] {
        let mut api = Api::with(|dispatcher| dispatcher.profile(CloudEvents), |router| router.profile(profile)).await;
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        created(&api.post(&json!({ "callbackUrl": api.callback(), "secret": secret, "meta": { "batch": 7 } })).await);
        api.publish("container.created", json!({ "id": 7 })).await;
        received(&format!("messages/event-{profile}"), &api.receiver.next().await);
    }
}

#[tokio::test]
async fn a_call_and_its_callback() {
    let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key");
    let opening = Opening::on(MemoryOutbox::new()).dispatcher(|dispatcher| dispatcher.signer(signer).source("/orders"));
    let mut shop = opening.open().await;
    answered("rpc/acknowledgment", &shop.post(SEED_REQUEST).await);
    received("messages/rpc-completed", &shop.next().await);
    shop.post(r#"{"id":7,"method":"unknown","params":{"$rpc.callback":"%CALLBACK%"}}"#).await;
    received("messages/rpc-failed", &shop.next().await);
    let refused = r#"{"id":7,"method":"echo","params":{"$rpc.callback":"https://10.0.0.1/"}}"#;
    answered("rpc/refused-callback", &shop.post(refused).await);
    answered("rpc/no-json", &shop.post("{").await);
    shop.dispatcher.close(std::time::Duration::ZERO).await;
    answered("rpc/overloaded", &shop.post(SEED_REQUEST).await);
}
