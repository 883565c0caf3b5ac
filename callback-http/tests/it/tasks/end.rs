//! Cancels, expiries and restarts.

use super::*;

#[tokio::test]
async fn put_and_delete_cancel_a_task_until_it_is_over() {
    let api = Api::open(caller()).await;
    for method in [Method::PUT, Method::DELETE] {
        let location = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await);
        let reply = api.send(method.clone(), &location, &[("x-caller", "acme")], "").await;
        let hal = json!({
            "_links": { "self": { "href": location } },
            "UUID": id(&location),
            "status": "cancelled",
            "message": "The task is cancelled.",
        });
        check_hal(&reply, 202, &hal);
        let reply = api.send(method, &location, &[("x-caller", "acme")], "").await;
        check_problem(&reply, 403, "task-over");
        let reply = api.get(&location).await;
        assert_eq!((reply.status, &reply.json()["status"]), (StatusCode::OK, &json!("cancelled")));
        assert_eq!(reply.json()["definitive"], true);
        assert!(!reply.headers.contains_key(header::RETRY_AFTER));
        check_problem(&api.get(&format!("{location}/result")).await, 410, "task-cancelled");
    }
}

#[tokio::test]
async fn a_task_expires_when_the_request_or_the_operator_says_so() {
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer.expires_at(at("$request.body#/expires"))).await;
    let asynchronous = [("prefer", "respond-async")];
    let soon = location(&api.post(&asynchronous, &json!({ "item": "never", "expires": 0.05 })).await);
    let reply = api.ended(&soon).await;
    assert_eq!((reply.status, &reply.json()["status"]), (StatusCode::OK, &json!("expired")));
    check_problem(&api.get(&format!("{soon}/result")).await, 410, "task-expired");
    for expires in [json!("2999-01-01T00:00:00Z"), json!("3600"), json!(3600), json!(null)] {
        let reply = api.post(&asynchronous, &json!({ "item": "never", "expires": expires })).await;
        assert_eq!(api.get(&location(&reply)).await.json()["definitive"], false, "{expires}");
    }
    for expires in [json!("2001-01-01T00:00:00Z"), json!("tomorrow"), json!(0), json!(-1), json!({}), json!("NaN")] {
        let reply = api.post(&asynchronous, &json!({ "item": "never", "expires": expires })).await;
        let problem = check_problem(&reply, 422, "invalid-member");
        assert_eq!(problem["errors"][0]["pointer"], "#/expires", "{expires}");
    }
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer.expires_in(Duration::from_millis(50))).await;
    let soon = location(&api.post(&asynchronous, &json!({ "item": "never" })).await);
    assert_eq!(api.ended(&soon).await.json()["status"], "expired");
}

#[tokio::test]
async fn a_task_outlives_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outbox.db");
    for owner in [caller(), Owner::capability()] {
        let api = Api::on(SqliteOutbox::open(&path).await.expect("opened"), owner.clone(), |layer| layer).await;
        let order = json!({ "item": "slow" });
        let headers = [("prefer", "respond-async"), ("idempotency-key", "k")];
        let before = location(&api.post(&headers, &order).await);
        api.orders.begun.acquire().await.expect("open").forget();
        api.dispatcher.close(Duration::ZERO).await;
        drop(api);

        let api = Api::on(SqliteOutbox::open(&path).await.expect("opened"), owner, |layer| layer).await;
        assert_eq!(location(&api.post(&headers, &order).await), before);
        assert_eq!(api.get(&before).await.status, StatusCode::OK);
        api.orders.gate.add_permits(1);
        assert_eq!(api.ended(&before).await.status, StatusCode::SEE_OTHER);
        let result = api.get(&format!("{before}/result")).await.json();
        assert_eq!(result, json!({ "order": order, "task": id(&before) }));
        api.dispatcher.close(PATIENCE).await;
    }
}
