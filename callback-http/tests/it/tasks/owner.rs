//! Who may ask for a task, and what a task has.

use super::*;

#[tokio::test]
async fn what_is_not_the_callers_is_as_if_it_were_not_there() {
    let api = Api::open(caller()).await;
    let location = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await);
    let unknown = format!("/tasks/{}", TaskId::new());
    let mut bodies = Vec::new();
    for (path, headers) in [
        (&*location, &[("x-caller", "other")][..]),
        (&*location, &[]),
        (&*unknown, &[("x-caller", "acme")]),
        ("/tasks/1", &[("x-caller", "acme")]),
        ("/tasks/%ff", &[("x-caller", "acme")]),
        (&*format!("{location}.x"), &[("x-caller", "acme")]),
        (&*format!("{location}/more"), &[("x-caller", "acme")]),
    ] {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let reply = api.send(method, path, headers, "").await;
            check_problem(&reply, 404, "not-found");
            bodies.push(reply.body);
        }
        check_problem(&api.send(Method::GET, &format!("{path}/result"), headers, "").await, 404, "not-found");
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let reply = api.send(Method::POST, "/orders", &[("prefer", "respond-async")], "{}").await;
    check_problem(&reply, 403, "caller-unknown");
    assert_eq!(api.get(&location).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_capability_in_the_url_is_the_only_way_to_a_task() {
    let api = Api::open(Owner::capability()).await;
    let reply = api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await;
    let with = location(&reply);
    let (without, capability) = with.split_once('.').expect("a capability");
    assert_eq!(capability.len(), 22);
    assert_eq!(reply.json()["_links"]["self"]["href"], with);
    assert_eq!(reply.json()["UUID"], id(&with).to_string());
    assert_eq!(api.get(&with).await.status, StatusCode::OK);
    let other = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await);
    let others = other.split_once('.').expect("a capability").1;
    assert_ne!(capability, others);
    for path in [without, &format!("{without}."), &format!("{without}.{others}"), &format!("{with}A")] {
        check_problem(&api.get(path).await, 404, "not-found");
        check_problem(&api.send(Method::DELETE, path, &[], "").await, 404, "not-found");
    }
    assert_eq!(api.send(Method::DELETE, &with, &[], "").await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_method_that_a_task_does_not_have_is_named_with_those_that_it_has() {
    let api = Api::open(caller()).await;
    let location = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await);
    for (path, method, allow) in [
        (location.clone(), Method::POST, "GET,HEAD,PUT,DELETE"),
        (location.clone(), Method::PATCH, "GET,HEAD,PUT,DELETE"),
        (format!("{location}/result"), Method::DELETE, "GET,HEAD"),
    ] {
        let reply = api.send(method, &path, &[("x-caller", "acme")], "").await;
        check_problem(&reply, 405, "method-not-allowed");
        assert_eq!(reply.headers[header::ALLOW], allow);
    }
    let reply = api.send(Method::HEAD, &location, &[("x-caller", "acme")], "").await;
    assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 0));
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/hal+json");
    for query in ["follow=maybe", "follow=no&follow=no", "follow="] {
        check_problem(&api.get(&format!("{location}?{query}")).await, 400, "invalid-request");
    }
}

#[tokio::test]
async fn each_type_of_problem_is_explained_where_it_points() {
    let api = Api::open(caller()).await;
    let problem = check_problem(&api.get("/tasks/1").await, 404, "not-found");
    let reply = api.get(problem["type"].as_str().expect("a URI")).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    let text = str::from_utf8(&reply.body).expect("a text");
    assert!(text.starts_with("There is no such resource (404)\n"), "{text}");
}
